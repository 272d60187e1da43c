"""The temporal decoder of the pocket VAE: its layers along time learn on films, all else of the VAE stays.

A VAE that decodes every frame alone lets fine edges flicker. What a video model draws flickers more, since its latents
are a little off in every frame, each frame in its own way: so do some of the latents here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from kineograph.models.vae.frames import decode_frames
from kineograph.models.vae.temporal_decoder import (
    TemporalDecoder,
    TemporalDecoderConfig,
    decoder_blocks,
    reconstruction_errors,
)
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe import pool
from kineograph_lab.recipe.image.vae import CROP, FACTOR, FULL_SIZE_FROM, SIDE
from kineograph_lab.recipe.images import save_contact_sheet, to_tensor, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, bf16_autocast, train_loop
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.recipe.video import clips
from kineograph_lab.world import world

FRAMES = 8
GROUPS = 8
STEADY_WEIGHT = 1.0  # weight of an error of the change from frame to frame beside an error of a frame
MAX_LATENT_NOISE = 0.15  # the most by which latents are off, of their deviation

Rng = np.random.Generator


class VAEWithTemporalDecoder(nn.Module):
    """The VAE as `fit` trains it, frozen but for the layers along time."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(requires_grad=False)
        self.decoder = TemporalDecoder(decoder_config(vae))


def decoder_config(vae: AutoencoderKL) -> TemporalDecoderConfig:
    return TemporalDecoderConfig(blocks=decoder_blocks(vae), groups=GROUPS, num_frames=FRAMES)


def load_pixel_clips(folder: Path, count: int, *, seed: int, split: str) -> Pool:
    """The pool of this many films, uint8 [n, 8, 128, 128, 3], made into `folder` unless there."""
    return pool.load_pool(folder, count, seed=seed, split=split, paint=random_pixel_clip)


def random_pixel_clip(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One film and its facts."""
    drawn, fps = clips.sample_clip_shot(rng, split), float(rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    return world.render_clip(drawn, FRAMES, fps), clips.clip_facts(drawn, fps, rng)


def train_temporal_decoder(
    vae: AutoencoderKL, plan: StagePlan, folder: Path, shown: Pool, held_out: Pool
) -> TemporalDecoder:
    """The averaged layers."""
    ready = use_fast_group_norm(VAEWithTemporalDecoder(vae)).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    sample_batch, report = (
        decoder_batches(shown, plan.batch, vae.config["latent_channels"]),
        decoder_report(folder, held_out),
    )
    return train_loop(ready, plan, folder, sample_batch=sample_batch, loss=decoder_losses, report=report).decoder


def decoder_batches(shown: Pool, batch: int, channels: int) -> SampleBatch:
    """Batches of (films cut to size, by what their latents are off); as many pixels late, whole, as early, in parts."""

    def sample_batch(rng: Rng, progress: float) -> Batch:
        side = CROP if progress < FULL_SIZE_FROM else SIDE
        count = max(1, batch * CROP**2 // side**2)
        cut = np.stack(
            [_random_clip_crop(shown.items[i], side, rng) for i in rng.integers(len(shown.items), size=count)]
        )
        off = rng.standard_normal((count, FRAMES, channels, side // FACTOR, side // FACTOR), np.float32)
        off *= (
            rng.uniform(-MAX_LATENT_NOISE, MAX_LATENT_NOISE, size=(count, 1, 1, 1, 1)).clip(0).astype(np.float32)
        )  # every second film's not
        return to_tensor(cut.reshape(-1, *cut.shape[2:])).unflatten(0, (count, FRAMES)), torch.from_numpy(off)

    return sample_batch


def _random_clip_crop(frames: np.ndarray, side: int, rng: Rng) -> np.ndarray:
    """The same part of every frame; at times mirrored, and at times backwards."""
    x, y = rng.integers(SIDE - side + 1, size=2)
    cut = frames[:: rng.choice((-1, 1)), y : y + side, x : x + side]
    return cut[:, :, :: rng.choice((-1, 1))]


def decoder_losses(net: VAEWithTemporalDecoder, batch: Batch) -> dict[str, Tensor]:
    """The error of the pixels, and that of their changes from frame to frame."""
    frames, off = batch
    still, moving = reconstruction_errors(
        net.decoder, net.vae, encode_clips(net, frames) + off / net.vae.config["scaling_factor"], frames
    )
    return {"pixels": still.mean(), "steady": STEADY_WEIGHT * moving.mean()}


@torch.no_grad()
def encode_clips(net: VAEWithTemporalDecoder, frames: Tensor) -> Tensor:
    """Frames with values from -1 to 1, [b f 3 h w], as unscaled latents."""
    return net.vae.encode(frames.flatten(0, 1)).latent_dist.mean.float().unflatten(0, frames.shape[:2])


def decoder_report(folder: Path, held_out: Pool) -> Callable[[VAEWithTemporalDecoder], Metrics]:
    """PSNR and flicker on four held-out films, by frames alone and with the layers along time; a sheet of one."""
    shown = held_out.items[:4]

    @torch.no_grad()
    def report(net: VAEWithTemporalDecoder) -> Metrics:
        device = next(net.parameters()).device
        frames = to_tensor(shown.reshape(-1, *shown.shape[2:])).unflatten(0, shown.shape[:2]).to(device)
        with bf16_autocast(device):
            z = encode_clips(net, frames)
            alone, steady = (
                torch.cat(list(way(net.vae, z, FRAMES)), 1).float() for way in (decode_frames, net.decoder)
            )
        save_contact_sheet(folder / "sheet.png", shown[0], to_uint8(alone[0]), to_uint8(steady[0]))
        figures = {"alone": alone - frames, "steady": steady - frames}
        return {
            **{f"psnr_{name}": float(10 * torch.log10(4 / off.square().mean())) for name, off in figures.items()},
            **{f"flicker_{name}": float(off.diff(dim=1).abs().mean()) for name, off in figures.items()},
        }

    return report
