"""Stage 1: the autoencoder, 8x down, trained on crops of 64 pixels and settled on whole pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.recipe.contact_sheets import as_pictures, as_tensor, save_sheet
from kineograph_lab.recipe.loop import Batch, Draw, Figures, Plan, best_device, fast, fit
from kineograph_lab.recipe.pool import Pool

CROP, SIDE, DOWN = 64, 128, 8
SETTLE = 0.75  # from this progress on whole pictures, so that the norms meet the statistics they will see


def train(net: AutoencoderKL, plan: Plan, folder: Path, pool: Pool, held_out: Pool) -> AutoencoderKL:
    """The averaged autoencoder, its scaling factor measured on the pool."""
    ready = use_fast_group_norm(net).to(best_device(), memory_format=torch.channels_last)
    draw = crops(pool, plan.batch, net.config["latent_channels"])
    trained: AutoencoderKL = fit(ready, plan, folder, draw=draw, loss=losses, report=reporter(folder, held_out))
    deviation = torch.cat([encode(trained, pool.pictures[k : k + 64]) for k in range(0, 512, 64)]).std()
    trained.register_to_config(scaling_factor=round(1 / float(deviation), 4))
    return trained


def crops(pool: Pool, batch: int, channels: int) -> Draw:
    """Batches of (crops in all eight orientations, noise of their latents); as many pixels late as early."""

    def draw(rng: np.random.Generator, progress: float) -> Batch:
        side = CROP if progress < SETTLE else SIDE
        count = batch * CROP**2 // side**2
        cut = np.stack([_crop(pool.pictures[i], side, rng) for i in rng.integers(len(pool.pictures), size=count)])
        noise = rng.standard_normal((count, channels, side // DOWN, side // DOWN), np.float32)
        return as_tensor(cut), torch.from_numpy(noise)

    return draw


def _crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.integers(SIDE - side + 1, size=2)
    cut = picture[y : y + side, x : x + side]
    cut = cut.swapaxes(0, 1) if rng.uniform() < 0.25 else cut
    return cut[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]


def losses(net: AutoencoderKL, batch: Batch) -> dict[str, Tensor]:
    """Absolute and squared error, the error of the differences between neighbours (edges, eyes, wheels), and a weak KL."""
    pictures, noise = batch
    posterior = net.encode(pictures).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    error = net.decode(mean + (0.5 * logvar).exp() * noise).sample.float() - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return {"absolute": error.abs().mean(), "squared": 2 * error.square().mean(), "edges": edges / 4, "kl": 1e-4 * kl}


def reporter(folder: Path, held_out: Pool) -> Callable[[AutoencoderKL], Figures]:
    """PSNR on 64 held-out pictures, and a sheet of eight of them beside what came back."""
    pictures = held_out.pictures[:64]

    def report(net: AutoencoderKL) -> Figures:
        back = torch.cat([decode(net, encode(net, pictures[k : k + 16])) for k in range(0, 64, 16)])
        save_sheet(folder / "sheet.png", pictures[:8], as_pictures(back[:8]), pictures[8:16], as_pictures(back[8:16]))
        error = (as_pictures(back).astype(np.float32) - pictures) ** 2
        return {"psnr": float(np.mean([10 * np.log10(255**2 / e.mean()) for e in error]))}

    return report


@torch.no_grad()
def encode(net: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> the means of the latents, unscaled, float32 [n, c, h/8, w/8] on the CPU."""
    device = next(net.parameters()).device
    with fast(device):
        return net.encode(as_tensor(pictures).to(device)).latent_dist.mean.float().cpu()


@torch.no_grad()
def decode(net: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents [n, c, h, w] -> pictures in -1..1, float32 [n, 3, 8h, 8w] on the CPU."""
    device = next(net.parameters()).device
    with fast(device):
        return net.decode(latents.to(device)).sample.float().cpu()
