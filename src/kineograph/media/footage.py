"""Input videos: files, read frame by frame, so that a long video never has to be in memory, and frames in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.errors import InputError, expand_user, is_present, memory_label
from kineograph.media.codecs import FrameFile, Sound, open_frames, read_sound, select_frames
from kineograph.media.frames import DECODE_ERRORS, BrokenFile, decode_problem
from kineograph.media.images import (
    center_crop_resize,
    is_tensor,
    shorten,
    to_pixels,
    unexpected,
)
from kineograph.media.mapped_frames import iterate_frames
from kineograph.media.metadata import existing_path, frame_files, read_video_metadata, unreadable_file
from kineograph.media.video import Video, sound_or_none

VIDEO_SOURCES = (
    "a path, a kineograph.Video, a list of PIL images or of arrays, an array [f h w 3] or a tensor [f 3 h w]"
)
FRAME_LIST = "a list, of which each is a PIL image, an array [h w 3] or a tensor [3 h w]"
MEMORY_FPS = 8.0  # of frames in memory, which have no rate
MAX_DISTORTION = 1.1  # ratio of two aspect ratios, above which a video has another shape


@dataclass(frozen=True)
class Footage:
    """Frames of a video file, of a folder of pngs or in memory, to be read in order.

    path            of the file, or a label of frames in memory, see `errors.memory_label`
    indices         of the frames among those that `read` yields
    fps             of these frames
    height, width   in pixels
    read            yields all frames: uint8 [h w 3]
    compute_digest  see `digest`
    load_sound      returns the sound, of so many seconds at most; None where there is none
    """

    path: str | Path
    indices: tuple[int, ...]
    fps: float
    height: int
    width: int
    read: Callable[[], Iterator[np.ndarray]]
    compute_digest: Callable[[], str]
    load_sound: Callable[[float], Sound | None] = lambda seconds: None

    def __len__(self) -> int:
        return len(self.indices)

    def frames(self, height: int, width: int) -> Iterator[np.ndarray]:
        """Yield each frame, scaled to cover this size and cropped at the center. uint8 [h w 3].

        Raises InputError where the file breaks off, naming the frame.
        """
        remaining = iter(self.indices)
        wanted, read = next(remaining, None), 0
        try:
            for read, frame in enumerate(self.read()):
                while wanted == read:
                    yield center_crop_resize(frame, height, width)
                    wanted = next(remaining, None)
                if wanted is None:
                    return
        except (BrokenFile, *DECODE_ERRORS) as error:
            problem = str(error) if isinstance(error, BrokenFile) else decode_problem(error)
            raise InputError(f"{self.path} cannot be read beyond frame {read}: {problem}") from error
        raise InputError(f"{self.path} breaks off after frame {read}, and frame {wanted} is wanted")

    def sound(self) -> Sound | None:
        """Return the sound of these frames; None where there is none, or, with an InputWarning, it cannot be read."""
        return sound_or_none(lambda: self.load_sound(len(self) / self.fps), self.path)

    @property
    def digest(self) -> str:
        """SHA-256 of the file or of the folder's files; in memory, of the pixels of all frames, as `Video.digest`."""
        return self.compute_digest()


def open_footage(
    source: object, *, num_frames: int | None = None, fps: float | None = None, option: str = "video"
) -> Footage:
    """Open the first `num_frames` frames of a video, resampled to `fps`; by default all, at the video's own rate.

    Args:
        source: a path, a `Video`, or frames without a rate (8 a second unless `fps` is given): a list of PIL images or
            of arrays [h w 3], an array [f h w 3] or a tensor [f 3 h w]; of uint8 or of floats from 0 to 1.
        option: its name in messages.

    Raises InputError when it is not a video, holds no frames, is damaged, or is shorter than that.
    """
    if isinstance(source, str | Path):
        return _open_file(source, num_frames, fps)
    if isinstance(source, Video):
        return _open_memory(source, num_frames, fps)
    return _open_memory(Video(_stack_frames(source, option), fps or MEMORY_FPS), num_frames, None)


def _open_memory(video: Video, num_frames: int | None, fps: float | None) -> Footage:
    count, height, width, _ = video.frames.shape
    digest = video.digest
    path = memory_label("video", f"{count} frames of {width} x {height}", digest)
    times = [number / video.fps for number in range(count)]
    file = FrameFile(times, video.fps, count / video.fps, lambda: iterate_frames(video.frames))
    indices = _select(file, path, num_frames, fps)
    return Footage(
        path, indices, fps or video.fps, height, width, file.read, lambda: digest, lambda seconds: video.sound
    )


def _stack_frames(source: Any, option: str) -> np.ndarray:
    """Return frames without a rate as an array: uint8 [f h w 3]."""
    is_stack = isinstance(source, np.ndarray) or is_tensor(source)
    if not is_stack and not isinstance(source, list | tuple):
        raise unexpected(option, VIDEO_SOURCES, source)
    if is_stack and source.ndim == 5 and len(source) == 1:  # a batch of one video
        source = source[0]
    if is_stack and source.ndim != 4:
        raise unexpected(option, VIDEO_SOURCES, source)
    if not len(source):
        raise InputError(f"`{option}` holds no frames: expected at least one")
    frames = [to_pixels(each, option, VIDEO_SOURCES if is_stack else FRAME_LIST) for each in source]
    sizes = list(dict.fromkeys(f"{frame.shape[1]} x {frame.shape[0]}" for frame in frames))
    if len(sizes) > 1:
        raise InputError(f"the frames of `{option}` are of different sizes ({', '.join(sizes[:4])}): expected one size")
    return np.stack(frames)


def _open_file(path: str | Path, num_frames: int | None, fps: float | None) -> Footage:
    if not is_present(expand_user(path)):
        raise InputError(f"there is no file {shorten(path)}")
    path = existing_path(path)
    try:
        file = open_frames(path, read_video_metadata(path))
        first = next(file.read(), None)
    except BrokenFile as error:
        raise InputError(f"{path} {error}") from error
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise unreadable_file(path, error) from error
    if first is None:
        raise InputError(f"{path} holds no frames: give a video with at least one")
    indices = _select(file, path, num_frames, fps)
    height, width, _ = first.shape
    digest, sound = partial(_file_digest, path), partial(read_sound, path)
    return Footage(path, indices, fps or file.fps, height, width, file.read, digest, sound)


def _file_digest(path: Path) -> str:
    combined = hashlib.sha256()
    for file in frame_files(path) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            combined.update(hashlib.file_digest(opened, "sha256").digest())
    return combined.hexdigest()


def _select(file: FrameFile, path: str | Path, num_frames: int | None, fps: float | None) -> tuple[int, ...]:
    """Return the indices of the frames to read."""
    try:
        indices = select_frames(file, fps)
    except BrokenFile as error:
        raise InputError(f"{path} {error}") from error
    if num_frames is not None and num_frames > len(indices):
        raise InputError(
            f"{path} has {len(indices)} frames{f' at {fps:g} a second' if fps else ''}, and {num_frames} are asked "
            f"for: ask for {len(indices)} or fewer{', for more a second' if fps else ''}, or give a longer video"
        )
    return tuple(indices[:num_frames])


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
