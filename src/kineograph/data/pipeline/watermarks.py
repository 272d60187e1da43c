"""Marks laid over a whole video, or over all of a source: found by the edges that stay while the scene changes.

The median of the signed gradients over pictures of different scenes is near zero, but for what all of them share,
however see-through it is (after Dekel et al. 2017, "On the Effectiveness of Visible Watermarks").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from kineograph.data.pipeline.opencv import opencv
from kineograph.data.pipeline.settings import Watermarks
from kineograph.data.pipeline.steps import Dropped, Shot, Step

LEAST = 6  # pictures, from which on a median means something
CHANGES = 12.0  # grey levels: the spread over the pictures in most places, below which it is one scene all along
SURE = 2.0  # times what chance makes of a shared edge
SPECK = 9  # pixels: less is no part of a mark
LITTLE = 0.001  # of the picture: less is no mark
BAR = 0.6  # of a row or column: where more of it is an edge, a black bar ends
GROWN = 5  # pixels, an odd number: edges are closed to a shape and grown to cover its rim
RADIUS = 3.0  # of inpainting, in pixels

Frame = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


class Mark(NamedTuple):
    """Where a watermark is."""

    mask: Mask


def watermark(pictures: Sequence[Frame], settings: Watermarks) -> Mark | None:
    """What pictures of different scenes have in common, if that is little enough to be a watermark.

    Of pictures in several sizes the most frequent size counts. None too where there is no telling: fewer than 6
    pictures, or pictures of a scene that hardly changes.
    """
    sizes = Counter(picture.shape for picture in pictures)
    size = max(sizes, key=lambda size: (sizes[size], size)) if sizes else None
    greys = [_grey(picture) for picture in pictures if picture.shape == size]
    if len(greys) < LEAST or np.median(np.std(greys, axis=0)) < CHANGES:
        return None
    mask = _shape(_common_edges(greys, settings.edge))
    return Mark(mask) if LITTLE < mask.mean() <= settings.most else None


def cleaner(mark: Mark | None, settings: Watermarks) -> Step:
    """The step that paints a watermark over with what is around it (Telea 2004), or drops the clip, or lets it be."""

    def step(shot: Shot) -> Shot | Dropped:
        mask = None if mark is None else fitted(mark.mask, *shot.frames.shape[1:3])
        if mask is None or settings.then == "keep":
            return shot
        if settings.then == "drop":
            return Dropped("watermark", f"a mark covers {100 * mask.mean():.1f} % of the picture")
        return shot._replace(frames=np.stack([painted_over(frame, mask) for frame in shot.frames]))

    return step


def painted_over(frame: Frame, mask: Mask) -> Frame:
    """A frame whose masked part is filled from its rim."""
    return opencv().inpaint(np.ascontiguousarray(frame), mask.astype(np.uint8), RADIUS, opencv().INPAINT_TELEA)


def fitted(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "h2 w2"] | None:
    """A mask for frames of this size; None where they are of another shape."""
    tall, wide = mask.shape
    if abs(np.log(height * wide / (width * tall))) > 0.02:
        return None
    cv2 = opencv()
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _common_edges(greys: Sequence[Float32[np.ndarray, "h w"]], least: float) -> Mask:
    """Where half of the pictures or more have a gradient in common: strong, and beyond what chance makes of it.

    The median of n independent values strays by 1.25 times their spread over the root of n. Rows and columns that
    have one nearly all along are the rims of black bars.
    """
    slopes = np.array([np.gradient(grey) for grey in greys], np.float32)  # n (down, across) h w
    shared = np.hypot(*np.median(slopes, axis=0))
    chance = 1.25 * np.hypot(*slopes.std(axis=0)) / np.sqrt(len(greys))
    strong = shared > least
    bars = (strong.mean(1, keepdims=True) > BAR) | (strong.mean(0, keepdims=True) > BAR)
    return strong & (shared > SURE * chance) & ~bars


def _shape(edges: Mask) -> Mask:
    """Edges closed to shapes and grown; without specks."""
    cv2 = opencv()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges.astype(np.uint8), connectivity=8)
    kept = (stats[:, cv2.CC_STAT_AREA] >= SPECK) & (np.arange(count) > 0)
    brush = np.ones((GROWN, GROWN), np.uint8)
    whole = cv2.morphologyEx(kept[labels].astype(np.uint8), cv2.MORPH_CLOSE, brush)
    return cv2.dilate(whole, brush[:3, :3]).astype(bool)


def _grey(picture: Frame) -> Float32[np.ndarray, "h w"]:
    cv2 = opencv()
    return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
