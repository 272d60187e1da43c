"""Images: reading, decoding, cropping, resizing, pan and zoom. Pixels are uint8 [h w 3], RGB."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from kineograph.errors import InputError
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import FileSlice

READ_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
TRAINING_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
ANIMATED_FORMATS = frozenset({"WEBP", "PNG"})  # formats whose further images are further frames
REDUCING_GAP = 3.0  # larger images are averaged to this multiple of the size first; the difference is not visible
MIN_SHIFT = 0.1  # share of the image that some edge of the window covers in a pan or zoom: less is hardly visible
MAX_TRIES = 100


class InputImage(NamedTuple):
    """An image that a request names, with the SHA-256 of its file."""

    path: str
    pixels: UInt8[np.ndarray, "h w 3"]
    digest: str


def read_image(path: str | Path) -> InputImage:
    """Read an image, rotated as its EXIF orientation says, transparent pixels on white.

    Raises InputError when the file is missing, damaged or not an image.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"there is no image {path}: expected a file such as .png, .jpg or .webp")
    try:
        with Image.open(file) as opened:
            image = flatten_alpha(ImageOps.exif_transpose(opened))
    except READ_ERRORS as error:
        raise InputError(f"{path} is not an image that can be read, or is damaged: {error}") from error
    return InputImage(str(path), np.asarray(image), hashlib.sha256(file.read_bytes()).hexdigest())


def decode_image(file: FileSlice) -> Image.Image:
    """Decode an image of a data set as RGB, rotated as its EXIF orientation says, transparent pixels on white.

    Raises BrokenFile for an animation, and what Pillow raises for a damaged file.
    """
    with Image.open(BytesIO(file.read()), formats=TRAINING_FORMATS) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format in ANIMATED_FORMATS:
            raise BrokenFile(f"is an animated {image.format}: make it a gif or an mp4")
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return flatten_alpha(upright) if upright.has_transparency_data else upright.convert("RGB")


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Return an image as RGB, its transparent pixels on white."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def center_crop_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a frame to cover a size (Lanczos), and crop it at the center."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))


def crop_resize(
    image: Image.Image,
    height: int,
    width: int,
    position: tuple[float, float],
    pixel_aspect: float = 1.0,
    share: float = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Crop an image to the aspect ratio of a size, and resize the crop to it (Lanczos, antialiased).

    Args:
        position: shares of what is cropped away that lie at the left and at the top: (0.5, 0.5) crops at the center.
        pixel_aspect: width over height of the image's pixels.
        share: side of the crop, as a share of the largest crop.
    """
    aspect = width / height / pixel_aspect
    crop_width = share * min(image.width, image.height * aspect)
    crop_height = share * min(image.height, image.width / aspect)
    left, top = int((image.width - crop_width) * position[0]), int((image.height - crop_height) * position[1])
    box = (left, top, min(left + crop_width, image.width), min(top + crop_height, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


class Window(NamedTuple):
    """A rectangle of an image, in its pixels; edges may lie between two."""

    left: float
    top: float
    right: float
    bottom: float


def pan_and_zoom(
    image: Image.Image, first: Window, last: Window, num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "f h w 3"]:
    """Return frames of a window whose edges move evenly from `first` to `last`; antialiased, at subpixel precision."""
    progress = np.linspace(0.0, 1.0, num_frames)[:, None]
    windows = (1 - progress) * np.array(first) + progress * np.array(last)
    return np.stack([_resize_window(image, window, height, width) for window in windows])


def freeze_frame(
    image: Image.Image, window: Window, num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "f h w 3"]:
    """Return equal frames of a window."""
    return np.repeat(_resize_window(image, window, height, width)[None], num_frames, axis=0)


def random_windows(
    rng: np.random.Generator, image: Image.Image, aspect: float, min_scale: float
) -> tuple[Window, Window]:
    """Return random first and last windows of a pan and zoom. Pairs that hardly differ are rejected.

    Args:
        aspect: width over height of both windows.
        min_scale: least size, as a share of the largest window.
    """
    for _ in range(MAX_TRIES):
        first, last = (random_window(rng, image, aspect, min_scale) for _ in range(2))
        if np.abs(np.subtract(first, last)).max() >= MIN_SHIFT * max(image.size):
            break
    return first, last


def random_window(rng: np.random.Generator, image: Image.Image, aspect: float, min_scale: float) -> Window:
    """Return a window of random size and position."""
    largest = largest_window(image, aspect)
    scale = rng.uniform(min_scale, 1.0)
    width, height = scale * (largest.right - largest.left), scale * (largest.bottom - largest.top)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return Window(left, top, left + width, top + height)


def largest_window(image: Image.Image, aspect: float) -> Window:
    """Return the largest window of an aspect ratio, at the center."""
    width, height = min(image.width, image.height * aspect), min(image.height, image.width / aspect)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return Window(left, top, left + width, top + height)


def _resize_window(
    image: Image.Image, window: np.ndarray | Window, height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    left, top, right, bottom = map(float, np.clip(window, 0, [image.width, image.height] * 2))  # rounding errors
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom)))


def import_opencv(purpose: str, extra: str = "control") -> Any:
    """Return the module `cv2`.

    Args:
        purpose: what needs it, as the beginning of the error message.
        extra: the extra of this package that installs it.

    Raises InputError when OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"{purpose} needs OpenCV, which is not installed: pip install 'kineograph[{extra}]'"
        ) from error
    return cv2
