"""Processing steps of a clip: each returns the clip, or a rejection with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kineograph.media.images import import_opencv

ClipKind = Literal["filmed", "panned", "frozen"]


class CandidateClip(NamedTuple):
    """Frames of a clip that is not accepted yet.

    start: seconds into the source file. kind: cut from a video, or made from an image by pan and zoom or freezing.
    """

    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float
    start: float
    kind: ClipKind


class Rejection(NamedTuple):
    """The reason why a clip was dropped: the name of the step, and its finding as the rest of a sentence."""

    reason: str
    detail: str


ClipStep = Callable[[CandidateClip], CandidateClip | Rejection]


def apply_steps(clip: CandidateClip, steps: Sequence[tuple[str, ClipStep]]) -> CandidateClip | Rejection:
    """Apply named steps one after another, up to the first that rejects the clip."""
    result: CandidateClip | Rejection = clip
    for _, step in steps:
        if isinstance(result, Rejection):
            break
        result = step(result)
    return result


def select_key_frames(frames: UInt8[np.ndarray, "f h w 3"], count: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Return up to `count` frames, from the middles of parts of equal length."""
    count = min(count, len(frames))
    return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]


def single_threaded_opencv() -> Any:
    """Return the module `cv2`, limited to one thread: files are processed in parallel, and more threads would wait.

    Raises InputError when it is not installed.
    """
    cv2 = import_opencv("curation", extra="data")
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
