"""Images: reading, decoding, cropping, resizing, pan and zoom. Pixels are uint8 [h w 3], RGB."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from kineograph.errors import InputError, expand_user, is_present, memory_label
from kineograph.media.frames import IMAGE_ERRORS, UNPACKED_PIXELS, BrokenFile, check_held
from kineograph.media.mapped_frames import pixel_digest
from kineograph.media.shards import FileSlice

if TYPE_CHECKING:  # reading a file does not import torch
    import torch

IMAGE_SOURCES = "a path, a PIL image, an array [h w 3], [h w 4] or [h w], or a tensor [3 h w]"
PIXEL_VALUES = "uint8 from 0 to 255, or floats from 0 to 1"
ROUNDING = 1e-3  # floats from 0 to 1 may exceed them by this much
# Formats of Pillow that are read. It would run Ghostscript for EPS, whatever the file's name ends in.
IMAGE_FORMATS = (
    "PNG", "GIF", "WEBP", "JPEG", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "PSD", "QOI"
)  # fmt: skip
TRAINING_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
ANIMATED_FORMATS = frozenset({"WEBP", "PNG"})  # formats whose further images are further frames
PIXELS_PER_BYTE = 1000  # of an image above `UNPACKED_PIXELS`: even one of a single colour has more bytes
WEBP_ANIMATION, WEBP_ALPHA = 0x02, 0x10  # flags in byte 20
REDUCING_GAP = 3.0  # larger images are averaged to this multiple of the size first; the difference is not visible
MIN_SHIFT = 0.1  # share of the image that some edge of the window covers in a pan or zoom: less is hardly visible
MAX_TRIES = 100


class InputImage(NamedTuple):
    """The image of a request.

    path: as it was given, or a label of an image in memory, see `memory_label`. digest: SHA-256 of the file, or of the
    pixels of an image in memory.
    """

    path: str
    pixels: UInt8[np.ndarray, "h w 3"]
    digest: str


def read_image(source: object) -> InputImage:
    """Read an image file, or convert an image in memory, see `to_pixels`.

    Raises InputError when the file is missing, damaged or not an image, and for another object.
    """
    if isinstance(source, str | Path):
        return _read_image_file(source)
    pixels = to_pixels(source, "image", IMAGE_SOURCES)
    height, width, _ = pixels.shape
    digest = pixel_digest(pixels)
    return InputImage(memory_label("image", f"{width} x {height}", digest), pixels, digest)


def _read_image_file(path: str | Path) -> InputImage:
    file = expand_user(path)
    if not is_present(file) or not file.is_file():
        raise InputError(f"there is no image {shorten(path)}: expected a file such as .png, .jpg or .webp")
    try:
        content = file.read_bytes()
        with open_image(content) as opened:
            most = UNPACKED_PIXELS + PIXELS_PER_BYTE * len(content)
            check_held(file, 1, opened.height, opened.width, most=most)
            image = to_rgb_image(opened)
    except InputError:
        raise
    except IMAGE_ERRORS as error:
        raise InputError(f"{path} is not an image that can be read, or is damaged: {error}") from error
    return InputImage(str(path), np.asarray(image), hashlib.sha256(content).hexdigest())


def to_pixels(image: object, option: str, expected: str) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image in memory to RGB, rotated as its EXIF orientation says, transparent pixels on white.

    Args:
        image: a PIL image, an array [h w 3], [h w 4] or [h w] (grey), or a tensor [3 h w] or [1 3 h w]; of uint8 or of
            floats from 0 to 1.
        option, expected: for messages: its name, and the kinds of objects that it may be.

    Raises InputError for other objects, shapes, types and values.
    """
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb_image(image))
    array = image
    if is_tensor(image):
        single = image[0] if image.ndim == 4 and len(image) == 1 else image
        array = tensor_to_array(single.movedim(0, -1)) if single.ndim == 3 and single.shape[0] == 3 else None
    channels = array.shape[2:] if isinstance(array, np.ndarray) and array.ndim in (2, 3) and array.size else (0,)
    if not isinstance(array, np.ndarray) or channels not in ((), (3,), (4,)):
        raise unexpected(option, expected, image)
    values = _to_uint8(array, option)
    if channels == (3,):
        return values
    return np.asarray(to_rgb_image(Image.fromarray(values)))


