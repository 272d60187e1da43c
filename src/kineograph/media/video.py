"""The class Video: frames, their rate, and the settings that generated them."""

from __future__ import annotations

import base64
import html
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from typing_extensions import Unpack

from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.media import codecs
from kineograph.media.codecs import Sound, open_frames, read_sound, select_frames
from kineograph.media.files import refuse_existing, replace_atomically, write_new
from kineograph.media.frames import DECODE_ERRORS, BrokenFile, check_held
from kineograph.media.images import center_crop_resize
from kineograph.media.mapped_frames import pixel_digest
from kineograph.media.metadata import (
    FileTags,
    SaveOptions,
    VideoMetadata,
    existing_path,
    read_video_metadata,
    tags_of_generated,
    unreadable_file,
)
from kineograph.options import validate

if TYPE_CHECKING:  # reading a file does not import torch
    import torch

WRITERS: Mapping[str, Callable[[Path, np.ndarray, float, FileTags, Sound | None], None]] = {
    ".mp4": codecs.write_mp4,
    ".webm": codecs.write_webm,
    ".gif": codecs.write_gif,
    ".webp": codecs.write_webp,
    ".png": codecs.write_png,
    "": codecs.write_pngs,
}
SHEET_FRAMES = 16


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """Frames, their rate, and the settings that generated them.

    Attributes:
        frames: uint8 array [f h w 3], RGB; that of a long generated video is mapped to a temporary file, see
            `media.mapped_frames`.
        fps: frames per second.
        settings: of its generation, as JSON values; every saved file records them.
        sound: of the video that was edited or that guided it, which .mp4 and .webm keep.

    Raises:
        InputError: frames of another type or shape, no frames, or a rate that is not above 0.
    """

    frames: np.ndarray
    fps: float = 4
    settings: Mapping[str, Any] = field(default_factory=dict)
    sound: Sound | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise InputError(f"frames are a uint8 array [f h w 3] of at least one frame, not {dtype} {list(shape)}")
        if not 0 < self.fps < math.inf:
            raise InputError(f"fps is above 0, not {self.fps}")

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        prompt = f": {self.settings['prompt']!r}" if self.settings.get("prompt") else ""
        return f"Video of {count} frames, {width} x {height}, {self.fps:g} a second{prompt}"

    @classmethod
    def from_tensor(cls, frames: torch.Tensor, fps: float = 4) -> Video:
        """Return the video of a tensor [f 3 h w] with values in 0..1."""
        return cls((frames.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy(), fps)

    @property
    def pil(self) -> list[PIL.Image.Image]:
        """The frames as Pillow images."""
        return [PIL.Image.fromarray(frame) for frame in self.frames]

    @property
    def tensor(self) -> torch.Tensor:
        """The frames as a float32 tensor [f 3 h w] in 0..1."""
        import torch

        return torch.from_numpy(self.frames.copy()).permute(0, 3, 1, 2).float() / 255

    @property
    def digest(self) -> str:
        """SHA-256 of the frames: equal if and only if every pixel is."""
        return pixel_digest(self.frames)

    def save(self, path: str | Path, *, fps: float | None = None, **options: Unpack[SaveOptions]) -> Path:
        """Write a new file: .mp4, .webm, .gif, .webp, .png (one frame) or, without a suffix, a folder of pngs.

        fps: frames per second of the file, in place of the video's own; the frames are the same, without sound.
        overwrite: replace an existing file, which stays as it was until the new one is complete.
        audio: keep the video's sound, if it has any, in .mp4 and .webm; or drop it.
        metadata: record the settings, and that the video is generated (`kineograph.media.metadata`).

        The write is atomic.

        Raises:
            FileExistsError: the path exists, and is not to be overwritten.
            InputError: another suffix, a rate that is not above 0, or no encoder for .webm.
            OSError: the folder cannot be written, or the disk is full.
        """
        path, chosen = expand_user(path), validate(options, SaveOptions)
        check, write = (check_replaceable, replace_atomically) if chosen["overwrite"] else (check_new, write_new)
        check(path, len(self))
        video = self if fps is None else replace(self, fps=fps)
        sound = self.sound if chosen["audio"] == "keep" and video.fps == self.fps else None
        tags = tags_of_generated(video._metadata()) if chosen["metadata"] else FileTags()
        with write(path) as temporary:
            WRITERS[path.suffix.lower()](temporary, self.frames, video.fps, tags, sound)
        return path

    def overwrite(self, path: str | Path, *, fps: float | None = None) -> Path:
        """Write a file as `save` does with `overwrite=True`."""
        return self.save(path, fps=fps, overwrite=True)

    def contact_sheet(self, *, columns: int | None = None) -> PIL.Image.Image:
        """Return an image of up to 16 frames, evenly spread over the video, row by row."""
        count = min(len(self), SHEET_FRAMES)
        chosen = self.frames[np.linspace(0, len(self) - 1, count).round().astype(int)]
        columns = columns or math.ceil(math.sqrt(count))
        height, width = chosen.shape[1:3]
        gap = max(1, width // 64)
        rows = math.ceil(count / columns)
        sheet = PIL.Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
        for number, frame in enumerate(chosen):
            row, column = divmod(number, columns)
            sheet.paste(PIL.Image.fromarray(frame), (column * (width + gap), row * (height + gap)))
        return sheet

    def _metadata(self) -> VideoMetadata:
        count, height, width, _ = self.frames.shape
        return VideoMetadata(count, height, width, self.fps, dict(self.settings))

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            encoded = base64.b64encode(self.save(Path(folder) / "video.mp4").read_bytes()).decode()
        caption = html.escape(str(self.settings.get("prompt", "")))
        return (
            f'<figure><video controls loop autoplay muted playsinline width="{max(256, self.frames.shape[2])}" '
            f'src="data:video/mp4;base64,{encoded}"></video><figcaption>{caption}</figcaption></figure>'
        )


def check_new(path: Path, num_frames: int) -> None:
    """Raise what `Video.save` would for a video of so many frames, without writing one."""
    _check_suffix(path, num_frames)
    refuse_existing(path, "replace it (--overwrite; in Python, overwrite=True)")


def check_replaceable(path: Path, num_frames: int) -> None:
    """Raise what `Video.overwrite` would for a video of so many frames, without writing one."""
    _check_suffix(path, num_frames)
    if path.is_dir() and not all(file.match("frame_*.png") for file in path.iterdir()):
        raise FileExistsError(
            f"{path} is a folder with other files in it, which are not overwritten: name a new folder"
        )


def _check_suffix(path: Path, num_frames: int) -> None:
    if path.suffix.lower() not in WRITERS:
        raise InputError(
            f"{path.name}: files end in .mp4, .webm, .gif or .webp; a name without a suffix makes a folder of pngs"
        )
    if path.suffix.lower() == ".png" and num_frames > 1:
        raise InputError(
            f"{path.name}: a png holds one image and this video has {num_frames}; "
            f"'{path.with_suffix('')}' makes a folder of pngs, '{path.with_suffix('.mp4')}' a video"
        )


def sound_or_none(read: Callable[[], Sound | None], path: str | Path) -> Sound | None:
    """Return the sound of a file; None where there is none, or, with an InputWarning, it cannot be read."""
    try:
        return read()
    except (BrokenFile, *DECODE_ERRORS) as error:
        text = f"the sound of {path} cannot be read, and the result has none: {error}"
        warnings.warn(text, InputWarning, stacklevel=3)
        return None


def open_video(path: str | Path) -> Video:
    """Open the video in a file or in a folder of pngs, with its settings if it records any.

    Raises:
        InputError: there is no such file, or it is damaged, truncated, or not a video.
    """
    metadata = read_video_metadata(path)
    path = existing_path(path)
    try:
        file = open_frames(path, metadata)
        indices, reading = select_frames(file), file.read()
        first = [*islice(reading, 1)]
        check_held(path, max(len(indices), len(file.times)), *first[0].shape[:2] if first else (0, 0))
        frames = [*first, *reading]
        sound = sound_or_none(lambda: read_sound(path, len(indices) / file.fps), path)
    except BrokenFile as error:
        raise InputError(f"{path} {error}") from error
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise unreadable_file(path, error) from error
    if len(frames) <= indices[-1]:
        raise InputError(f"{path} is cut short: {len(frames)} of its {len(file.times)} frames are left")
    height, width, _ = frames[0].shape
    shown = np.stack([center_crop_resize(frames[index], height, width) for index in indices])
    return Video(shown, file.fps, metadata.settings if metadata else {}, sound)
