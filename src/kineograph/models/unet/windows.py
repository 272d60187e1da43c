"""Overlapping temporal windows for videos longer than a video network was trained on.

Where windows overlap, the outputs are averaged with the windows' weights, as in MultiDiffusion (Bar-Tal et al. 2023),
along time. The windows are either of the whole network, or of its temporal attention alone (FreeNoise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kineograph.errors import InputError
from kineograph.models.temporal.config import TemporalConfig


class FrameWindow(NamedTuple):
    """Frames that are processed together, and the weight of each where windows overlap."""

    frames: range
    weights: Sequence[float]


AttentionWindows = Callable[[int], Sequence[FrameWindow]]  # number of frames -> the windows of temporal attention


def one_window(frames: int) -> list[FrameWindow]:
    """Return one window with all frames."""
    return [FrameWindow(range(frames), pyramid(frames))]


def pyramid(frames: int) -> list[float]:
    """Return weights that fall from the middle of a window to 1 at its ends."""
    return [1.0 + min(k, frames - 1 - k) for k in range(frames)]


def overlapping_windows(frames: int, size: int, overlap: int) -> list[range]:
    """Return the fewest evenly spaced windows of `size` frames in which neighbours share at least `overlap` frames.

    A video that fits into one window is one window. Raises InputError unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise InputError(f"windows of {size} frames can share 0 to {size - 1} of them, not {overlap}")
    if frames <= size:
        return [range(frames)]
    count = -(-(frames - size) // (size - overlap)) + 1
    starts = [round(k * (frames - size) / (count - 1)) for k in range(count)]
    return [range(start, start + size) for start in starts]


def window_ranges(config: TemporalConfig, window: int | None, overlap: int | None, frames: int) -> list[range]:
    """Return the windows in which a network with these temporal layers processes so many frames.

    `window`, by default the number of frames it was trained on, and `overlap` are those of `Model.bind`. Raises
    InputError for a window longer than the network's positions.
    """
    size = window or config.num_frames
    if config.max_frames is not None and size > config.max_frames:
        raise InputError(
            f"the model has {config.max_frames} positions in time: a window has at most that many frames, not {size}"
        )
    return overlapping_windows(frames, size, size // 4 if overlap is None else overlap)


def average_windows(
    network: Callable[[Tensor, Sequence[int]], Tensor], z: Tensor, windows: Sequence[FrameWindow]
) -> Tensor:
    """Return the weighted average of a network's outputs in these windows of the frames of `z`, `n f ...`.

    network: called with frames and their numbers. With one window the result is its output.
    """
    if len(windows) == 1:
        return network(z, windows[0].frames)
    total = torch.zeros_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
    weight = total.new_zeros(z.shape[1], *[1] * (z.ndim - 2))
    for frames, own in windows:
        weights, part = total.new_tensor(own).view(-1, *weight.shape[1:]), slice(frames.start, frames.stop)
        total[:, part] += weights * network(z[:, part], frames)
        weight[part] += weights
    return (total / weight).to(z.dtype)
