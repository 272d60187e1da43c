"""The image VAE on the frames of a video: a few frames at a time, without overflow, compared with another VAE."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Union

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.hooks import copy_network, has_weights

PixelFrames = Float[Tensor, "b f 3 H W"]
VAE = Union[AutoencoderKL, AutoencoderTiny]  # noqa: UP007 (| fails on diffusers' untyped classes)
VAES: Mapping[str, Any] = {each.__name__: each for each in (AutoencoderKL, AutoencoderTiny)}
PIXELS_PER_CHUNK = 512 * 512
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
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


def encode_frames(vae: VAE, frames: PixelFrames, device: torch.device, size: int) -> Latents:
    """Encode frames, values from 0 to 1, `size` at a time: float32 latents before `scale_latents`."""
    encoded = [
        _latents(vae.encode((2 * part.flatten(0, 1) - 1).to(device, vae.dtype))).float()
        for _, part in split_frames(frames, size)
    ]
    return torch.cat([part.unflatten(0, (len(frames), -1)) for part in encoded], dim=1)


def _latents(encoded: Any) -> Tensor:
    """Return the most probable latents of an encoder's output; that of AutoencoderTiny has no distribution."""
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents


def scale_latents(vae: VAE, z: Latents) -> Latents:
    """Return a VAE's latents as the U-Net reads them: shifted and scaled as its configuration says."""
    shift, scale = _shift_and_scale(vae, z)
    return (z - shift) * scale


def unscale_latents(vae: VAE, latents: Latents) -> Latents:
    """Return the inverse of `scale_latents`, which the VAE decodes."""
    shift, scale = _shift_and_scale(vae, latents)
    return latents / scale + shift


def _shift_and_scale(vae: VAE, like: Tensor) -> tuple[Any, Any]:
    """Return the numbers of the configuration: `latents_mean` and `latents_std` for each channel, or one for all."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    if len(mean) != config.latent_channels or len(std) != config.latent_channels:
        raise InputError(
            f"the VAE has latents of {config.latent_channels} channels, and its configuration {len(mean)} values of "
            f"latents_mean and {len(std)} of latents_std: expected one for each channel"
        )
    shift, spread = (torch.tensor(each, dtype=like.dtype, device=like.device).view(-1, 1, 1) for each in (mean, std))
    return shift, config.scaling_factor / spread


def decode_per_frame(vae: VAE, z: Latents, size: int) -> Iterator[PixelFrames]:
    """Yield the frames of unscaled latents, values from -1 to 1, decoded `size` frames at a time."""
    for _, part in split_frames(z, size):
        yield vae.decode(part.flatten(0, 1)).sample.unflatten(0, part.shape[:2])


def tiled(vae: VAE, temporal_decoder: object = None) -> VAE:
    """Return the VAE with tiles: images above its own size are processed in overlapping tiles, in less memory.

    The layers are shared; the original, which may be a pipeline's, stays without tiles. Raises InputError if there is a
    temporal decoder, which decodes whole frames.
    """
    if temporal_decoder is not None:
        raise InputError("`vae_tiling` does nothing with a temporal decoder, which decodes whole frames: leave it out")
    copied: Any = copy.copy(vae)
    copied.enable_tiling()
    return copied


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


def prevent_overflow(vae: VAE) -> VAE:
    """Return the VAE in float32 if it overflows in float16, as SDXL's does and any with force_upcast.

    It is copied then, so that an open pipeline keeps its own. Raises InputError for one that is offloaded in parts.
    """
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    return copy_network(vae).float() if overflows else vae


def same_latent_space(one: VAE, other: VAE) -> bool:
    """Return True if two VAEs have the same latents: equal layers and weights, up to rounding to half precision."""
    if one is other:
        return True
    scales = [[vae.config.get(name) for name in SCALING] for vae in (one, other)]
    if scales[0] != scales[1]:
        return False
    if not (has_weights(one) and has_weights(other)):  # offloaded to elsewhere
        return False
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        weight.shape == others[name].shape
        and torch.allclose(weight.float().cpu(), others[name].float().cpu(), rtol=TOLERANCE, atol=TOLERANCE / 10)
        for name, weight in weights.items()
    )
