"""What training sees of an item: a window of a video in real time, or a picture, in the size of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.footage import DECODE_ERRORS
from kineograph.media.seek import BrokenFile, VideoTiming, decode_frames_at, read_timing
from kineograph.media.shards import FileSlice, open_range

Rng = np.random.Generator
Crop = Callable[[Rng], tuple[float, float]]

IMAGE_FPS = 1.0  # frames a second of a picture, which has none
SAME = 1.002  # ratio of rates that count as one: 24 and 23.976
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
GAP = 3.0  # how many times too large a picture is averaged to before it is resampled: no eye sees a difference
ANIMATED = frozenset({"WEBP", "PNG"})  # formats whose further pictures are further frames


class Clip(NamedTuple):
    """Frames to train on, how many of them are a second, and what they show."""

    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float
    caption: str


def center_crop(rng: Rng) -> tuple[float, float]:
    """A crop that takes alike from both sides."""
    return 0.5, 0.5


def random_crop(rng: Rng) -> tuple[float, float]:
    """A random crop: what share of what is cut off goes at the left, and at the top."""
    across, down = rng.uniform(size=2)
    return float(across), float(down)


def load_clip(
    item: DatasetItem,
    rng: Rng,
    *,
    num_frames: int,
    height: int,
    width: int,
    rates: Sequence[float] | None = None,
    crop: Crop = center_crop,
) -> Clip:
    """A random window of an item: `num_frames` frames of a video, or its one frame of a picture.

    Args:
        rates: frames a second to choose from at random. Those above the video's own rate do not count, nor those at
            which the window is longer than the video; None: the video's own rate, on average.
        crop: which part is kept of what is wider or higher than the window, once scaled to cover it.

    Returns the same for the same state of `rng`. Raises BrokenFile, which names the item and says why.
    """
    at = crop(rng)
    try:
        with open_range(item.place) as part:
            _check(item, part, num_frames)
            if item.kind == "image":
                return Clip(crop_resize(decode_image(part), height, width, at)[None], IMAGE_FPS, item.caption)
            shown = read_timing(part)
            times, fps = _window(shown, rng, num_frames, rates)
            develop = _developer(shown.pixel, height, width, at)
            return Clip(np.stack(decode_frames_at(part, times, shown, develop)), fps, item.caption)
    except BrokenFile as error:
        raise BrokenFile(f"{item.name} {error}") from error
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise BrokenFile(f"{item.name} cannot be decoded ({type(error).__name__}: {error})") from error


def crop_resize(
    image: Image.Image, height: int, width: int, at: tuple[float, float], pixel: float = 1.0, share: float = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in this size: scaled to cover it, antialiased, and cut where it is wider or higher.

    at: what share of what is cut off goes at the left, and at the top. pixel: its pixels' width over their height.
    share: of the sides of what would be seen, that much is; the rest is cut off too.
    """
    shape = width / height / pixel
    wide, tall = share * min(image.width, image.height * shape), share * min(image.height, image.width / shape)
    left, top = int((image.width - wide) * at[0]), int((image.height - tall) * at[1])
    box = (left, top, min(left + wide, image.width), min(top + tall, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=GAP))


def _check(item: DatasetItem, part: FileSlice, num_frames: int) -> None:
    if part.size == 0:
        raise BrokenFile("is empty")
    if item.kind == "image" and num_frames > 1:
        raise BrokenFile(f"is a picture, which has one frame, and {num_frames} are asked for")


def _window(film: VideoTiming, rng: Rng, num_frames: int, rates: Sequence[float] | None) -> tuple[list[float], float]:
    """When the frames of a random window are shown, and how many are a second."""
    slots = round((film.end - film.first) * film.rate)
    slow = [min(rate, film.rate) for rate in rates or [film.rate] if rate <= SAME * film.rate]
    if not slow:
        raise BrokenFile(f"has {film.rate:.3g} frames a second, and at least {min(rates or [0]):g} are asked for")
    # A window may begin at any frame after which it ends within half a frame of the last one
    starts = {rate: math.ceil(slots - 0.5 - (num_frames - 1) * film.rate / rate) for rate in slow}
    usable = [rate for rate in slow if starts[rate] > 0]
    if not usable:
        raise BrokenFile(
            f"is too short: it has {slots} frames at {film.rate:.3g} a second, and {num_frames} are asked for at "
            f"{max(slow):.3g} a second or fewer"
        )
    fps = usable[int(rng.integers(len(usable)))]
    start = film.first + int(rng.integers(starts[fps])) / film.rate
    return [start + number / fps for number in range(num_frames)], fps


def _developer(pixel: float, height: int, width: int, at: tuple[float, float]) -> Callable[[av.VideoFrame], np.ndarray]:
    def develop(frame: av.VideoFrame) -> np.ndarray:
        quarters = round(frame.rotation / 90)
        upright = Image.fromarray(np.rot90(_pixels(frame), quarters))
        return crop_resize(upright, height, width, at, 1 / pixel if quarters % 2 else pixel)

    return develop


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    if any(component.is_alpha for component in frame.format.components):
        return np.asarray(_on_white(Image.fromarray(frame.to_ndarray(format="rgba"))))
    return frame.to_ndarray(format="rgb24")


def decode_image(part: FileSlice) -> Image.Image:
    """A picture as a viewer shows it: turned as its camera says, on white, in RGB."""
    with Image.open(BytesIO(part.read()), formats=FORMATS) as image:
        if getattr(image, "n_frames", 1) > 1 and image.format in ANIMATED:
            raise BrokenFile(f"is an animated {image.format}: make it a gif or an mp4")
        turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return _on_white(turned.convert("RGBA")) if turned.has_transparency_data else turned.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
