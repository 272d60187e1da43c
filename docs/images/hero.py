"""Generate hero.gif of the README with the pocket model: `python docs/images/hero.py`.

Each video is that of `kineograph generate PROMPT --seed SEED --camera MOTION`.
"""

from pathlib import Path

from layout import captioned, write

import kineograph as kg

CHOSEN = (
    ("a red fish over the sea", 1, "pan:16,0"),
    ("a blue car in a city", 1, "pan:-20,0"),
    ("an orange rocket in space", 1, "pan:0,-16"),
    ("a pink balloon in the desert", 1, "pan:0,-12"),
    ("an orange butterfly in the snow", 3, "zoom:1.02"),
    ("a purple robot in a room", 1, "rotate:1.5"),
)

if __name__ == "__main__":
    model = kg.load()
    videos = [(kg.generate(model, prompt, seed=seed, camera=motion), prompt) for prompt, seed, motion in CHOSEN]
    write([captioned(video.frames, prompt) for video, prompt in videos], Path(__file__).with_suffix(".gif"))
