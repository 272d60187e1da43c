"""Generate fox.gif of the README, of a customised subject: `python docs/images/fox.py`.

Each video is that of `kineograph generate PROMPT --model pocket-video --adapter pocket-fox --guidance-scale 3
--steps 20 --num-frames 16 --seed SEED`. The adapter was trained on the five images in docs/images/fox alone. These
videos are the best of nine.
"""

from pathlib import Path

import numpy as np
from layout import captioned, grid
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
    """Return the five images, one after the other, as a video of `count` frames."""
    images = [np.asarray(Image.open(file)) for file in sorted(STILLS.glob("*.png"))]
    return np.stack([images[k * len(images) // count] for k in range(count)])


if __name__ == "__main__":
    model = kg.load("pocket-video", adapter="pocket-fox")
    options = {"guidance_scale": 3.0, "num_inference_steps": 20, "num_frames": 16}
    videos = [(kg.generate(model, prompt, seed=seed, **options), prompt) for prompt, seed in CHOSEN]
    learnt = captioned(stills(len(videos[0][0].frames)), "five pictures of a fox")
    frames = grid([learnt, *(captioned(video.frames, prompt) for video, prompt in videos)])
    kg.Video(frames, fps=8).overwrite(Path(__file__).with_suffix(".gif"))
