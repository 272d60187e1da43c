"""Frames of videos in chunks, and a VAE that encodes and decodes them frame by frame."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents

PixelFrames = Float[Tensor, "b f 3 H W"]
PIXELS_PER_CHUNK = 512 * 512


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
    """Return the unscaled latents of frames with values from 0 to 1, encoded `size` frames at a time: float32."""
    encoded = [
        vae.encode((2 * part.flatten(0, 1) - 1).to(device, vae.dtype)).latent_dist.mode().float()
        for _, part in split_frames(frames, size)
    ]
    return torch.cat([part.unflatten(0, (len(frames), -1)) for part in encoded], dim=1)


def decode_frames(vae: AutoencoderKL, z: Latents, size: int) -> Iterator[PixelFrames]:
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
