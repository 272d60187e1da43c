"""Videos longer than a video network was trained on: it sees them through windows that overlap.

Where windows overlap, what they say is mixed, each counting less towards its own ends (as in MultiDiffusion, Bar-Tal
et al. 2023, along time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.temporal.config import TemporalConfig


def overlapping_windows(frames: int, size: int, overlap: int) -> list[range]:
    """The fewest windows of `size` frames that cover all and share at least `overlap` frames with the one before.

    They are spread evenly. A video that fits into one window is one window.
    Raises InputError unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise InputError(f"windows of {size} frames can share 0 to {size - 1} of them, not {overlap}")
    if frames <= size:
        return [range(frames)]
    count = -(-(frames - size) // (size - overlap)) + 1
    starts = [round(k * (frames - size) / (count - 1)) for k in range(count)]
    return [range(start, start + size) for start in starts]


def window_ranges(config: TemporalConfig, window: int | None, overlap: int | None, frames: int) -> list[range]:
    """The windows through which a network with these layers sees so many frames.

    window, overlap: as many as it was trained on, and a quarter of them, unless given.
    Raises InputError for a window longer than the positions it knows.
    """
    size = window or config.num_frames
    if config.longest is not None and size > config.longest:
        raise InputError(
            f"the model knows {config.longest} positions in time: a window has at most so many, not {size}"
        )
    return overlapping_windows(frames, size, size // 4 if overlap is None else overlap)


def average_windows(
    network: Callable[[Latents, Sequence[int]], Latents], z: Latents, spans: Sequence[range]
) -> Latents:
    """What a network says of the frames of `z`, seen through these windows; it is called with frames and their numbers.

    With one window it is what the network says of all frames.
    """
    if len(spans) == 1:
        return network(z, spans[0])
    total, weight = torch.zeros_like(z), z.new_zeros(z.shape[1], 1, 1, 1)
    for span in spans:
        share = _share(span, z.device)
        total[:, span.start : span.stop] += share * network(z[:, span.start : span.stop], span)
        weight[span.start : span.stop] += share
    return total / weight


def _share(span: range, device: torch.device) -> Tensor:
    """How much each frame of a window counts: 1 at its ends, rising to its middle. [f 1 1 1]"""
    place = torch.arange(len(span), device=device)
    return (1 + torch.minimum(place, place.flip(0))).float()[:, None, None, None]
