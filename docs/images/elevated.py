"""Puts together the README's picture of VideoElevator: `python docs/images/elevated.py`.

The videos are those of `kineograph reproduce video-elevator`, frames side by side in docs/results/video-elevator.
"""

from pathlib import Path

import numpy as np
from pictures import cell, grid
from PIL import Image

import kineograph as kg

RESULTS = Path(__file__).parents[1] / "results" / "video-elevator"
CASES = (1, 2)
WAYS = {"video-model-alone": "video model", "image-model-per-frame": "image model", "together": "both together"}


def frames(case: int, way: str) -> np.ndarray:
    strip = np.asarray(Image.open(RESULTS / f"video-elevator-{case}-{way}.png"))
    return np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))


if __name__ == "__main__":
    cells = [cell(frames(case, way), name) for case in CASES for way, name in WAYS.items()]
    kg.Video(grid(cells), fps=4).overwrite(Path(__file__).with_suffix(".gif"))
