"""Frames of a video at given times, found by seeking: no more is decoded than needed.

A container's seek is a hint: some land behind the requested time, some containers cannot seek at all. What counts is
the timestamp of each decoded frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video import VideoStream

from kineograph.media.frames import (
    BrokenFile,
    decode_stream,
    frame_time,
    lacks_timestamps,
    open_video_stream,
    read_pixel_aspect,
    untimed_rate,
)
from kineograph.media.shards import FileSlice

HEAD_PACKETS = 32  # the first frame is among so many packets: frames are stored in another order than they are shown
END_TICKS = 1 << 50  # beyond the end of any video
SEEK_LEADS = (0.0, 2.0, 10.0)  # seconds before the first time to seek to, tried one after another
MIN_FPS, MAX_FPS = 1, 120  # a single frame of a file that states another frame rate has 1 a second
HALF_FRAME = 0.501  # of a frame: a little more, so that ties are rounded alike
USUAL_STEP = 1.5  # ratio to the median, of times between frames that count for the frame rate
MIN_MISSING = 0.1  # share of a video whose absence shows that the file was truncated


class VideoTiming(NamedTuple):
    """Timing of a video. start: of its first frame; end: of its last; both in seconds.

    pixel_aspect: width over height of its pixels. has_timestamps: False for raw streams, which are decoded in order.
    """

    start: float
    end: float
    fps: float
    pixel_aspect: float
    has_timestamps: bool = True


class _Timestamp(NamedTuple):
    """Times of a packet, in seconds; decoded: when it is decoded, if that is known."""

    start: float
    end: float
    decoded: float | None


def read_timing(file: FileSlice) -> VideoTiming:
    """Return the timing of a video without decoding it: its beginning and its end are read, and little between them.

    All of it is read where the beginning shows that the stated frame rate is not that of most frames, and raw streams
    are decoded.

    Raises BrokenFile when it holds no frames or is truncated, and what PyAV raises.
    """
    with open_video_stream(file) as (container, stream):
        head = [*islice(_timestamps(container, stream), HEAD_PACKETS)]
        fps = _stated_rate(stream)
        stated, pixel_aspect = _stated_seconds(container, stream), read_pixel_aspect(stream)
        tail = _tail(container, stream)
    if not head:
        fps, times = read_frame_times(file)
        return VideoTiming(times[0], times[-1] + 1 / fps, fps, pixel_aspect, has_timestamps=False)
    if not tail or _frame_rate(_without_gaps(head), fps) != fps:
        with open_video_stream(file) as (container, stream):
            tail = [*_timestamps(container, stream)]
        fps = _frame_rate(sorted(stamp.start for stamp in tail), fps)
    first, last = min(stamp.start for stamp in head), max(stamp.start for stamp in tail)
    found = max(last + 1 / fps, *(stamp.end for stamp in tail))
    _check_complete(stated + min(first, 0), found, 2 / fps)
    return VideoTiming(first, last + 1 / fps, fps, pixel_aspect)


def read_frame_times(file: FileSlice | str) -> tuple[float, list[float]]:
    """Return the frame rate, and when each frame is shown, in seconds. Raw streams are decoded, others only read.

    Raises BrokenFile when it holds no frames, and what PyAV raises.
    """
    with open_video_stream(file) as (container, stream):
        times = sorted({stamp.start for stamp in _timestamps(container, stream)})
        fps = _stated_rate(stream)
    if not times:
        with open_video_stream(file) as (container, stream):
            times = [frame_time(frame) for frame in decode_stream(container, stream)]
            fps = float(untimed_rate(container, stream))
    if not times:
        raise BrokenFile("holds no frames")
    return _frame_rate(times, fps), times


def _stated_rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _frame_rate(times: Sequence[float], stated: float) -> float:
    """Return the rate at which most frames follow one another: the stated one if it leads to the same last frame.

    times: in seconds, ascending.
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return stated if MIN_FPS <= stated <= MAX_FPS else 1.0
    median = np.median(steps)
    usual = steps[(steps > median / USUAL_STEP) & (steps < median * USUAL_STEP)]
    usual = usual if len(usual) else steps  # two that differ have none near their median
    length = times[-1] - times[0]
    if stated and abs(len(steps) / stated - length) < 0.5 / stated and abs(1 / usual.mean() - stated) < 0.1 * stated:
        return stated
    return float(1 / usual.mean())


