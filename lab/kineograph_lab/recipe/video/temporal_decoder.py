"""The temporal decoder of the pocket VAE: its temporal layers are trained on clips, the rest of the VAE is frozen.

A VAE that decodes each frame alone lets fine edges flicker. A video model's output flickers more, since its latents have a
small error in every frame, each frame its own; a part of the training latents gets such errors too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from kineograph.models.vae.autoencoder import decode_per_frame
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
STEADY_WEIGHT = 1.0  # weight of the error of frame-to-frame changes relative to the frames' error
MAX_LATENT_NOISE = 0.15  # largest noise of latents, in units of their standard deviation

Rng = np.random.Generator


class VAEWithTemporalDecoder(nn.Module):
    """The VAE in training, frozen but for the temporal layers."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(requires_grad=False)
        self.decoder = TemporalDecoder(decoder_config(vae))


def decoder_config(vae: AutoencoderKL) -> TemporalDecoderConfig:
    """Return the temporal decoder's configuration for a VAE."""
    return TemporalDecoderConfig(blocks=decoder_blocks(vae), groups=GROUPS, num_frames=FRAMES)


def load_pixel_clips(folder: Path, count: int, *, seed: int, split: str) -> Pool:
    """Return the pool of this many clips, uint8 [n, 8, 128, 128, 3], made into `folder` if missing."""
    return pool.load_pool(folder, count, seed=seed, split=split, render=random_pixel_clip)


def random_pixel_clip(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a clip and its facts."""
    shot, fps = clips.sample_clip_shot(rng, split), float(rng.choice(clips.FRAME_RATES, p=clips.FRAME_RATE_SHARES))
    return world.render_clip(shot, FRAMES, fps), clips.clip_facts(shot, fps, rng)


def train_temporal_decoder(
    vae: AutoencoderKL, plan: StagePlan, folder: Path, clip_pool: Pool, held_out: Pool
) -> TemporalDecoder:
    """Train the temporal layers of the decoder; return them with averaged weights."""
    prepared = use_fast_group_norm(VAEWithTemporalDecoder(vae)).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    sample_batch, report = (
        decoder_batches(clip_pool, plan.batch, vae.config["latent_channels"]),
        decoder_report(folder, held_out),
    )
    return train_loop(prepared, plan, folder, sample_batch=sample_batch, loss=decoder_losses, report=report).decoder


def decoder_batches(clip_pool: Pool, batch: int, channels: int) -> SampleBatch:
    """Return a sampler of (crops of clips, noise of their latents): crops first, whole clips later, as many pixels."""

    def sample_batch(rng: Rng, progress: float) -> Batch:
        side = CROP if progress < FULL_SIZE_FROM else SIDE
        count = max(1, batch * CROP**2 // side**2)
        crops = np.stack(
            [_random_clip_crop(clip_pool.items[i], side, rng) for i in rng.integers(len(clip_pool.items), size=count)]
        )
        latent_noise = rng.standard_normal((count, FRAMES, channels, side // FACTOR, side // FACTOR), np.float32)
        amount = rng.uniform(-MAX_LATENT_NOISE, MAX_LATENT_NOISE, size=(count, 1, 1, 1, 1)).clip(
            0
        )  # 0 for half of them
        latent_noise *= amount.astype(np.float32)
        return to_tensor(crops.reshape(-1, *crops.shape[2:])).unflatten(0, (count, FRAMES)), torch.from_numpy(
            latent_noise
        )

    return sample_batch


def _random_clip_crop(frames: np.ndarray, side: int, rng: Rng) -> np.ndarray:
    """Return the same crop of every frame, sometimes mirrored or reversed in time."""
    x, y = rng.integers(SIDE - side + 1, size=2)
    crop = frames[:: rng.choice((-1, 1)), y : y + side, x : x + side]
    return crop[:, :, :: rng.choice((-1, 1))]


def decoder_losses(net: VAEWithTemporalDecoder, batch: Batch) -> dict[str, Tensor]:
    """Return the error of the pixels, and that of their changes from frame to frame."""
    frames, latent_noise = batch
    frame_error, change_error = reconstruction_errors(
        net.decoder, net.vae, encode_clips(net, frames) + latent_noise / net.vae.config["scaling_factor"], frames
    )
    return {"pixels": frame_error.mean(), "steady": STEADY_WEIGHT * change_error.mean()}


@torch.no_grad()
def encode_clips(net: VAEWithTemporalDecoder, frames: Tensor) -> Tensor:
    """Return frames with values from -1 to 1, [b f 3 h w], as unscaled latents."""
    return net.vae.encode(frames.flatten(0, 1)).latent_dist.mean.float().unflatten(0, frames.shape[:2])


def decoder_report(folder: Path, held_out: Pool) -> Callable[[VAEWithTemporalDecoder], Metrics]:
    """Return a report of PSNR and flicker on four held-out clips, decoded per frame and with temporal layers, and a sheet of one."""
    clips = held_out.items[:4]

    @torch.no_grad()
    def report(net: VAEWithTemporalDecoder) -> Metrics:
        device = next(net.parameters()).device
        frames = to_tensor(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2]).to(device)
        with bf16_autocast(device):
            z = encode_clips(net, frames)
            per_frame, temporal = (
                torch.cat(list(decode(net.vae, z, FRAMES)), 1).float() for decode in (decode_per_frame, net.decoder)
            )
        save_contact_sheet(folder / "sheet.png", clips[0], to_uint8(per_frame[0]), to_uint8(temporal[0]))
        differences = {"alone": per_frame - frames, "steady": temporal - frames}
        return {
            **{
                f"psnr_{name}": float(10 * torch.log10(4 / difference.square().mean()))
                for name, difference in differences.items()
            },
            **{
                f"flicker_{name}": float(difference.diff(dim=1).abs().mean())
                for name, difference in differences.items()
            },
        }

    return report
