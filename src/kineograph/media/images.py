"""A picture from a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from kineograph.errors import InputError

WHITE = (255, 255, 255, 255)


class InputImage(NamedTuple):
    """A picture as it was read: uint8 [h w 3], and the SHA-256 of its file."""

    path: str
    pixels: UInt8[np.ndarray, "h w 3"]
    digest: str


def read_image(path: str | Path) -> InputImage:
    """The picture, upright as its EXIF says, what is transparent on white.

    Raises InputError when nothing is there, or no picture, or one that is damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"there is no picture {path}: expected a file such as .png, .jpg or .webp")
    try:
        with Image.open(file) as opened:
            whole = ImageOps.exif_transpose(opened).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no picture that can be read, or is damaged: {error}") from error
    pixels = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, WHITE), whole).convert("RGB"))
    return InputImage(str(path), pixels, hashlib.sha256(file.read_bytes()).hexdigest())
