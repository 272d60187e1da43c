"""A clip on its way: a list of steps, each of which passes it on or drops it and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kineograph.errors import InputError

ClipKind = Literal["filmed", "panned", "frozen"]


class CandidateClip(NamedTuple):
    """Frames that belong together. start: seconds into the file they come from; kind: how they move."""

    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float
    start: float
    kind: ClipKind


class Rejection(NamedTuple):
    """Why there is no clip: the name of the step, and what it found."""

    why: str
    told: str


ClipStep = Callable[[CandidateClip], CandidateClip | Rejection]


def apply_steps(shot: CandidateClip, steps: Sequence[tuple[str, ClipStep]]) -> CandidateClip | Rejection:
    """What the steps make of a shot, one after another, up to the first that drops it."""
    passed: CandidateClip | Rejection = shot
    for _, step in steps:
        if isinstance(passed, Rejection):
            break
        passed = step(passed)
    return passed


def select_key_frames(frames: UInt8[np.ndarray, "f h w 3"], count: int) -> UInt8[np.ndarray, "n h w 3"]:
    """So many frames, or all there are, in the middles of parts of equal length."""
    count = min(count, len(frames))
    return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]


def opencv() -> Any:
    """The module `cv2`, on one thread: files are worked on side by side, and threads within one would only wait.

    Raises InputError when it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "clips are sifted by OpenCV, which is not installed: pip install 'kineograph[data]'"
        ) from error
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
