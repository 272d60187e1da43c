"""Draws the README's picture of the pocket video model: `python docs/images/moving.py`.

Every video is what `kineograph generate PROMPT --model pocket-video --guidance-scale 5 --steps 20 --seed SEED` makes.
"""

from pathlib import Path

from pictures import cell, grid

import kineograph as kg

CHOSEN = (
    ("a red fish swimming to the right", 1),
    ("a purple balloon rising in the desert", 1),
    ("a yellow truck shrinking in the snow", 1),
    ("an orange crab moving in a circle", 1),
    ("a blue car moving to the left in a city", 1),
    ("a pink boat sinking in space", 1),
)

if __name__ == "__main__":
    model = kg.load("pocket-video")
    how = {"guidance_scale": 5.0, "num_inference_steps": 20}
    drawn = [(kg.generate(model, prompt, seed=seed, **how), prompt) for prompt, seed in CHOSEN]
    frames = grid([cell(video.frames, prompt) for video, prompt in drawn])
    kg.Video(frames, fps=8).overwrite(Path(__file__).with_suffix(".gif"))
