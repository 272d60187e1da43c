"""How the camera moves, and what its movement does to latents.

A `Motion` says where the camera looks at each frame. What it sees there of frame 0 is found twice: the clean
estimate is interpolated, and the noise is moved so that it stays white noise of unit variance, which
interpolation would not leave it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.noise import shared

FirstFrame = Float[Tensor, "b 1 c h w"]
OtherFrames = Float[Tensor, "b n c h w"]
Warp = Callable[[FirstFrame, FirstFrame], tuple[OtherFrames, OtherFrames]]
"""(clean estimate, noise) of frame 0 -> both as the frames after it see them"""

View = Float[Tensor, "2 3"]
"""(x, y, 1) in a frame -> (x, y) in frame 0, in latent cells from the top left corner"""

REFERENCE_SIZE = 512  # pixels: strengths are relative to a frame of this width and height, whatever its real size
SUBCELLS = 8  # a cell of noise is moved in 8 x 8 parts: the finest step is one pixel of an 8-fold autoencoder
MAX_ZOOM = 4  # beyond it, either way, a frame shows too little of frame 0 to be made of it


@dataclass(frozen=True)
class Motion:
    """A movement of the camera. Positions are in pixels of a 512-pixel frame, so no size changes what one sees.

    pan   (x, y) a frame, right and down; the content goes the other way (Text2Video-Zero's direction, times strength)
    zoom  magnification a frame, above 1 to come nearer
    turn  degrees a frame; the camera turns clockwise, the content counter-clockwise
    path  places of the camera at even times, the first in frame 0 and the last in the last frame
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    turn: float = 0.0
    path: tuple[tuple[float, float], ...] = ()


def parse(text: str) -> Motion:
    """The motion that a text such as "pan:12,12" describes.

    Also "zoom:1.02", "rotate:3", "path:0,0;40,0;40,40", "none", and several at once: "pan:12,0+zoom:1.02".
    Raises InputError for anything else.
    """
    motion = Motion()
    for part in re.split(r"\+(?=[a-z])", text.strip().lower()):
        kind, _, numbers = part.partition(":")
        try:
            motion = replace(motion, **_READ[kind.strip()](numbers))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{text!r} is not a motion: expected pan:X,Y, zoom:FACTOR, rotate:DEGREES, path:X,Y;X,Y;... or none, "
                f"joined by + if there are several, as in pan:12,0+zoom:1.02 (could not read {part!r})."
            ) from error
    return motion


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text}")
    return value


