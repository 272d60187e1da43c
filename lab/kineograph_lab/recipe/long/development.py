"""Development prompts: every choice of the built-in model's training and sampling is made on these only.

They were drawn once from the caption grammar (seed 2900) over pairs of subject and colour that training shows, so that
no study's test prompt, whose pairs training never shows, is among them; a third use the word forms of README and docs.
"""

from __future__ import annotations

SEEDS = tuple(range(7100, 7148))  # one of each prompt, for the noise

PROMPTS = (
    "a red fish at sea", "a green fish swimming over the sea", "a yellow fish swimming to the left over the sea",
    "a blue fish rising in the sea", "a fish", "a fish swimming to the right", "a purple whale over the sea",
    "a brown whale swimming to the left over the sea", "an orange turtle on the sand", "a green turtle over the sea",
    "a red crab in the desert", "a pink crab at sea", "a blue bird over the sea", "a yellow bird flying to the right in a forest",
    "a bird in the snow", "a pink butterfly in a meadow", "a purple butterfly flying in a forest", "a brown cat in a room",
    "a yellow cat jumping in a meadow", "a cat", "an orange cat in the snow", "a blue rabbit in a meadow",
    "a yellow rabbit jumping in the snow", "a red elephant in the snow", "a blue elephant in a city", "an elephant facing left in a meadow",
    "a purple snail in a forest", "a red car in a city", "a green car driving to the left in the desert", "a car",
    "an orange truck in a city", "a blue truck growing in the snow", "a red boat at sea", "a green boat sailing to the right over the sea",
    "a purple airplane flying over the sea", "a yellow airplane in space", "a yellow rocket rising in space", "a green tree in a meadow",
    "a pink flower in a meadow swaying", "a green cactus in the desert", "a red mushroom in a meadow", "a blue ball bouncing in a room",
    "a blue robot in a city", "a pink kite over the sea", "an orange balloon rising in a meadow", "a yellow star sinking in space",
    "a brown cat and a red ball in a room", "a cartoon of a red fish and a blue boat over the sea",
)  # fmt: skip
