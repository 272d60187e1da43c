"""How a video moves, by optical flow between neighbouring frames: how much, and whether what moves stays the same.

The flow is OpenCV's DIS (Kroeger et al. 2016), which needs no weights. Frames are uint8 [f h w 3].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kineograph.errors import InputError
from kineograph.media.footage import fitted
from kineograph.metrics.features import Frames, Measured

SIDE = 256  # pixels of the shorter side: flow and grey levels depend on the size
AGREE, SLACK = 0.01, 0.5  # forth and back agree within a hundredth of their squares and half a pixel squared

Flow = Float[np.ndarray, "h w 2"]
Mask = Bool[np.ndarray, "h w"]

PROTOCOL: dict[str, Any] = {"flow": "DIS, medium", "resize": f"Lanczos, the shorter side to {SIDE}"}


def moving(frames: Frames, fps: float) -> Measured:
    """Motion magnitude, warp error, and the share of pixels that both ways of the flow agree on; nothing of a picture.

    `motion`: how far a pixel moves, in widths and heights of the picture a second.
    `warp error`: how much a pixel has changed where the flow takes it, in grey levels of 255, where forth and back
    agree (Lai et al. 2018). A frozen video has none, and one that breaks up leaves few pixels to compare: read it
    with `motion` and with `followed`, the share of pixels that it is taken over.
    """
    shown = _sized(frames)
    pairs = [_compared(*pair) for pair in pairwise(shown)]
    if not pairs:
        return
    lengths, errors, followed = zip(*pairs, strict=True)
    yield "motion", float(fps * np.mean(lengths))
    yield "followed", float(np.mean(followed))
    if not np.isnan(errors).all():
        yield "warp error", float(np.nanmean(errors))


def _compared(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Of two neighbours: how far a pixel moves in parts of the picture, how much it changes, and how many count."""
    forth, back = flow(before, after), flow(after, before)
    there = agreeing(forth, back)
    changed = np.abs(warped(after, forth) - before.astype(np.float32)).mean(-1)[there]
    error = float(changed.mean()) if changed.size else np.nan
    return _length(forth), error, float(there.mean())


def lengths(frames: Frames) -> Float[np.ndarray, " pairs"]:
    """How far a pixel moves from each frame to the next, in widths and heights of the picture."""
    return np.array([_length(flow(*pair)) for pair in pairwise(_sized(frames))])


def _length(by: Flow) -> float:
    height, width = by.shape[:2]
    return float(np.linalg.norm(by / (width, height), axis=-1).mean())


def flow(before: np.ndarray, after: np.ndarray) -> Flow:
    """Where each pixel of one picture, uint8 [h w 3], has gone in the other: (right, down) in pixels."""
    cv2 = _opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(each), cv2.COLOR_RGB2GRAY) for each in (before, after)]
    return np.asarray(cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None))


def warped(picture: np.ndarray, by: Flow) -> Float[np.ndarray, "h w c"]:
    """What a picture [h w c] shows where a flow leads to, between pixels linearly and beyond its edge the edge."""
    cv2 = _opencv()
    right, down = _ends(by)
    taken = cv2.remap(
        picture.astype(np.float32), right, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )  # fmt: skip
    return np.asarray(taken)


def agreeing(forth: Flow, back: Flow) -> Mask:
    """Where a pixel comes back when it goes forth and back, and stays inside: it is seen in both pictures.

    The bound is Sundaram et al.'s (2010).
    """
    height, width = forth.shape[:2]
    right, down = _ends(forth)
    inside = (right >= 0) & (right <= width - 1) & (down >= 0) & (down <= height - 1)
    returned = warped(back, forth)
    off = np.square(forth + returned).sum(-1)
    return inside & (off < AGREE * (np.square(forth).sum(-1) + np.square(returned).sum(-1)) + SLACK)


def _ends(by: Flow) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    y, x = np.mgrid[: by.shape[0], : by.shape[1]].astype(np.float32)
    return x + by[..., 0], y + by[..., 1]


def _sized(frames: Frames) -> list[np.ndarray]:
    height, width = frames.shape[1:3]
    scale = SIDE / min(height, width)
    return [fitted(frame, round(scale * height), round(scale * width)) for frame in frames]


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "motion is measured by OpenCV, which is not installed: pip install 'kineograph[control]'"
        ) from error
    return cv2
