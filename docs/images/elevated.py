"""Write elevated.gif of the README, of VideoElevator: `python docs/images/elevated.py`.

The videos are those of `kineograph reproduce video-elevator`, whose frames are side by side in
docs/results/video-elevator.
"""

from pathlib import Path

import numpy as np
from layout import captioned, grid
from PIL import Image

import kineograph as kg

RESULTS = Path(__file__).parents[1] / "results" / "video-elevator"
CASES = (1, 2)
MODELS = {"video-model-alone": "video model", "image-model-per-frame": "image model", "together": "both together"}


def frames(case: int, stem: str) -> np.ndarray:
    strip = np.asarray(Image.open(RESULTS / f"video-elevator-{case}-{stem}.png"))
    return np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))


if __name__ == "__main__":
    cells = [captioned(frames(case, stem), name) for case in CASES for stem, name in MODELS.items()]
    kg.Video(grid(cells), fps=4).overwrite(Path(__file__).with_suffix(".gif"))
