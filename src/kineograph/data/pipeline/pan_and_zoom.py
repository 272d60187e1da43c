"""Still pictures made into clips: a window that wanders over the picture and grows or shrinks, or one that rests.

After VidRD (arXiv 2309.03549), section on data: random pan and zoom at different positions and speeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Frames = UInt8[np.ndarray, "f h w 3"]
LEAST_WAY = 0.1  # of the picture, that some corner of the window covers from first to last: less is hardly seen
TRIES = 100


class Window(NamedTuple):
    """A part of a picture, in its pixels; edges may lie between two."""

    left: float
    top: float
    right: float
    bottom: float


def panned(picture: Image.Image, first: Window, last: Window, count: int, height: int, width: int) -> Frames:
    """Frames of this size through a window whose edges move evenly from first to last; antialiased, to the subpixel."""
    way = np.linspace(0.0, 1.0, count)[:, None]
    windows = (1 - way) * np.array(first) + way * np.array(last)
    return np.stack([_through(picture, window, height, width) for window in windows])


def frozen(picture: Image.Image, window: Window, count: int, height: int, width: int) -> Frames:
    """The same frame, so many times."""
    return np.repeat(_through(picture, window, height, width)[None], count, axis=0)


def wandering(rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float) -> tuple[Window, Window]:
    """Where a window begins and ends, at random: how large, where, and so how fast and in which direction.

    shape: its width over its height. smallest: its least size, as a part of the largest that fits. Of those that
    hardly move, another is drawn.
    """
    for _ in range(TRIES):
        first, last = (somewhere(rng, picture, shape, smallest) for _ in range(2))
        if np.abs(np.subtract(first, last)).max() >= LEAST_WAY * max(picture.size):
            break
    return first, last


def somewhere(rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float) -> Window:
    """A window of random size and place."""
    whole = centred(picture, shape)
    scale = rng.uniform(smallest, 1.0)
    wide, tall = scale * (whole.right - whole.left), scale * (whole.bottom - whole.top)
    left, top = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - tall)
    return Window(left, top, left + wide, top + tall)


def centred(picture: Image.Image, shape: float) -> Window:
    """The largest window of this shape, in the middle."""
    wide, tall = min(picture.width, picture.height * shape), min(picture.height, picture.width / shape)
    left, top = (picture.width - wide) / 2, (picture.height - tall) / 2
    return Window(left, top, left + wide, top + tall)


def size_within(picture: Image.Image, smallest: float, shorter_side: int | None) -> tuple[int, int]:
    """Height and width of clips of a picture's own shape, even, for which the smallest window is not enlarged."""
    most = smallest * min(picture.size)
    scale = min(most, shorter_side or most) / min(picture.size)
    width, height = (max(2, 2 * int(side * scale / 2)) for side in picture.size)
    return height, width


def _through(picture: Image.Image, window: np.ndarray | Window, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    left, top, right, bottom = map(float, np.clip(window, 0, [picture.width, picture.height] * 2))  # rounding errors
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom)))
