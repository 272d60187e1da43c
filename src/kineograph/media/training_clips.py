"""Training clips: a random window of a video in real time, or an image, at the training size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.frames import DECODE_ERRORS, BrokenFile, decode_problem, square_size, to_rgb
from kineograph.media.images import crop_resize, decode_image
from kineograph.media.seek import VideoTiming, decode_frames_at, read_timing
from kineograph.media.shards import FileSlice, open_range

Rng = np.random.Generator
CropPosition = Callable[[Rng], tuple[float, float]]
"""Generator -> shares of what is cropped away that lie at the left and at the top."""

IMAGE_FPS = 1.0  # frame rate of an image, which has none
SAME_RATE = 1.002  # ratio of frame rates that count as equal: 24 and 23.976


class Clip(NamedTuple):
    """Training frames, their rate and their caption."""

    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float
    caption: str


def center_crop(rng: Rng) -> tuple[float, float]:
    """Return the position of a crop at the center."""
    return 0.5, 0.5


def random_crop(rng: Rng) -> tuple[float, float]:
    """Return the position of a random crop."""
    left, top = rng.uniform(size=2)
    return float(left), float(top)


def load_clip(
    item: DatasetItem,
    rng: Rng,
    *,
    num_frames: int,
    height: int,
    width: int,
    rates: Sequence[float] | None = None,
    crop: CropPosition = center_crop,
) -> Clip:
    """Load a random window of `num_frames` frames of a video, or the one frame of an image.

    Args:
        rates: frame rates to choose from at random. Rates above the video's own do not count, nor those at which the
            window is longer than the video. None for the video's own average rate.
        crop: position of the crop, once the frames are scaled to cover the size.

    Returns the same clip for the same state of `rng`. Raises BrokenFile, which names the item and the reason.
    """
    position = crop(rng)
    try:
        with open_range(item.file_range) as file:
            _check_item(item, file, num_frames)
            if item.kind == "image":
                return Clip(crop_resize(decode_image(file), height, width, position)[None], IMAGE_FPS, item.caption)
            timing = read_timing(file)
            times, fps = _random_window(timing, rng, num_frames, rates)
            convert = _converter(timing.pixel_aspect, height, width, position)
            return Clip(np.stack(decode_frames_at(file, times, timing, convert)), fps, item.caption)
    except BrokenFile as error:
        raise BrokenFile(f"{item.name} {error}") from error
    except DECODE_ERRORS as error:
        raise BrokenFile(f"{item.name} cannot be decoded ({decode_problem(error)})") from error


def _check_item(item: DatasetItem, file: FileSlice, num_frames: int) -> None:
    if file.size == 0:
        raise BrokenFile("is empty")
    if item.kind == "image" and num_frames > 1:
        raise BrokenFile(f"is an image, which has one frame, and {num_frames} are asked for")


def _random_window(
    timing: VideoTiming, rng: Rng, num_frames: int, rates: Sequence[float] | None
) -> tuple[list[float], float]:
    """Return the times of the frames of a random window, and its frame rate."""
    count = round((timing.end - timing.start) * timing.fps)
    candidates = [min(rate, timing.fps) for rate in rates or [timing.fps] if rate <= SAME_RATE * timing.fps]
    if not candidates:
        raise BrokenFile(f"has {timing.fps:.3g} frames a second, and at least {min(rates or [0]):g} are asked for")
    # A window may begin at any frame after which it ends within half a frame of the last one
    starts = {rate: math.ceil(count - 0.5 - (num_frames - 1) * timing.fps / rate) for rate in candidates}
    usable = [rate for rate in candidates if starts[rate] > 0]
    if not usable:
        raise BrokenFile(
            f"is too short: it has {count} frames at {timing.fps:.3g} a second, and {num_frames} are asked for at "
            f"{max(candidates):.3g} a second or fewer"
        )
    fps = usable[int(rng.integers(len(usable)))]
    start = timing.start + int(rng.integers(starts[fps])) / timing.fps
    return [start + number / fps for number in range(num_frames)], fps


def _converter(
    pixel_aspect: float, height: int, width: int, position: tuple[float, float]
) -> Callable[[av.VideoFrame], np.ndarray]:
    """Return the function that crops and resizes a decoded frame."""

    def convert(frame: av.VideoFrame) -> np.ndarray:
        shown = Image.fromarray(to_rgb(frame, square_size(frame, pixel_aspect)))
        return crop_resize(shown, height, width, position)

    return convert
