"""Where one shot ends and the next begins, by PySceneDetect: while frames come, with one shot in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video import VideoStream
from av.video.reformatter import Interpolation
from jaxtyping import UInt8

from kineograph.curation.settings import Cuts
from kineograph.errors import InputError
from kineograph.media.footage import DECODE_ERRORS
from kineograph.media.seek import (
    HALF_FRAME,
    BrokenFile,
    VideoTiming,
    frame_time,
    open_video_stream,
    read_timing,
    to_ticks,
)
from kineograph.media.shards import FileSlice

LOOKED_AT = 128  # pixels of the shorter side that are compared: a cut is seen in a small picture too

Frame = UInt8[np.ndarray, "h w 3"]


class Shot(NamedTuple):
    """Frames without a cut. start: the number of the first one."""

    start: int
    frames: UInt8[np.ndarray, "f h w 3"]


class ShotDetector(NamedTuple):
    """Numbers of the frames that begin a shot, as far as they are known after a frame; `late` frames later at most."""

    after: Callable[[int, Frame], list[int]]
    late: int


def split_shots(frames: Iterator[Frame], fps: float, cuts: Cuts) -> Iterator[Shot]:
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


def _parts(start: int, frames: list[Frame], most: int) -> Iterator[Shot]:
    for first, last in pairwise([*range(0, len(frames), most), len(frames)]):
        yield Shot(start + first, np.stack(frames[first:last]))


def _cutter(fps: float, cuts: Cuts) -> ShotDetector:
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

    return ShotDetector(after, detector.event_buffer_length)


Develop = Callable[[av.VideoFrame], Frame]


class DecodableVideo(NamedTuple):
    """A video that can be read: when it is shown, its frames a second as they are kept, and how they are scaled."""

    part: FileSlice
    film: VideoTiming
    fps: float
    develop: Develop


def open_decodable(part: FileSlice, *, fps: float | None, shorter_side: int | None) -> DecodableVideo:
    """A video, looked into but not decoded yet. fps: at most; shorter_side: at most, in pixels; None: as it is.

    Raises BrokenFile when it is empty, no video, or cut short.
    """
    if part.size == 0:
        raise BrokenFile("is empty")
    try:
        shown = read_timing(part)
    except DECODE_ERRORS as error:
        raise _broken(error) from error
    rate = min(fps or shown.rate, shown.rate)
    return DecodableVideo(part, shown, rate, lambda frame: _scaled(frame, shown.pixel, shorter_side))


def frames_at_rate(reel: DecodableVideo) -> Iterator[Frame]:
    """What is on show at each 1 / fps seconds. Raises BrokenFile where the file cannot be decoded any further."""
    before: av.VideoFrame | None = None
    shown, count = None, 0
    due = _slots(reel)
    for frame in _decoded(reel):
        time = frame_time(frame)
        while before is not None and count < due and _tick(reel, count) < time - HALF_FRAME / reel.film.rate:
            shown = reel.develop(before) if shown is None else shown
            yield shown
            count += 1
        before, shown = frame, None
    if before is None or _tick(reel, due - 1) > frame_time(before) + 1.5 / reel.film.rate:
        raise BrokenFile(f"cannot be decoded beyond {0 if before is None else frame_time(before):.2f} s")
    last = reel.develop(before)
    yield from (last for _ in range(due - count))


def sample_frames(reel: DecodableVideo, count: int) -> list[Frame]:
    """About so many frames from all over a video: key frames, which are quick to reach, or any where those are few."""
    try:
        found = _sought(reel, count)
    except DECODE_ERRORS:
        found = []
    if len(found) >= count // 2:
        return found
    wanted = set(np.linspace(0, _slots(reel) - 1, count).astype(int).tolist())
    return [frame for number, frame in enumerate(frames_at_rate(reel)) if number in wanted]


def _sought(reel: DecodableVideo, count: int) -> list[Frame]:
    found: dict[float, Frame] = {}
    with open_video_stream(reel.part) as (container, stream):
        for time in np.linspace(reel.film.first, reel.film.end, count, endpoint=False):
            container.seek(to_ticks(stream, float(time)), stream=stream)
            frame = next(container.decode(stream), None)
            if frame is not None and not frame.is_corrupt and frame_time(frame) not in found:
                found[frame_time(frame)] = reel.develop(frame)
    return [*found.values()]


def _decoded(reel: DecodableVideo) -> Iterator[av.VideoFrame]:
    reached = reel.film.first
    try:
        with open_video_stream(reel.part) as (container, stream):
            for frame in _whole(container, stream):
                reached = frame_time(frame)
                yield frame
    except BrokenFile:
        raise
    except DECODE_ERRORS as error:
        raise BrokenFile(f"cannot be decoded beyond {reached:.2f} s ({error})") from error


def _whole(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BrokenFile(f"has no whole frame to show at {frame_time(frame):.2f} s")
        yield frame


def _slots(reel: DecodableVideo) -> int:
    """How many frames there are at the rate that is kept."""
    return max(1, round((reel.film.end - reel.film.first) * reel.fps))


def _tick(reel: DecodableVideo, number: int) -> float:
    return reel.film.first + number / reel.fps


def _scaled(frame: av.VideoFrame, pixel: float, shorter_side: int | None) -> Frame:
    """A frame upright, with square pixels and even sides, averaged down where it is too large; never enlarged."""
    quarters = round(frame.rotation / 90)
    wide, tall = max(frame.width * pixel, frame.width), max(frame.height / pixel, frame.height)
    scale = min(1.0, (shorter_side or min(wide, tall)) / min(wide, tall))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (wide, tall))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=Interpolation.AREA)
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _broken(error: Exception) -> BrokenFile:
    if isinstance(error, BrokenFile):
        return error
    return BrokenFile(f"cannot be decoded ({type(error).__name__}: {getattr(error, 'strerror', None) or error})")
