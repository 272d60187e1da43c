"""Where one shot ends and the next begins, by PySceneDetect: while frames come, with one shot in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from kineograph.data.pipeline.settings import Cuts
from kineograph.errors import InputError

LOOKED_AT = 128  # pixels of the shorter side that are compared: a cut is seen in a small picture too

Frame = UInt8[np.ndarray, "h w 3"]


class Piece(NamedTuple):
    """Frames without a cut. start: the number of the first one."""

    start: int
    frames: UInt8[np.ndarray, "f h w 3"]


class Cutter(NamedTuple):
    """Numbers of the frames that begin a shot, as far as they are known after a frame; `late` frames later at most."""

    after: Callable[[int, Frame], list[int]]
    late: int


def pieces(frames: Iterator[Frame], fps: float, cuts: Cuts) -> Iterator[Piece]:
    """All frames, in pieces without a cut, none longer than `cuts.longest`. Raises InputError without PySceneDetect."""
    cutter, most = _cutter(fps, cuts), max(1, round(cuts.longest * fps))
    held: list[Frame] = []
    start = 0
    for number, frame in enumerate(frames):
        held.append(frame)
        full = [start + most] if len(held) >= most + cutter.late else []
        for end in sorted({*cutter.after(number, frame), *full}):
            if end > start:
                yield from _parts(start, held[: end - start], most)
                held, start = held[end - start :], end
    yield from _parts(start, held, most)


def _parts(start: int, frames: list[Frame], most: int) -> Iterator[Piece]:
    for first, last in pairwise([*range(0, len(frames), most), len(frames)]):
        yield Piece(start + first, np.stack(frames[first:last]))


def _cutter(fps: float, cuts: Cuts) -> Cutter:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
    except ImportError as error:
        raise InputError(
            "cuts are found by PySceneDetect, which is not installed: pip install 'kineograph[data]'"
        ) from error
    if cuts.detector == "adaptive":
        detector = AdaptiveDetector(adaptive_threshold=cuts.threshold or 3.0, min_scene_len=1)
    else:  # every cut counts, however short the shots become: the short ones are dropped later
        detector = ContentDetector(threshold=cuts.threshold or 27.0, min_scene_len=0)

    def after(number: int, frame: Frame) -> list[int]:
        step = max(1, min(frame.shape[:2]) // LOOKED_AT)
        small = np.ascontiguousarray(frame[::step, ::step, ::-1])  # it expects blue first
        return [time.frame_num for time in detector.process_frame(FrameTimecode(number, fps), small)]

    return Cutter(after, detector.event_buffer_length)
