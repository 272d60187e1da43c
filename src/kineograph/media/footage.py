"""Input videos, read frame by frame: a long video never has to be in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from kineograph.errors import InputError
from kineograph.media import codecs
from kineograph.media.codecs import DECODE_ERRORS
from kineograph.media.images import center_crop_resize
from kineograph.media.metadata import (
    PILLOW_SUFFIXES,
    existing_path,
    frame_files,
    read_video_metadata,
    unreadable_file,
)

TIME_TOLERANCE = 1e-3  # seconds: Matroska rounds timestamps to milliseconds
MAX_DISTORTION = 1.1  # ratio of two aspect ratios, above which a video has another shape


@dataclass(frozen=True)
class Footage:
    """Frames of a video file or of a folder of pngs, to be read in order.

    indices: of the frames in the file. fps: of these frames. height, width: in pixels.
    """

    path: Path
    indices: tuple[int, ...]
    fps: float
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.indices)

    def frames(self, height: int, width: int) -> Iterator[np.ndarray]:
        """Yield each frame, scaled to cover this size and cropped at the center. uint8 [h w 3].

        Raises InputError where the file breaks off, naming the frame.
        """
        remaining = iter(self.indices)
        wanted, read = next(remaining, None), 0
        try:
            for read, frame in enumerate(_stream(self.path)):
                while wanted == read:
                    yield center_crop_resize(frame, height, width)
                    wanted = next(remaining, None)
                if wanted is None:
                    return
        except InputError:
            raise
        except DECODE_ERRORS as error:
            raise InputError(f"{self.path} cannot be read beyond frame {read}: {error}") from error
        raise InputError(f"{self.path} breaks off after frame {read}, and frame {wanted} is wanted")

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or of the files of the folder."""
        combined = hashlib.sha256()
        for file in frame_files(self.path) if self.path.is_dir() else [self.path]:
            with file.open("rb") as opened:
                combined.update(hashlib.file_digest(opened, "sha256").digest())
        return combined.hexdigest()


def open_footage(path: str | Path, *, num_frames: int | None = None, fps: float | None = None) -> Footage:
    """Open the first `num_frames` frames of a video, resampled to `fps`; by default all, at the video's own rate.

    Raises InputError when it is not a video, holds no frames, is damaged, or is shorter than that.
    """
    path = existing_path(path)
    try:
        rate, times = _frame_times(path)
        first = next(_stream(path), None)
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise unreadable_file(path, error) from error
    if first is None or not times:
        raise InputError(f"{path} holds no frames: give a video with at least one")
    indices = list(range(len(times))) if fps is None else _resample(times, rate, fps)
    if num_frames is not None and num_frames > len(indices):
        raise InputError(
            f"{path} has {len(indices)} frames{f' at {fps:g} a second' if fps else ''}, and {num_frames} are asked "
            f"for: ask for {len(indices)} or fewer{', for more a second' if fps else ''}, or give a longer video"
        )
    return Footage(path, tuple(indices[:num_frames]), fps or rate, *first.shape[:2])


def _resample(times: list[float], rate: float, fps: float) -> list[int]:
    """Return the index of the frame that is shown at every multiple of 1 / fps seconds."""
    count = max(1, int((times[-1] + 1 / rate + TIME_TOLERANCE) * fps))
    return (np.searchsorted(times, np.arange(count) / fps + TIME_TOLERANCE, side="right") - 1).tolist()


def _frame_times(path: Path) -> tuple[float, list[float]]:
    """Return the frame rate, and when each frame is shown, in seconds."""
    metadata = read_video_metadata(path)
    if path.is_dir():
        fps = metadata.fps if metadata else 1.0
        return fps, [number / fps for number in range(len(frame_files(path)))]
    if path.suffix.lower() in PILLOW_SUFFIXES:
        frames, fps = codecs.read_animation(path, metadata)
        return fps, [number / fps for number in range(len(frames))]
    fps, times = codecs.read_frame_times(path)
    if metadata and len(times) < metadata.frames:
        raise InputError(f"{path} is cut short: {len(times)} of its {metadata.frames} frames are left")
    return (metadata.fps if metadata else fps), times


def _stream(path: Path) -> Iterator[np.ndarray]:
    metadata = read_video_metadata(path)
    if path.is_dir():
        yield from (codecs.read_animation(file, None)[0][0] for file in frame_files(path))
    elif path.suffix.lower() in PILLOW_SUFFIXES:
        yield from codecs.read_animation(path, metadata)[0]
    else:
        height, width = (metadata.height, metadata.width) if metadata else (None, None)  # ours may be padded
        yield from (frame[:height, :width] for frame in codecs.stream_frames(path))


def output_size(footage: Footage, height: int | None, width: int | None, *, side: int, factor: int) -> tuple[int, int]:
    """Return the height and width of a video generated from footage: as requested, else of the footage's aspect ratio.

    Args:
        side: longer side of the result when neither height nor width is requested.
        factor: height and width are rounded to multiples of it.

    Raises InputError when the requested size has another aspect ratio.
    """
    aspect = footage.width / footage.height
    default_height = side / max(aspect, 1)
    out_height = height or (_round_to(width / aspect, factor) if width else _round_to(default_height, factor))
    out_width = width or _round_to((height or default_height) * aspect, factor)
    if not 1 / MAX_DISTORTION < out_width / out_height / aspect < MAX_DISTORTION and height and width:
        raise InputError(
            f"{footage.path} is {footage.width} x {footage.height}, and a video of {width} x {height} is asked for, "
            f"which is another shape: leave height or width out, or cut the video first"
        )
    return out_height, out_width


def _round_to(length: float, factor: int) -> int:
    return max(1, round(length / factor)) * factor


def stack_in_chunks(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield frames stacked in chunks of at most `size`: uint8 [n h w 3]."""
    while chunk := list(islice(frames, size)):
        yield np.stack(chunk)
