"""Control pictures of the pocket world: edges as anybody finds them, depth and poses as they are known to be.

uint8 [128, 128, 3], from a picture and its truth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from kineograph.data.annotators import canny
from kineograph.pocket.painting import RGB, SIDE
from kineograph.pocket.truth import KEYPOINTS, Truth

PAINTS: tuple[RGB, ...] = ((255, 64, 64), (64, 255, 64), (64, 128, 255), (255, 224, 64), (255, 64, 255))  # of KEYPOINTS
DOT, BONE = 4, 2  # pixels


def edges(picture: np.ndarray, known: Truth) -> np.ndarray:
    return canny(picture)


def depth(picture: np.ndarray, known: Truth) -> np.ndarray:
    """What is near is bright, as networks that estimate depth have it."""
    grey = (255 * (1 - known.depth)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def pose(picture: np.ndarray, known: Truth) -> np.ndarray:
    """A dot at each end of every thing, each of its own colour, and bones from them to the centre."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for places in known.keypoints:
        for name, (r, g, b) in zip(KEYPOINTS, PAINTS, strict=True):
            draw.line([places["centre"], places[name]], fill=(r // 2, g // 2, b // 2), width=BONE)
        for name, paint in zip(KEYPOINTS, PAINTS, strict=True):
            x, y = places[name]
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=paint)
    return np.asarray(image)


MAPS: dict[str, Callable[[np.ndarray, Truth], np.ndarray]] = {"canny": edges, "depth": depth, "pose": pose}
