"""Draws the README's moving picture with the pocket model: `python docs/images/hero.py`.

Every video is what `kineograph generate PROMPT --seed SEED --motion MOTION` makes; they play forth and back.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import kineograph as kg

CHOSEN = (
    ("a red fish over the sea", 1, "pan:16,0"),
    ("a blue car in a city", 1, "pan:-20,0"),
    ("an orange rocket in space", 1, "pan:0,-16"),
    ("a pink balloon in the desert", 1, "pan:0,-12"),
    ("an orange butterfly in the snow", 3, "zoom:1.02"),
    ("a purple robot in a room", 1, "rotate:1.5"),
)
COLUMNS, SIDE, LINE = 3, 192, 28

if __name__ == "__main__":
    model = kg.load()
    cells = []
    for prompt, seed, motion in CHOSEN:
        video = kg.generate(model, prompt, seed=seed, motion=motion)
        words = Image.new("RGB", (SIDE, LINE), "white")
        ImageDraw.Draw(words).text((SIDE / 2, LINE / 2), prompt, "black", ImageFont.load_default(11), anchor="mm")
        large = [np.asarray(each.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for each in video.pil]
        cells.append(np.stack([np.concatenate([each, np.asarray(words)]) for each in large]))
    rows = [np.concatenate(cells[k : k + COLUMNS], axis=2) for k in range(0, len(cells), COLUMNS)]
    frames = np.concatenate(rows, axis=1)
    there_and_back = np.concatenate([frames, frames[-2:0:-1]])
    kg.Video(there_and_back, fps=6).overwrite(Path(__file__).with_suffix(".gif"))
