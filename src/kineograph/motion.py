"""Camera motion: its description, and the warps of latents and noise that it causes.

A `Motion` gives the camera's position in each frame. To warp frame 0 to another frame's view, its clean estimate is
interpolated, and its noise is transported so that it stays white with unit variance, as interpolated noise would not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.errors import InputError, shown
from kineograph.noise import Seeds, shared

FirstFrame = Float[Tensor, "b 1 c h w"]
OtherFrames = Float[Tensor, "b n c h w"]
Warp = Callable[[FirstFrame, FirstFrame], tuple[OtherFrames, OtherFrames]]  # (x0, noise) of frame 0 -> of later frames
View = Float[Tensor, "2 3"]  # (x, y, 1) in a frame -> (x, y) in frame 0, in latent cells from the top left corner

REFERENCE_SIZE = 512  # pixels: distances are relative to a frame of this width and height, whatever its real size
CACHED_LANDINGS = 32  # frames: at 512 x 512 pixels the landings of one take 2 MB
SUBCELLS = 8  # a latent cell's noise is moved in 8 x 8 parts, each one pixel of a VAE with scale factor 8
MAX_NUMBER = 1e4  # pixels, degrees or magnification for each frame
MAX_ZOOM = 4  # total magnification in or out; beyond it a frame shares too little with frame 0


@dataclass(frozen=True)
class FrameWarp:
    """A `Warp` whose two parts can be called alone: that of clean latents, or a mask, and that of noise."""

    latents: Callable[[FirstFrame], OtherFrames]
    noise: Callable[[FirstFrame], OtherFrames]

    def __call__(self, x0: FirstFrame, noise: FirstFrame) -> tuple[OtherFrames, OtherFrames]:
        return self.latents(x0), self.noise(noise)


class Landings(NamedTuple):
    """The parts of frame 0's cells that move to each cell of another frame.

    counts  number of parts of each cell
    parts   their indices, those of the first cell first
    times   how often each moves there
    norm    of each cell: of its sum of parts, for unit variance
    """

    counts: Int[Tensor, " cells"]
    parts: Int[Tensor, " n"]
    times: Int[Tensor, " n"]
    norm: Float[Tensor, " cells"]


@dataclass(frozen=True)
class Motion:
    """A camera motion. Distances are in pixels of a 512-pixel frame, so the motion is the same at any size.

    pan       (x, y) per frame, right and down; the content moves the other way (Text2Video-Zero's direction times
              strength)
    zoom      magnification per frame; above 1 the camera moves closer
    rotation  degrees per frame; the camera rotates clockwise, the content counter-clockwise
    path      positions of the camera at even times, the first in frame 0 and the last in the last frame
    """

    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    rotation: float = 0.0
    path: tuple[tuple[float, float], ...] = ()


def parse(text: str) -> Motion:
    """Parse "pan:12,12", "zoom:1.02", "rotate:3", "path:0,0;40,0;40,40", "none", or several: "pan:12,0+zoom:1.02".

    Raises InputError for anything else.
    """
    motion = Motion()
    for part in re.split(r"\+(?=[a-z])", text.strip().lower()):
        kind, _, numbers = part.partition(":")
        try:
            motion = replace(motion, **_READ[kind.strip()](numbers))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{shown(text)} is not a motion: expected pan:X,Y, zoom:FACTOR, rotate:DEGREES, path:X,Y;X,Y;... or "
                f"none, joined by + if there are several, as in pan:12,0+zoom:1.02 (could not read {shown(part)})."
            ) from error
    return motion


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) <= MAX_NUMBER:
        raise InputError(f"expected a number from -{MAX_NUMBER:g} to {MAX_NUMBER:g}, got {text}")
    return value


def _zoom(text: str) -> float:
    if (value := _number(text)) <= 0:
        raise InputError(f"expected a magnification above 0, got {text}")
    return value


def _point(text: str) -> tuple[float, float]:
    x, y = text.split(",")
    return _number(x), _number(y)


def _path(text: str) -> tuple[tuple[float, float], ...]:
    first, second, *rest = (_point(point) for point in text.split(";"))
    return (first, second, *rest)


def _none(text: str) -> dict[str, float]:
    if text:
        raise InputError(f"expected nothing after none, got {text}")
    return {}


_READ: dict[str, Callable[[str], dict]] = {
    "pan": lambda text: {"pan": _point(text)},
    "zoom": lambda text: {"zoom": _zoom(text)},
    "rotate": lambda text: {"rotation": _number(text)},
    "path": lambda text: {"path": _path(text)},
    "none": _none,
}


def camera_offset(motion: Motion, frame: int, frames: int) -> tuple[float, float]:
    """Return the camera's displacement in a frame of a video of `frames`, as fractions of width and height."""
    x, y = motion.pan[0] * frame, motion.pan[1] * frame
    if motion.path:
        positions = np.array(motion.path)
        time = frame / max(frames - 1, 1) * (len(positions) - 1)
        moved = [np.interp(time, range(len(positions)), positions[:, axis]) - positions[0, axis] for axis in (0, 1)]
        x, y = x + float(moved[0]), y + float(moved[1])
    return x / REFERENCE_SIZE, y / REFERENCE_SIZE


