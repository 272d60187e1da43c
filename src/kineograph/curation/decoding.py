"""Decoding at a constant frame rate, and shot detection by PySceneDetect, with one shot in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from kineograph.curation.settings import Cuts
from kineograph.errors import InputError
from kineograph.media.frames import (
    DECODE_ERRORS,
    BrokenFile,
    decode_problem,
    decode_stream,
    frame_time,
    open_video_stream,
    square_size,
    to_rgb,
)
from kineograph.media.seek import HALF_FRAME, VideoTiming, read_timing, seek_frame
from kineograph.media.shards import FileSlice

DETECTION_SIDE = 128  # pixels of the shorter side of the frames that are compared: enough to find a cut

Frame = UInt8[np.ndarray, "h w 3"]


class Shot(NamedTuple):
    """Frames without a cut. start: index of the first one."""

    start: int
    frames: UInt8[np.ndarray, "f h w 3"]


class ShotDetector(NamedTuple):
    """A streaming shot detector.

    process: takes a frame with its index, and returns the indices of the first frames of shots that it found.
    delay: number of frames by which it reports them late, at most.
    """

    process: Callable[[int, Frame], list[int]]
    delay: int


def split_shots(frames: Iterator[Frame], fps: float, cuts: Cuts) -> Iterator[Shot]:
    """Split frames into shots, none longer than `cuts.longest`. Raises InputError without PySceneDetect."""
    detector, max_frames = _shot_detector(fps, cuts), max(1, round(cuts.longest * fps))
    pending: list[Frame] = []
    start = 0
    for index, frame in enumerate(frames):
        pending.append(frame)
        full = [start + max_frames] if len(pending) >= max_frames + detector.delay else []
        for end in sorted({*detector.process(index, frame), *full}):
            if end > start:
                yield from _split_length(start, pending[: end - start], max_frames)
                pending, start = pending[end - start :], end
    yield from _split_length(start, pending, max_frames)


def _split_length(start: int, frames: list[Frame], max_frames: int) -> Iterator[Shot]:
    for first, last in pairwise([*range(0, len(frames), max_frames), len(frames)]):
        yield Shot(start + first, np.stack(frames[first:last]))


def _shot_detector(fps: float, cuts: Cuts) -> ShotDetector:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
    except ImportError as error:
        raise InputError(
            "cuts are found by PySceneDetect, which is not installed: pip install 'kineograph[data]'"
        ) from error
    if cuts.detector == "adaptive":
        detector = AdaptiveDetector(adaptive_threshold=cuts.threshold or 3.0, min_scene_len=1)
    else:  # every cut counts, however short the shots become: short ones are dropped later
        detector = ContentDetector(threshold=cuts.threshold or 27.0, min_scene_len=0)

    def process(index: int, frame: Frame) -> list[int]:
        step = max(1, min(frame.shape[:2]) // DETECTION_SIDE)
        small = np.ascontiguousarray(frame[::step, ::step, ::-1])  # it expects BGR
        return [time.frame_num for time in detector.process_frame(FrameTimecode(index, fps), small)]

    return ShotDetector(process, detector.event_buffer_length)


class DecodableVideo(NamedTuple):
    """A video that is opened but not decoded yet. fps: of its clips; convert: turns a decoded frame into pixels."""

    file: FileSlice
    timing: VideoTiming
    fps: float
    convert: Callable[[av.VideoFrame], Frame]


def open_decodable(file: FileSlice, *, fps: float | None, shorter_side: int | None) -> DecodableVideo:
    """Open a video without decoding it.

    Args:
        fps: highest frame rate; None for the video's own.
        shorter_side: largest shorter side in pixels; None for the video's own.

    Raises BrokenFile when it is empty, not a video, or truncated.
    """
    if file.size == 0:
        raise BrokenFile("is empty")
    try:
        timing = read_timing(file)
    except BrokenFile:
        raise
    except DECODE_ERRORS as error:
        raise BrokenFile(f"cannot be decoded ({decode_problem(error)})") from error
    rate = min(fps or timing.fps, timing.fps)
    return DecodableVideo(file, timing, rate, lambda frame: _scale_down(frame, timing.pixel_aspect, shorter_side))


def frames_at_rate(video: DecodableVideo) -> Iterator[Frame]:
    """Yield the frame that is shown at every multiple of 1 / fps seconds.

    Raises BrokenFile where the file cannot be decoded any further.
    """
    previous: av.VideoFrame | None = None
    pixels, count = None, 0
    total = _frame_count(video)
    for frame in _decode(video):
        time = frame_time(frame)
        while previous is not None and count < total and _time_of(video, count) < time - HALF_FRAME / video.timing.fps:
            pixels = video.convert(previous) if pixels is None else pixels
            yield pixels
            count += 1
        previous, pixels = frame, None
    if previous is None or _time_of(video, total - 1) > frame_time(previous) + 1.5 / video.timing.fps:
        raise BrokenFile(f"cannot be decoded beyond {0 if previous is None else frame_time(previous):.2f} s")
    last = video.convert(previous)
    yield from (last for _ in range(total - count))


def sample_frames(video: DecodableVideo, count: int) -> list[Frame]:
    """Return about `count` frames from all over a video: key frames, which are quick to reach, or any if too few."""
    try:
        found = _seek_key_frames(video, count) if video.timing.has_timestamps else []
    except DECODE_ERRORS:
        found = []
    if len(found) >= count // 2:
        return found
    indices = set(np.linspace(0, _frame_count(video) - 1, count).astype(int).tolist())
    return [frame for index, frame in enumerate(frames_at_rate(video)) if index in indices]


def _seek_key_frames(video: DecodableVideo, count: int) -> list[Frame]:
    found: dict[float, Frame] = {}
    with open_video_stream(video.file) as (container, stream):
        for time in np.linspace(video.timing.start, video.timing.end, count, endpoint=False):
            frame, _ = seek_frame(container, stream, float(time))
            if frame is not None and frame_time(frame) not in found:
                found[frame_time(frame)] = video.convert(frame)
    return [*found.values()]


def _decode(video: DecodableVideo) -> Iterator[av.VideoFrame]:
    reached = video.timing.start
    try:
        with open_video_stream(video.file) as (container, stream):
            for frame in decode_stream(container, stream):
                reached = frame_time(frame)
                yield frame
    except BrokenFile:
        raise
    except DECODE_ERRORS as error:
        raise BrokenFile(f"cannot be decoded beyond {reached:.2f} s ({decode_problem(error)})") from error


def _frame_count(video: DecodableVideo) -> int:
    """Return the number of frames at the frame rate of the clips."""
    return max(1, round((video.timing.end - video.timing.start) * video.fps))


def _time_of(video: DecodableVideo, index: int) -> float:
    return video.timing.start + index / video.fps


def _scale_down(frame: av.VideoFrame, pixel_aspect: float, shorter_side: int | None) -> Frame:
    """Return a frame as it is shown, with even sides, averaged down if it is too large; never enlarged."""
    size = square_size(frame, pixel_aspect)
    scale = min(1.0, (shorter_side or min(size)) / min(size))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in size)
    return to_rgb(frame, (width, height))
