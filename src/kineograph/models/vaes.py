"""Another VAE than the model's own, from where it lives; and one that half precision does not overflow."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from kineograph.errors import InputError
from kineograph.models import hub, single_file
from kineograph.models.hub import Hub
from kineograph.models.parts import DAMAGE

ROUNDED = 0.01  # more than bfloat16 rounds, less than a fine-tuned decoder changes
VAE_FILES = [f"{at}{name}" for at in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors")]


def another(vae: str | Path | AutoencoderKL, own: AutoencoderKL, ask: Hub) -> AutoencoderKL:
    opened = vae if isinstance(vae, AutoencoderKL) else _opened(vae, own, ask)
    here, expected = opened.config.latent_channels, own.config.latent_channels
    if here != expected:
        raise InputError(f"the VAE makes latents of {here} channels, and the model draws {expected}: pass another")
    return opened


def _opened(vae: str | Path, own: AutoencoderKL, ask: Hub) -> AutoencoderKL:
    path = hub.local(vae) or hub.fetch_folder(str(vae), VAE_FILES, ask._replace(revision=None))
    if path.is_file():
        return single_file.open_vae(path, own)
    folder = path if (path / "config.json").is_file() else path / "vae"
    try:
        return AutoencoderKL.from_pretrained(folder, dtype=own.dtype, local_files_only=True)
    except DAMAGE as error:
        raise InputError(f"{vae} is no VAE in diffusers layout, or damaged: {error}") from error


def without_overflow(vae: AutoencoderKL) -> AutoencoderKL:
    """SDXL's VAE, and any that does not deny it, leaves the range of float16; an open pipeline keeps its own."""
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    return copy.deepcopy(vae).float() if overflows else vae


def alike(one: AutoencoderKL, other: AutoencoderKL) -> bool:
    """Whether two VAEs have the same latents: the same layers and weights, but for what half precision rounds away."""
    if one is other:
        return True
    scales = [(vae.config.scaling_factor, vae.config.shift_factor) for vae in (one, other)]
    if scales[0] != scales[1]:
        return False
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(
        weight.shape == there[name].shape
        and torch.allclose(weight.float().cpu(), there[name].float().cpu(), rtol=ROUNDED, atol=ROUNDED / 10)
        for name, weight in here.items()
    )