def view_matrix(motion: Motion, frame: int, frames: int, size: Sequence[int]) -> View:
    """Return the affine map from this frame to frame 0, for latents of `size` (height, width)."""
    height, width = size
    x, y = camera_offset(motion, frame, frames)
    angle, scale = math.radians(motion.rotation * frame), motion.zoom**-frame
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    moved = torch.tensor([x * width, y * height], dtype=torch.float64)
    return torch.cat([linear, (centre - linear @ centre + moved)[:, None]], dim=1)


def mirrored_share(motion: Motion, frames: int) -> float:
    """Return the share of the last frame that lies outside of frame 0, where its mirror image is."""
    cells = torch.arange(REFERENCE_SIZE // SUBCELLS) + 0.5
    x, y = torch.meshgrid(cells, cells, indexing="xy")
    points = _apply(view_matrix(motion, frames - 1, frames, 2 * (len(cells),)), x, y)
    return float(((points < 0) | (points > len(cells))).any(-1).double().mean())


def frame_warp(motion: Motion, *, frames: int, seed: Seeds) -> FrameWarp:
    """Return the function that warps frame 0 to frames 1, ..., `frames - 1`, for Text2Video-Zero.

    Raises InputError when the total zoom is above `MAX_ZOOM`, in or out.
    """
    if abs(math.log(motion.zoom)) * (frames - 1) > math.log(MAX_ZOOM) + 1e-9:
        raise InputError(
            f"A zoom of {motion.zoom:g} per frame magnifies more than {MAX_ZOOM} times, or 1/{MAX_ZOOM}, over {frames} "
            "frames. Choose a zoom nearer to 1, or fewer frames."
        )

    @cache
    def views(size: tuple[int, int]) -> list[View]:
        return [view_matrix(motion, frame, frames, size) for frame in range(1, frames)]

    @lru_cache(maxsize=CACHED_LANDINGS)
    def landings(number: int, size: tuple[int, int]) -> Landings:
        return _find_landings(views(size)[number], size)

    def warp_cached(noise: FirstFrame) -> OtherFrames:
        size = _size(noise)
        return _warp_noise(noise, frames - 1, (landings(number, size) for number in range(frames - 1)), seed)

    return FrameWarp(lambda x0: warp_latents(x0, views(_size(x0))), warp_cached)


def _size(latents: Tensor) -> tuple[int, int]:
    height, width = latents.shape[-2:]
    return height, width


def warp_latents(x0: FirstFrame, views: Sequence[View]) -> OtherFrames:
    """Warp frame 0 to each view: bicubic, mirrored at the edges; a pan by whole cells is an exact shift."""
    frame = x0[:, 0].cpu().double()  # in double precision a shift by whole cells is exact
    return torch.stack([_sample(frame, view).to(x0.dtype) for view in views], dim=1).to(x0.device)


def _sample(frame: Float[Tensor, "b c h w"], view: View) -> Float[Tensor, "b c h w"]:
    height, width = frame.shape[-2:]
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    grid = 2 * _apply(view, x, y) / torch.tensor([width, height]) - 1
    return F.grid_sample(
        frame, grid.expand(len(frame), -1, -1, -1), mode="bicubic", padding_mode="reflection", align_corners=False
    )


def warp_noise(noise: FirstFrame, views: Sequence[View], seed: Seeds) -> OtherFrames:
    """Warp the noise of frame 0 to each view as white noise of unit variance; a pan by whole cells is an exact shift.

    Each cell is split into 8 x 8 parts of white noise. Each part moves to the cell of the new frame that contains its
    centre, and a cell's noise is the sum of its parts, scaled to unit variance. So cells share no part and are
    independent, except where frame 0 is mirrored at its edges.
    Source: the noise transport of Chang et al. 2024, "How I Warped Your Noise", for affine maps.
    """
    return _warp_noise(noise, len(views), (_find_landings(view, _size(noise)) for view in views), seed)


def _warp_noise(noise: FirstFrame, count: int, landings: Iterable[Landings], seed: Seeds) -> OtherFrames:
    b, _, c, h, w = noise.shape
    detail = shared(seed, [0], (b, c, SUBCELLS * h, SUBCELLS * w))[:, 0]
    parts = _split(noise[:, 0].cpu().double(), detail.double()).flatten(2).flatten(0, 1).T.contiguous()
    cells = noise.new_empty(count, h * w, b * c, device="cpu")  # a list would lie between what is freed for each frame
    for number, each in enumerate(landings):
        cells[number] = _gather(parts, each)
    return cells.transpose(1, 2).unflatten(1, (b, c)).unflatten(3, (h, w)).transpose(0, 1).to(noise.device)


def _split(noise: Float[Tensor, "b c h w"], detail: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
    """Return white noise on the finer grid whose sum in every cell, over `SUBCELLS`, is `noise`."""
    missing = noise / SUBCELLS - F.avg_pool2d(detail, SUBCELLS)
    return detail + missing.repeat_interleave(SUBCELLS, -2).repeat_interleave(SUBCELLS, -1)


def _gather(parts: Float[Tensor, "parts n"], landings: Landings) -> Float[Tensor, "cells n"]:
    """Sum the parts that move to each cell, at unit variance; a part that moves to a cell m times counts m times."""
    moved = parts.index_select(0, landings.parts) * landings.times[:, None]
    return torch.segment_reduce(moved, "sum", lengths=landings.counts, axis=0) / landings.norm[:, None]


def _find_landings(view: View, size: tuple[int, int]) -> Landings:
    """Return which parts move to which cells in this view: in 32 bits, since those of many frames are cached."""
    num_cells = size[0] * size[1]
    count = SUBCELLS**2 * num_cells
    cell, part = _landings(view, size)
    pairs, times = torch.unique(cell * count + part, return_counts=True)
    counts = torch.bincount(pairs // count, minlength=num_cells)
    norm = torch.segment_reduce(times.double() ** 2, "sum", lengths=counts, axis=0).sqrt()
    return Landings(counts, (pairs % count).int(), times.int(), norm)


def _landings(view: View, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (cell indices, part indices): each visible part of frame 0, mirrored at its edges, and its new cell."""
    height, width = size
    corners = SUBCELLS * _apply(view, torch.tensor([0, width, 0, width]), torch.tensor([0, 0, height, height]))
    left, top = corners.amin(0).floor().int().tolist()
    right, bottom = corners.amax(0).ceil().int().tolist()
    column, row = torch.meshgrid(torch.arange(left, right), torch.arange(top, bottom), indexing="xy")
    x, y = _apply(_inverse(view), (column + 0.5) / SUBCELLS, (row + 0.5) / SUBCELLS).floor().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    part = _mirrored(row, SUBCELLS * height) * SUBCELLS * width + _mirrored(column, SUBCELLS * width)
    return (y * width + x)[inside], part[inside]


def _mirrored(index: Tensor, count: int) -> Tensor:
    """Fold indices to ... 2 1 0 0 1 2 ... n-1 n-1 n-2 ...: the edge lies between a cell and its mirror image."""
    folded = index % (2 * count)
    return torch.minimum(folded, 2 * count - 1 - folded)


def _apply(view: View, x: Tensor, y: Tensor) -> Float[Tensor, "*shape 2"]:
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).to(view) @ view.T


def _inverse(view: View) -> View:
    back = torch.linalg.inv(view[:, :2])
    return torch.cat([back, -back @ view[:, 2:]], dim=1)