def _to_uint8(array: np.ndarray, option: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"the values of `{option}` are {PIXEL_VALUES}, not {array.dtype}")
    least, most = float(array.min()), float(array.max())
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):  # NaN too
        raise InputError(f"the values of `{option}` are {PIXEL_VALUES}; these floats are from {least:g} to {most:g}")
    return (array.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return True for a tensor, without importing torch."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def tensor_to_array(values: torch.Tensor) -> np.ndarray:
    """Return the values of a tensor on any device, floats as float32, which NumPy has."""
    values = values.detach().cpu()
    array: np.ndarray = (values.float() if values.is_floating_point() else values).numpy()
    return array


def unexpected(option: str, expected: str, value: object) -> InputError:
    """Return the error for an object in memory that is no image or no video, in one line."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        kind = "an array" if isinstance(value, np.ndarray) else "a tensor"
        came = f"{kind} [{' '.join(map(str, value.shape))}] of {str(value.dtype).removeprefix('torch.')}"
    elif isinstance(value, Image.Image):
        came = f"one PIL image of {value.width} x {value.height}"
    else:
        came = f"an object of type {type(value).__name__}"
    return InputError(f"`{option}` is {expected}, not {came}")


def shorten(path: object) -> str:
    """Return a path for a message of one line: texts that are no path may be long."""
    return textwrap.shorten(str(path), 200, placeholder=" ...") or repr(path)


def decode_image(file: FileSlice) -> Image.Image:
    """Decode an image of a data set as RGB, rotated as its EXIF orientation says, transparent pixels on white.

    Raises BrokenFile for an animation, and what Pillow raises for a damaged file.
    """
    with open_image(file.read(), TRAINING_FORMATS) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format in ANIMATED_FORMATS:
            raise BrokenFile(f"is an animated {image.format}: make it a gif or an mp4")
        return to_rgb_image(image)


def open_image(content: bytes, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """Open an image of these formats of Pillow, if its build has them. Raises what Pillow raises.

    The canvas of an animated WebP is transparent where no frame lies, and its header may say that no frame has alpha:
    then Pillow would show black.
    """
    if len(content) > 20 and content[8:16] == b"WEBPVP8X" and content[20] & WEBP_ANIMATION:
        content = content[:20] + bytes([content[20] | WEBP_ALPHA]) + content[21:]
    Image.init()
    try:
        return Image.open(BytesIO(content), formats=[each for each in formats if each in Image.OPEN])
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise UnidentifiedImageError("it is of no known format") from error


def to_rgb_image(image: Image.Image) -> Image.Image:
    """Return an image as a viewer shows it: upright by its EXIF orientation, in sRGB, transparent pixels on white."""
    profile = image.info.get("icc_profile")
    image = _to_8_bits(ImageOps.exif_transpose(image))
    if image.mode == "P":  # a profile is of colours, not of their numbers
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    colours = _to_srgb(image, profile) if profile else image
    if not image.has_transparency_data:
        return colours.convert("RGB")
    alpha = image.convert("RGBA").getchannel("A")
    return Image.composite(colours.convert("RGB"), Image.new("RGB", image.size, "white"), alpha)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits, and of floats from 0 to 1, both of which Pillow would clip at 255."""
    if image.mode == "F":
        values = np.asarray(image)
        return Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8))
    if image.mode.startswith("I") and (image.mode != "I" or np.asarray(image).max() > 255):
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)) if image.mode == "I" else image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an image by its ICC profile; a damaged one, or one of other channels, does not count."""
    opaque = image.convert(image.mode.removesuffix("A")) if image.mode in ("RGBA", "LA") else image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(opaque, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or opaque
    except (ImageCms.PyCMSError, OSError):
        return opaque


def center_crop_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a frame to cover a size (Lanczos), and crop it at the center."""
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))


def crop_resize(
    image: Image.Image, height: int, width: int, position: tuple[float, float], share: float = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Crop an image to the aspect ratio of a size, and resize the crop to it (Lanczos, antialiased).

    Args:
        position: shares of what is cropped away that lie at the left and at the top: (0.5, 0.5) crops at the center.
        share: side of the crop, as a share of the largest crop.
    """
    aspect = width / height
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
