"""A video to work from, frame by frame: a long one never has to be in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from kineograph.errors import InputError
from kineograph.media import codecs
from kineograph.media.metadata import PILLOW_SUFFIXES, existing_path, frame_files, read_video_metadata, unreadable_file

DECODE_ERRORS = (av.FFmpegError, OSError, SyntaxError, EOFError, ValueError, LookupError)  # what PyAV and Pillow raise
NEAR = 1e-3  # seconds: Matroska rounds when a frame is shown to milliseconds
DISTORTION = 1.1  # ratio of aspect ratios above which a video is of another shape


@dataclass(frozen=True)
class Footage:
    """Frames of a file or of a folder of pngs, to be read in order.

    chosen: numbers of the frames in the file; fps: how many of them are shown a second; height, width: in pixels.
    """

    path: Path
    chosen: tuple[int, ...]
    fps: float
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.chosen)

    def frames(self, height: int, width: int) -> Iterator[np.ndarray]:
        """Each frame in this size: scaled to cover it and cut alike at both sides. uint8 [h w 3].

        Raises InputError where the file breaks off, naming the frame.
        """
        due = iter(self.chosen)
        wanted, read = next(due, None), 0
        try:
            for read, frame in enumerate(_stream(self.path)):
                while wanted == read:
                    yield center_crop_resize(frame, height, width)
                    wanted = next(due, None)
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
        whole = hashlib.sha256()
        for file in frame_files(self.path) if self.path.is_dir() else [self.path]:
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
        return whole.hexdigest()


def open_footage(path: str | Path, *, num_frames: int | None = None, fps: float | None = None) -> Footage:
    """The first `num_frames` frames of a video, at `fps` frames a second of its own time; all, at its own rate, unless
    given.

    Raises InputError when it is no video, holds no frames, is damaged, or is shorter than that.
    """
    path = existing_path(path)
    try:
        rate, times = _times(path)
        first = next(_stream(path), None)
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise unreadable_file(path, error) from error
    if first is None or not times:
        raise InputError(f"{path} holds no frames: give a video with at least one")
    chosen = list(range(len(times))) if fps is None else _at_rate(times, rate, fps)
    if num_frames is not None and num_frames > len(chosen):
        raise InputError(
            f"{path} has {len(chosen)} frames{f' at {fps:g} a second' if fps else ''}, and {num_frames} are asked "
            f"for: ask for {len(chosen)} or fewer{', for more a second' if fps else ''}, or give a longer video"
        )
    return Footage(path, tuple(chosen[:num_frames]), fps or rate, *first.shape[:2])


def _at_rate(times: list[float], rate: float, fps: float) -> list[int]:
    """The frame that is on show at each 1 / fps seconds."""
    count = max(1, int((times[-1] + 1 / rate + NEAR) * fps))
    return (np.searchsorted(times, np.arange(count) / fps + NEAR, side="right") - 1).tolist()


def _times(path: Path) -> tuple[float, list[float]]:
    """Frames a second, and when each is shown."""
    label = read_video_metadata(path)
    if path.is_dir():
        rate = label.fps if label else 1.0
        return rate, [number / rate for number in range(len(frame_files(path)))]
    if path.suffix.lower() in PILLOW_SUFFIXES:
        frames, rate = codecs.read_animation(path, label)
        return rate, [number / rate for number in range(len(frames))]
    rate, times = codecs.read_frame_times(path)
    if label and len(times) < label.frames:
        raise InputError(f"{path} is cut short: {len(times)} of its {label.frames} frames are left")
    return (label.fps if label else rate), times


def _stream(path: Path) -> Iterator[np.ndarray]:
    label = read_video_metadata(path)
    if path.is_dir():
        yield from (codecs.read_animation(file, None)[0][0] for file in frame_files(path))
    elif path.suffix.lower() in PILLOW_SUFFIXES:
        yield from codecs.read_animation(path, label)[0]
    else:
        shape = (label.height, label.width) if label else (None, None)  # ours may be padded to even sides
        yield from (frame[: shape[0], : shape[1]] for frame in codecs.stream_frames(path))


def center_crop_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame in this size: scaled to cover it, and cut alike at both sides where it is wider or higher."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))


def output_size(footage: Footage, height: int | None, width: int | None, *, side: int, factor: int) -> tuple[int, int]:
    """Height and width of a video made from this one: as asked, else of its shape, with its longer side `side`.

    factor: what both are multiples of. Raises InputError when the size asked for is of another shape.
    """
    shape = footage.width / footage.height
    longer = side / max(shape, 1)  # the height, when nothing is asked
    tall = height or (_whole(width / shape, factor) if width else _whole(longer, factor))
    wide = width or _whole((height or longer) * shape, factor)
    if not 1 / DISTORTION < wide / tall / shape < DISTORTION and height and width:
        raise InputError(
            f"{footage.path} is {footage.width} x {footage.height}, and a video of {width} x {height} is asked for, "
            f"which is another shape: leave height or width out, or cut the video first"
        )
    return tall, wide


def _whole(length: float, factor: int) -> int:
    return max(1, round(length / factor)) * factor


def stack_in_chunks(frames: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Frames, at most `size` at a time: uint8 [n h w 3]."""
    while chunk := list(islice(frames, size)):
        yield np.stack(chunk)
