"""The image VAE on the frames of a video: a few frames at a time, without overflow, compared with another VAE."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.hooks import copy_network

PixelFrames = Float[Tensor, "b f 3 H W"]
PIXELS_PER_CHUNK = 512 * 512
TOLERANCE = 0.01  # above the rounding of bfloat16, below the changes of a fine-tuned decoder


def split_frames(x: Tensor, size: int) -> Iterator[tuple[range, Tensor]]:
    """Yield chunks of at most `size` frames of `b f ...`, each with the numbers of its frames."""
    if size < 1:
        raise InputError(f"expected a chunk_size of at least 1 frame, got {size}")
    for start in range(0, x.shape[1], size):
        numbers = range(start, min(start + size, x.shape[1]))
        yield numbers, x[:, numbers.start : numbers.stop]


def frames_per_chunk(pixels: int) -> int:
    """Return the number of frames that have as many pixels together as one of 512 x 512, at least 1."""
    return max(1, PIXELS_PER_CHUNK // pixels)


def encode_frames(vae: AutoencoderKL, frames: PixelFrames, device: torch.device, size: int) -> Latents:
    """Encode frames, values from 0 to 1, `size` at a time: float32 latents before the scaling factor and shift."""
    encoded = [
        vae.encode((2 * part.flatten(0, 1) - 1).to(device, vae.dtype)).latent_dist.mode().float()
        for _, part in split_frames(frames, size)
    ]
    return torch.cat([part.unflatten(0, (len(frames), -1)) for part in encoded], dim=1)


def decode_per_frame(vae: AutoencoderKL, z: Latents, size: int) -> Iterator[PixelFrames]:
    """Yield the frames of unscaled latents, values from -1 to 1, decoded `size` frames at a time."""
    for _, part in split_frames(z, size):
        yield vae.decode(part.flatten(0, 1)).sample.unflatten(0, part.shape[:2])


def check_finite(frames: PixelFrames, numbers: range) -> None:
    """Raise InputError if a frame contains NaN or infinity. numbers: of the frames in the video."""
    broken = ~torch.isfinite(frames).flatten(2).all(2)
    if broken.any():
        sample, at = broken.nonzero()[0].tolist()
        raise InputError(
            f"frame {numbers[at]} (video {sample} of the batch) holds NaN or infinity after the VAE. "
            "Latents that are none already, or half precision that overflows, are the usual causes: "
            "load the model with dtype=float32"
        )


def prevent_overflow(vae: AutoencoderKL) -> AutoencoderKL:
    """Return the VAE in float32 if it overflows in float16, as SDXL's does and any with force_upcast.

    It is copied then, so that an open pipeline keeps its own. Raises InputError for one that is offloaded in parts.
    """
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    return copy_network(vae).float() if overflows else vae


def same_latent_space(one: AutoencoderKL, other: AutoencoderKL) -> bool:
    """Return True if two VAEs have the same latents: equal layers and weights, up to rounding to half precision."""
    if one is other:
        return True
    scales = [(vae.config.scaling_factor, vae.config.shift_factor) for vae in (one, other)]
    if scales[0] != scales[1]:
        return False
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        weight.shape == others[name].shape
        and torch.allclose(weight.float().cpu(), others[name].float().cpu(), rtol=TOLERANCE, atol=TOLERANCE / 10)
        for name, weight in weights.items()
    )
