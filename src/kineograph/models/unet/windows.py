"""Overlapping temporal windows for videos longer than a video network was trained on.

Where windows overlap, the outputs are averaged with weights that fall towards each window's ends (as in
MultiDiffusion, Bar-Tal et al. 2023, along time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.temporal.config import TemporalConfig


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
    network: Callable[[Latents, Sequence[int]], Latents], z: Latents, windows: Sequence[range]
) -> Latents:
    """Return the weighted average of a network's outputs in these windows of the frames of `z`.

    network: called with frames and their numbers. With one window the result is its output.
    """
    if len(windows) == 1:
        return network(z, windows[0])
    total, weight = torch.zeros_like(z), z.new_zeros(z.shape[1], 1, 1, 1)
    for window in windows:
        index = torch.arange(len(window), device=z.device)
        weights = (1 + torch.minimum(index, index.flip(0))).float()[:, None, None, None]  # 1 at the ends of the window
        total[:, window.start : window.stop] += weights * network(z[:, window.start : window.stop], window)
        weight[window.start : window.stop] += weights
    return total / weight
