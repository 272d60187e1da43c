"""Frames of a video by the time they are shown: sought near, decoded one after another, and no more than needed.

A container's seek is a hint: some land behind the time asked for, some cannot seek at all. What counts is the time
that each decoded frame carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video import VideoStream

from kineograph.errors import InputError
from kineograph.media.shards import FileSlice

HEAD = 32  # packets that the first frame is among: frames are stored in another order than they are shown
FAR = 1 << 50  # ticks, beyond the end of any video
LEADS = (0.0, 2.0, 10.0)  # seconds before the window to seek to, one tried after another
SLOWEST, FASTEST = 1, 120  # frames a second: whoever states others is not believed without counting
HALF_FRAME = 0.501  # of a frame: a little more, so that halves are rounded alike
LEAST_LOST = 0.1  # of a video: what says that it was cut short


class VideoTiming(NamedTuple):
    """When a video is shown, from its first frame to the end of its last, in seconds, and its frames a second.

    pixel: how much wider than high a pixel is shown.
    """

    first: float
    end: float
    rate: float
    pixel: float


class _Stamp(NamedTuple):
    shown: float
    until: float


class BrokenFile(InputError):
    """A file that cannot be decoded, or does not hold what was asked of it; the text names it and says why."""


def read_timing(part: FileSlice) -> VideoTiming:
    """When a video is shown, without decoding it: its beginning and its end are read, and little between them.

    Raises BrokenFile when it holds no frames or is cut short, and what PyAV raises.
    """
    with open_video_stream(part) as (container, stream):
        head = [*islice(_stamps(container, stream), HEAD)]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        stated, pixel = _stated_seconds(container, stream), float(stream.sample_aspect_ratio or 1)
        tail = _tail(container, stream)
    if not head:
        raise BrokenFile("holds no frames")
    if not tail or not SLOWEST <= rate <= FASTEST:
        with open_video_stream(part) as (container, stream):
            tail = [*_stamps(container, stream)]
    first, last = min(stamp.shown for stamp in head), max(stamp.shown for stamp in tail)
    if not SLOWEST <= rate <= FASTEST:
        rate = (len(tail) - 1) / (last - first) if last > first else 1.0
    _check_whole(stated + min(first, 0), max(last + 1 / rate, *(stamp.until for stamp in tail)), 2 / rate)
    return VideoTiming(first, last + 1 / rate, rate, pixel)


def decode_frames_at(
    part: FileSlice, times: Sequence[float], film: VideoTiming, develop: Callable[[av.VideoFrame], np.ndarray]
) -> list[np.ndarray]:
    """What `develop` makes of the frame on show at each of these rising times, in seconds.

    A time counts half a frame later, so that times rounded by a container do not show a frame twice.
    Raises BrokenFile where the video breaks off, and what PyAV raises.
    """
    start = times[0] + HALF_FRAME / film.rate
    for lead in LEADS:
        with open_video_stream(part) as (container, stream):
            first, others = _sought(container, stream, start - lead)
            if first is not None and frame_time(first) <= start:
                return _shown(chain([first], others), times, film.rate, develop)
    with open_video_stream(part) as (container, stream):
        return _shown(container.decode(stream), times, film.rate, develop)


def _sought(
    container: InputContainer, stream: VideoStream, start: float
) -> tuple[av.VideoFrame | None, Iterator[av.VideoFrame]]:
    """The frame that a container finds near `start`, and those after it; None where it finds none."""
    try:
        container.seek(to_ticks(stream, start), stream=stream)
        frames = container.decode(stream)
        return next(frames, None), frames
    except av.FFmpegError:
        return None, iter(())


def _shown(
    frames: Iterator[av.VideoFrame], times: Sequence[float], rate: float, develop: Callable[[av.VideoFrame], np.ndarray]
) -> list[np.ndarray]:
    shown: list[np.ndarray] = []
    before: av.VideoFrame | None = None
    for frame in frames:
        over = sum(time < frame_time(frame) - HALF_FRAME / rate for time in times[len(shown) :])
        if over:
            shown += [develop(_whole(before, times[len(shown)]))] * over
        if len(shown) == len(times):
            return shown
        before = frame
    last = _whole(before, times[len(shown)])
    if times[-1] > frame_time(last) + 1.5 / rate:
        raise BrokenFile(f"cannot be decoded beyond {frame_time(last):.2f} s")
    return shown + [develop(last)] * (len(times) - len(shown))


def _whole(frame: av.VideoFrame | None, time: float) -> av.VideoFrame:
    if frame is None or frame.is_corrupt:
        raise BrokenFile(f"has no whole frame to show at {time:.2f} s")
    return frame


@contextmanager
def open_video_stream(part: FileSlice) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The video's main stream: not the cover picture of its sound."""
    part.seek(0)
    with av.open(part, "r", metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise BrokenFile("holds no picture, only sound or data")
        stream.codec_context.thread_count = 1  # clips are cut side by side; threads within one would only wait
        yield container, stream


def _stamps(container: InputContainer, stream: VideoStream) -> Iterator[_Stamp]:
    """When each frame from here on is shown, in seconds, in the order of the file."""
    unit = float(stream.time_base or 1)
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and not packet.is_corrupt:
            yield _Stamp(stamp * unit, (stamp + (packet.duration or 0)) * unit)


def _tail(container: InputContainer, stream: VideoStream) -> list[_Stamp]:
    """The last second and what a container adds before it; nothing where it cannot be sought in.

    The last frame of a file is not the last that is shown, and some seeks end up at it.
    """
    try:
        container.seek(FAR, stream=stream)
        rough = max((stamp.shown for stamp in _stamps(container, stream)), default=0.0)
        container.seek(to_ticks(stream, rough - 1), stream=stream)
        return [*_stamps(container, stream)]
    except av.FFmpegError:
        return []


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long a file says its video is; 0 where it only speaks of the longest of its streams."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _check_whole(stated: float, until: float, some: float) -> None:
    if stated - until > max(some, LEAST_LOST * stated):
        raise BrokenFile(f"is cut short: {until:.1f} of its {stated:.1f} seconds are left")


def to_ticks(stream: VideoStream, seconds: float) -> int:
    return math.floor(seconds / float(stream.time_base or 1))


def frame_time(frame: av.VideoFrame) -> float:
    stamp = frame.dts if frame.pts is None else frame.pts
    if stamp is None or frame.time_base is None:
        raise BrokenFile("does not say when its frames are shown")
    return stamp * float(frame.time_base)
