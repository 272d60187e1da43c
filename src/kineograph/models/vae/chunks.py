"""Frames of videos as a model takes them: a few at a time, of sides that fit, and none of them broken."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError

PixelFrames = Float[Tensor, "b f 3 H W"]
PIXELS_AT_ONCE = 512 * 512


def split_frames(x: Tensor, size: int) -> Iterator[tuple[range, Tensor]]:
    """Frames in parts of at most `size`, each with its numbers."""
    if size < 1:
        raise InputError(f"expected a chunk_size of at least 1 frame, got {size}")
    for start in range(0, x.shape[1], size):
        numbers = range(start, min(start + size, x.shape[1]))
        yield numbers, x[:, numbers.start : numbers.stop]


def frames_per_chunk(pixels: int) -> int:
    return max(1, PIXELS_AT_ONCE // pixels)


def nearest_multiple(length: int, factor: int) -> int:
    return max(1, round(length / factor)) * factor


def check_finite(frames: PixelFrames, numbers: range) -> None:
    broken = ~torch.isfinite(frames).flatten(2).all(2)
    if broken.any():
        sample, at = broken.nonzero()[0].tolist()
        raise ValueError(
            f"frame {numbers[at]} (video {sample} of the batch) holds NaN or infinity after the VAE. "
            "Latents that are none already, or half precision that overflows, are the usual causes: "
            "load the model with dtype=float32"
        )
