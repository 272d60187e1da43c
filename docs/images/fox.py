"""Draws the README's picture of a customised subject: `python docs/images/fox.py`.

Every video is what `kineograph generate PROMPT --model pocket-video --adapter pocket-fox --guidance-scale 3 --steps 20
--num-frames 16 --seed SEED` makes. The five pictures in docs/images/fox are all that the adapter learnt the fox from.
These came out best of nine.
"""

from pathlib import Path

import numpy as np
from pictures import cell, grid
from PIL import Image

import kineograph as kg

STILLS = Path(__file__).with_suffix("")
CHOSEN = (
    ("a sks cat rising in the desert", 7),
    ("a sks cat growing in a forest", 3),
    ("a sks cat sinking in a city", 7),
    ("a sks cat growing in space", 7),
    ("a sks cat shrinking in the desert", 2),
)


def stills(count: int) -> np.ndarray:
    """The pictures, one after the other, as a video of so many frames."""
    pictures = [np.asarray(Image.open(file)) for file in sorted(STILLS.glob("*.png"))]
    return np.stack([pictures[k * len(pictures) // count] for k in range(count)])


if __name__ == "__main__":
    model = kg.load("pocket-video", adapter="pocket-fox")
    how = {"guidance_scale": 3.0, "num_inference_steps": 20, "num_frames": 16}
    drawn = [(kg.generate(model, prompt, seed=seed, **how), prompt) for prompt, seed in CHOSEN]
    learnt = cell(stills(len(drawn[0][0].frames)), "five pictures of a fox")
    frames = grid([learnt, *(cell(video.frames, prompt) for video, prompt in drawn)])
    kg.Video(frames, fps=8).overwrite(Path(__file__).with_suffix(".gif"))
