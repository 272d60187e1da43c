"""What a file says about itself: one line of JSON where every player leaves it alone.

mp4: the `comment` tag; gif: its comment; webp: EXIF ImageDescription; png: a text chunk `Comment`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import av
import PIL.Image

from kineograph.errors import InputError

IMAGE_DESCRIPTION = 0x010E
PILLOW_SUFFIXES = frozenset({".gif", ".webp", ".png", ".jpg", ".jpeg"})


class VideoMetadata(NamedTuple):
    """What is written into a file: its shape, which containers round or pad, and the settings that made it."""

    frames: int
    height: int
    width: int
    fps: float
    settings: dict

    def text(self) -> str:
        """The label as ASCII JSON, which every container carries unharmed."""
        return json.dumps({"made_with": f"kineograph {version('kineograph')}", **self._asdict()})


def read_video_metadata(path: str | Path) -> VideoMetadata | None:
    """The label of a file or a folder of pictures; None when it carries none of ours."""
    path = existing_path(path)
    if path.is_dir():
        path = frame_files(path)[0]
    text = _picture_text(path) if path.suffix.lower() in PILLOW_SUFFIXES else _movie_text(path)
    return _parsed(text)


def read_settings(path: str | Path) -> dict:
    """The settings that made a file, as `Video.settings` had them.

    Raises:
        InputError: there is no such file, it cannot be read, or it carries no settings.
    """
    label = read_video_metadata(path)
    if label is None or not label.settings:
        raise InputError(
            f"{path} carries no settings: Kineograph did not make it, or a program that passed it on dropped them"
        )
    return label.settings


def settings_id(settings: Mapping[str, Any]) -> str:
    """Twelve letters that stand for these settings: what was made or measured with the same ones is the same."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def existing_path(path: str | Path) -> Path:
    """The path, if something is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"there is no file {path}")
    return path


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder written by `Video.save`, in order."""
    files = sorted(folder.glob("frame_*.png"))
    if not files:
        raise InputError(f"{folder} is a folder without frames: frame_0000.png and so on were expected")
    return files


def unreadable_file(path: Path, error: Exception) -> InputError:
    """The error for a file that is not what its name says."""
    return InputError(f"cannot read {path}: it is damaged, or no picture or video ({type(error).__name__})")


def _picture_text(path: Path) -> str:
    try:
        with PIL.Image.open(path) as picture:
            text = (
                picture.info.get("Comment") or picture.info.get("comment") or picture.getexif().get(IMAGE_DESCRIPTION)
            )
    except (OSError, SyntaxError) as error:
        raise unreadable_file(path, error) from error
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text or ""


def _movie_text(path: Path) -> str:
    try:
        with av.open(path) as container:
            return container.metadata.get("comment", "")
    except av.FFmpegError as error:
        raise unreadable_file(path, error) from error


def _parsed(text: str) -> VideoMetadata | None:
    try:
        fields = json.loads(text)
        return VideoMetadata(**{name: fields[name] for name in VideoMetadata._fields})
    except (ValueError, KeyError, TypeError):  # somebody else's comment
        return None