def _without_gaps(head: Sequence[_Timestamp]) -> list[float]:
    """Return the times of frames up to which none is missing: those that are shown before others are decoded."""
    decoded = max((stamp.decoded for stamp in head if stamp.decoded is not None), default=math.inf)
    return sorted({stamp.start for stamp in head if stamp.start <= decoded})


def decode_frames_at(
    file: FileSlice, times: Sequence[float], timing: VideoTiming, convert: Callable[[av.VideoFrame], np.ndarray]
) -> list[np.ndarray]:
    """Decode the frames that are shown at given times, and convert each.

    Half a frame is added to each time, so that times rounded by a container do not repeat a frame.

    Args:
        times: in seconds, ascending.
        convert: turns a decoded frame into pixels.

    Raises BrokenFile where the video breaks off, and what PyAV raises.
    """
    start = times[0] + HALF_FRAME / timing.fps
    for lead in SEEK_LEADS if timing.has_timestamps else ():
        with open_video_stream(file) as (container, stream):
            first, others = seek_frame(container, stream, start - lead)
            if first is not None and frame_time(first) <= start:
                return _select(chain([first], others), times, timing.fps, convert)
    with open_video_stream(file) as (container, stream):
        return _select(decode_stream(container, stream), times, timing.fps, convert)


def seek_frame(
    container: InputContainer, stream: VideoStream, start: float
) -> tuple[av.VideoFrame | None, Iterator[av.VideoFrame]]:
    """Return the frame that a container finds near `start`, and an iterator over those after it."""
    try:
        container.seek(to_ticks(stream, start), stream=stream)
        frames = decode_stream(container, stream)
        return next(frames, None), frames
    except (av.FFmpegError, BrokenFile):
        return None, iter(())


def _select(
    frames: Iterator[av.VideoFrame], times: Sequence[float], fps: float, convert: Callable[[av.VideoFrame], np.ndarray]
) -> list[np.ndarray]:
    """Convert, for each time, the last frame that begins at it or before."""
    selected: list[np.ndarray] = []
    previous: av.VideoFrame | None = None
    for frame in frames:
        due = sum(time < frame_time(frame) - HALF_FRAME / fps for time in times[len(selected) :])
        if due:
            selected += [convert(_check_frame(previous, times[len(selected)]))] * due
        if len(selected) == len(times):
            return selected
        previous = frame
    last = _check_frame(previous, times[len(selected)])
    if times[-1] > frame_time(last) + 1.5 / fps:
        raise BrokenFile(f"cannot be decoded beyond {frame_time(last):.2f} s")
    return selected + [convert(last)] * (len(times) - len(selected))


def _check_frame(frame: av.VideoFrame | None, time: float) -> av.VideoFrame:
    if frame is None:
        raise BrokenFile(f"has no intact frame at {time:.2f} s")
    return frame


def _timestamps(container: InputContainer, stream: VideoStream) -> Iterator[_Timestamp]:
    """Yield the times of each frame from here on, in the order of the file; nothing where it has none."""
    unit = float(stream.time_base or 1)
    for packet in () if lacks_timestamps(container, stream) else container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and not packet.is_corrupt and not packet.is_discard:  # what an edit list cuts off
            decoded = None if packet.dts is None else packet.dts * unit
            yield _Timestamp(stamp * unit, (stamp + (packet.duration or 0)) * unit, decoded)


def _tail(container: InputContainer, stream: VideoStream) -> list[_Timestamp]:
    """Return the timestamps of the last second, and of a few frames before it; none if the container cannot seek.

    The last frame in a file need not be the last one shown, and a seek to the end may find only that frame.
    """
    try:
        container.seek(END_TICKS, stream=stream)
        rough = max((stamp.start for stamp in _timestamps(container, stream)), default=0.0)
        container.seek(to_ticks(stream, rough - 1), stream=stream)
        return [*_timestamps(container, stream)]
    except av.FFmpegError:
        return []


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration that a file states for its video; 0 if it states only that of its longest stream."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _check_complete(stated: float, found: float, tolerance: float) -> None:
    if stated - found > max(tolerance, MIN_MISSING * stated):
        raise BrokenFile(f"is cut short: {found:.1f} of its {stated:.1f} seconds are left")


def to_ticks(stream: VideoStream, seconds: float) -> int:
    """Return a time in the stream's time base, rounded down."""
    return math.floor(seconds / float(stream.time_base or 1))