def _zoom(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise ValueError(f"expected a magnification above 0, got {text}")
    return value


def _point(text: str) -> tuple[float, float]:
    x, y = text.split(",")
    return _number(x), _number(y)


def _path(text: str) -> tuple[tuple[float, float], ...]:
    first, second, *rest = (_point(point) for point in text.split(";"))
    return (first, second, *rest)


def _none(text: str) -> dict[str, float]:
    if text:
        raise ValueError(f"expected nothing after none, got {text}")
    return {}


_READ: dict[str, Callable[[str], dict]] = {
    "pan": lambda text: {"pan": _point(text)},
    "zoom": lambda text: {"zoom": _zoom(text)},
    "rotate": lambda text: {"turn": _number(text)},
    "path": lambda text: {"path": _path(text)},
    "none": _none,
}


def camera_offset(motion: Motion, frame: int, frames: int) -> tuple[float, float]:
    """How far the camera has moved by this frame of a video of `frames`, as parts of the frame's width and height."""
    x, y = motion.pan[0] * frame, motion.pan[1] * frame
    if motion.path:
        places = np.array(motion.path)
        time = frame / max(frames - 1, 1) * (len(places) - 1)
        here = [np.interp(time, range(len(places)), places[:, axis]) - places[0, axis] for axis in (0, 1)]
        x, y = x + float(here[0]), y + float(here[1])
    return x / REFERENCE_SIZE, y / REFERENCE_SIZE


def view_matrix(motion: Motion, frame: int, frames: int, size: Sequence[int]) -> View:
    """Where in frame 0 the camera looks at this frame, for latents of `size` (height, width)."""
    height, width = size
    x, y = camera_offset(motion, frame, frames)
    angle, scale = math.radians(motion.turn * frame), motion.zoom**-frame
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    turned = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    moved = torch.tensor([x * width, y * height], dtype=torch.float64)
    return torch.cat([turned, (centre - turned @ centre + moved)[:, None]], dim=1)


def frame_warp(motion: Motion, *, frames: int, seed: int) -> Warp:
    """The warp that shows frame 0 to frames 1 to `frames - 1` of a video, as Text2Video-Zero wants it.

    `seed` is the video's own (of its first sample, where there are several).
    Raises InputError when the zooming goes too far to leave anything of frame 0.
    """
    farthest = motion.zoom ** (frames - 1)
    if not 1 / MAX_ZOOM <= farthest <= MAX_ZOOM:
        raise InputError(
            f"A zoom of {motion.zoom:g} a frame magnifies {farthest:.3g} times over {frames} frames; expected at most "
            f"{MAX_ZOOM} times, or 1/{MAX_ZOOM}. Choose a zoom nearer to 1, or fewer frames."
        )

    def carry(x0: FirstFrame, noise: FirstFrame) -> tuple[OtherFrames, OtherFrames]:
        views = [view_matrix(motion, frame, frames, x0.shape[-2:]) for frame in range(1, frames)]
        return warp_latents(x0, views), warp_noise(noise, views, seed)

    return carry


def warp_latents(x0: FirstFrame, views: Sequence[View]) -> OtherFrames:
    """Frame 0 as each view shows it: bicubic, mirrored at its edges; by whole cells exactly a shift."""
    frame = x0[:, 0].cpu().double()  # in double precision a whole cell stays whole
    return torch.stack([_sample(frame, at) for at in views], dim=1).to(x0)


def _sample(frame: Float[Tensor, "b c h w"], at: View) -> Float[Tensor, "b c h w"]:
    height, width = frame.shape[-2:]
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    grid = 2 * _apply(at, x, y) / torch.tensor([width, height]) - 1
    return F.grid_sample(
        frame, grid.expand(len(frame), -1, -1, -1), mode="bicubic", padding_mode="reflection", align_corners=False
    )


def warp_noise(noise: FirstFrame, views: Sequence[View], seed: int) -> OtherFrames:
    """The noise of frame 0 as each view shows it: white, of unit variance; by whole cells exactly a shift.

    Each cell is split into 8 x 8 parts, white noise whose sum it is;
    each part goes, whole, to the one cell where the view shows it; and each cell sums what came, over its norm.
    So no two cells share a part, except where the edge mirrors frame 0.
    Source: the noise transport of Chang et al. 2024, "How I Warped Your Noise", for affine maps.
    """
    b, _, c, h, w = noise.shape
    detail = shared(seed, [0], (b, c, SUBCELLS * h, SUBCELLS * w))[:, 0]
    parts = _split(noise[:, 0].cpu().double(), detail.double())
    return torch.stack([_gather(parts, at, (h, w)) for at in views], dim=1).to(noise)


def _split(noise: Float[Tensor, "b c h w"], detail: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
    """White noise on the finer grid that adds up, over `PARTS`, to `noise` in every cell."""
    missing = noise / SUBCELLS - F.avg_pool2d(detail, SUBCELLS)
    return detail + missing.repeat_interleave(SUBCELLS, -2).repeat_interleave(SUBCELLS, -1)


def _gather(parts: Float[Tensor, "b c H W"], at: View, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Each cell's sum of the parts that land in it, at unit variance: a part that comes m times weighs m."""
    cells, count = size[0] * size[1], parts[0, 0].numel()
    cell, part = _landings(at, size)
    pairs, times = torch.unique(cell * count + part, return_counts=True)
    cell, part = pairs // count, pairs % count
    came = parts.new_zeros(*parts.shape[:2], cells).index_add_(2, cell, parts.flatten(2)[..., part] * times)
    norm = parts.new_zeros(cells).index_add_(0, cell, times.double() ** 2).sqrt()
    return (came / norm).unflatten(2, size)


def _landings(at: View, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """For each part of the mirrored plane that the view shows: the cell it lands in, and which part it is."""
    height, width = size
    corners = SUBCELLS * _apply(at, torch.tensor([0, width, 0, width]), torch.tensor([0, 0, height, height]))
    left, top = corners.amin(0).floor().int().tolist()
    right, bottom = corners.amax(0).ceil().int().tolist()
    column, row = torch.meshgrid(torch.arange(left, right), torch.arange(top, bottom), indexing="xy")
    x, y = _apply(_inverse(at), (column + 0.5) / SUBCELLS, (row + 0.5) / SUBCELLS).floor().long().unbind(-1)
    shown = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    part = _mirrored(row, SUBCELLS * height) * SUBCELLS * width + _mirrored(column, SUBCELLS * width)
    return (y * width + x)[shown], part[shown]


def _mirrored(index: Tensor, count: int) -> Tensor:
    """... 2 1 0 0 1 2 ... n-1 n-1 n-2 ...: the edge lies between a cell and its mirror image."""
    folded = index % (2 * count)
    return torch.minimum(folded, 2 * count - 1 - folded)


def _apply(at: View, x: Tensor, y: Tensor) -> Float[Tensor, "*shape 2"]:
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).to(at) @ at.T


def _inverse(at: View) -> View:
    back = torch.linalg.inv(at[:, :2])
    return torch.cat([back, -back @ at[:, 2:]], dim=1)
