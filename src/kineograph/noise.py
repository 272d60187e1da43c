"""Initial and sampler noise of a video's frames: independent, shared, or a mixture.

The noise of frame k depends on the seed and on k only: not on the number of frames, nor on which others are computed
in the same call. Noise is sampled on the CPU, so it is the same for every device.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents

Shape = tuple[int, int, int, int]  # (b, c, h, w): of the videos in a batch, without their frames
Seeds = int | Sequence[int]  # one for each video of a batch; a single one for the first, and the next has one more

# First word of the seed, so that no two kinds of noise share a random stream.
FRAME, VIDEO, SIGMA, CLIP = range(4)
ALL_FRAMES = 2**32 - 1  # the frame number of sampler noise that all frames share: no video has so many


def independent(seed: Seeds, frames: Iterable[int], shape: Shape) -> Latents:
    """Return independent noise for every frame; `frames` are numbers counted from the start of the video.

    Returns [b f c h w], float32, on the CPU.
    """
    return _noise_of(seed, [(FRAME, frame) for frame in frames], shape)


def shared(seed: Seeds, frames: Iterable[int], shape: Shape, clip: int = 0) -> Latents:
    """Return the same noise for all frames: [b f c h w], float32, on the CPU.

    clip: the number of a clip of a long video; each clip has its own noise.
    """
    one = _noise_of(seed, [(CLIP, clip) if clip else (VIDEO,)], shape)
    return one.repeat(1, len(list(frames)), 1, 1, 1)


def per_sigma(seed: Seeds, frames: Iterable[int], shape: Shape) -> Callable[[float], Latents]:
    """Return noise as a function of sigma, for ancestral samplers.

    It depends on the seed, the frame and sigma only, so a video computed in chunks gets the same noise as the whole.
    Sigma is rounded to float32, since the last bits of a double differ between machines.
    """
    numbers = list(frames)

    def noise_at(sigma: float) -> Latents:
        (bits,) = struct.unpack("<I", struct.pack("<f", sigma))
        return _noise_of(seed, [(SIGMA, frame, bits) for frame in numbers], shape)

    return noise_at


def partly_shared(ratio: float, seed: Seeds, frames: Iterable[int], shape: Shape, clip: int = 0) -> Latents:
    """Return a mixture of noise that a clip's frames share and each frame's own noise, `ratio` to one; see `mix`.

    Ratio 0 is `independent`, `math.inf` is `shared`. Returns [b f c h w], float32, on the CPU.
    """
    numbers = list(frames)
    return mix(shared(seed, numbers, shape, clip), independent(seed, numbers, shape), ratio)


def partly_shared_per_sigma(
    ratio: float, seed: Seeds, frames: Iterable[int], shape: Shape
) -> Callable[[float], Latents]:
    """Return `partly_shared` noise as a function of sigma, for ancestral samplers."""
    numbers = list(frames)
    one, own = per_sigma(seed, [ALL_FRAMES] * len(numbers), shape), per_sigma(seed, numbers, shape)
    return lambda sigma: mix(one(sigma), own(sigma), ratio) if ratio else own(sigma)


def mix(shared: Latents, own: Latents, ratio: float) -> Latents:
    """Mix two independent noises at unit variance: `(ratio * shared + own) / sqrt(1 + ratio^2)`.

    `ratio` 0 is all `own`, `math.inf` all `shared`.
    Source: the mixed noise model of PYoCo (Ge et al. 2023), where the ratio is alpha; VideoElevator starts from it.
    """
    angle = math.atan(ratio)  # also right for infinity
    return math.sin(angle) * shared + math.cos(angle) * own


def _noise_of(seed: Seeds, keys: list[tuple[int, ...]], shape: Shape) -> Latents:
    """Return noise for every sample of the batch and every key."""
    samples, *cell = shape
    seeds = range(seed, seed + samples) if isinstance(seed, int) else seed
    if len(seeds) != samples or min(seeds) < 0:
        raise InputError(f"Seeds are integers >= 0, one for each of {samples} samples, got {seed}.")
    return torch.stack([_stack_noise(each, keys, cell) for each in seeds])


def _stack_noise(seed: int, keys: list[tuple[int, ...]], shape: list[int]) -> Float[Tensor, "f c h w"]:
    """Return one sample's noise for every key; that of equal keys is computed once."""
    found = {key: _normal((*key, seed), shape) for key in dict.fromkeys(keys)}
    return torch.stack([found[key] for key in keys])


def _normal(words: tuple[int, ...], shape: list[int]) -> Float[Tensor, "c h w"]:
    """Return standard normal numbers that depend on these words of the seed only."""
    (state,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))
