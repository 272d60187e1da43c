"""How good the pictures of a video are: how sharp, and how much of a watermark is on them."""

from __future__ import annotations

import numpy as np

from kineograph.metrics.features import Frames
from kineograph_lab.recipe.video.degraded import watermark_mask

SOFT = np.hanning(9)[1:-1] / np.hanning(9)[1:-1].sum()  # what is smoother than this says nothing about a letter


def sharpness(frames: Frames) -> float:
    """The mean size of the second differences of the greys, right and down."""
    grey = frames.astype(float).mean(-1)
    second = [np.diff(grey, 2, axis=axis) for axis in (1, 2)]
    return float(np.mean([np.abs(each).mean() for each in second]))


def marked(frames: Frames) -> float:
    """How much of the watermark is there: how the mean frame's detail correlates with it, near 0 without."""
    cover = np.array(watermark_mask(frames.shape[2], frames.shape[1]), float)
    rows = np.flatnonzero(cover.any(1))
    detail, wanted = (_detail(each)[rows[0] : rows[-1] + 1] for each in (frames.astype(float).mean((0, 3)), cover))
    return float((detail * wanted).sum() / np.sqrt((detail**2).sum() * (wanted**2).sum() + 1e-9))


def _detail(picture: np.ndarray) -> np.ndarray:
    """A picture less its blur."""
    kernel = np.hanning(9)[1:-1] / np.hanning(9)[1:-1].sum()
    blurred = picture
    for axis in (0, 1):
        blurred = np.apply_along_axis(
            lambda line: np.convolve(np.pad(line, 3, mode="edge"), kernel, "valid"), axis, blurred
        )
    return picture - blurred
