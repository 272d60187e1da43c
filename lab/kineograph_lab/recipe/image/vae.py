"""Stage 1: the VAE, 8x down, trained on crops of 64 pixels and at the end on whole images.

It starts as the image downsampled by averaging and upsampled again, with right colours. From a random start it learns
shapes first and leaves them grey for tens of thousands of images, because flat colour must pass every normalisation.
Initially each colour and its negative have a channel of their own from end to end (SiLU(x) - SiLU(-x) = x), residual
branches are zero, and training adds the detail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.images import save_contact_sheet, to_tensor, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, bf16_autocast, train_loop
from kineograph_lab.recipe.pool import Pool

CROP, SIDE, FACTOR = 64, 128, 8
FULL_SIZE_FROM = 0.75  # from this progress on whole images, so that the norms adapt to their statistics


def train_vae(net: AutoencoderKL, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool) -> AutoencoderKL:
    """Train the VAE; return it with averaged weights, and with the scaling factor measured on the pool."""
    prepared = use_fast_group_norm(net).to(best_device(), memory_format=torch.channels_last)
    sample_batch = vae_batches(pool, plan.batch, net.config["latent_channels"])
    trained: AutoencoderKL = train_loop(
        prepared, plan, folder, sample_batch=sample_batch, loss=vae_losses, report=vae_report(folder, held_out)
    )
    std = torch.cat([encode_images(trained, pool.items[k : k + 64]) for k in range(0, 512, 64)]).std()
    trained.register_to_config(scaling_factor=round(1 / float(std), 4))
    return trained


def vae_batches(pool: Pool, batch: int, channels: int) -> SampleBatch:
    """Return a sampler of (crops in all eight orientations, noise of their latents), with a constant number of pixels."""

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        side = CROP if progress < FULL_SIZE_FROM else SIDE
        count = batch * CROP**2 // side**2
        crops = np.stack([_random_crop(pool.items[i], side, rng) for i in rng.integers(len(pool.items), size=count)])
        noise = rng.standard_normal((count, channels, side // FACTOR, side // FACTOR), np.float32)
        return to_tensor(crops), torch.from_numpy(noise)

    return sample_batch


def _random_crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.integers(SIDE - side + 1, size=2)
    crop = image[y : y + side, x : x + side]
    crop = crop.swapaxes(0, 1) if rng.uniform() < 0.25 else crop
    return crop[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]


def vae_losses(net: AutoencoderKL, batch: Batch) -> dict[str, Tensor]:
    """Return absolute and squared error, the error of differences between neighbours (edges), and a weak KL."""
    images, noise = batch
    posterior = net.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    error = net.decode(mean + (0.5 * logvar).exp() * noise).sample.float() - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return {"absolute": error.abs().mean(), "squared": 2 * error.square().mean(), "edges": edges / 4, "kl": 1e-4 * kl}


def vae_report(folder: Path, held_out: Pool) -> Callable[[AutoencoderKL], Metrics]:
    """Return a report of the PSNR on 64 held-out images, with a contact sheet of images and reconstructions."""
    images = held_out.items[:64]

    def report(net: AutoencoderKL) -> Metrics:
        reconstructed = torch.cat(
            [decode_latents(net, encode_images(net, images[k : k + 16])) for k in range(0, 64, 16)]
        )
        save_contact_sheet(
            folder / "sheet.png", images[:8], to_uint8(reconstructed[:8]), images[8:16], to_uint8(reconstructed[8:16])
        )
        error = (to_uint8(reconstructed).astype(np.float32) - images) ** 2
        return {"psnr": float(np.mean([10 * np.log10(255**2 / e.mean()) for e in error]))}

    return report


@torch.no_grad()
def encode_images(net: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Return the means of the unscaled latents, float32 [n, c, h/8, w/8] on the CPU, of uint8 [n, h, w, 3]."""
    device = next(net.parameters()).device
    with bf16_autocast(device):
        return net.encode(to_tensor(images).to(device)).latent_dist.mean.float().cpu()


@torch.no_grad()
def decode_latents(net: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return images in -1..1, float32 [n, 3, 8h, 8w] on the CPU, of unscaled latents [n, c, h, w]."""
    device = next(net.parameters()).device
    with bf16_autocast(device):
        return net.decode(latents.to(device)).sample.float().cpu()


NUM_COLOURS = 3


@torch.no_grad()
def initialise_as_resizing(vae: AutoencoderKL) -> AutoencoderKL:
    """Return the VAE, its weights set in place; expects equal group norms and at least 3 latent channels."""
    for name, layer in vae.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif name.endswith("conv_shortcut") or ("upsamplers" in name and isinstance(layer, nn.Conv2d)):
            _set_identity(layer.weight, range(2 * NUM_COLOURS), _identity_kernel(layer.weight))
        elif "downsamplers" in name and isinstance(layer, nn.Conv2d):
            _set_identity(layer.weight, range(2 * NUM_COLOURS), _mean_kernel())
    for entry in (vae.encoder.conv_in, vae.decoder.conv_in):
        _split_signs(entry)
    for exit_ in (vae.encoder.conv_out, vae.decoder.conv_out):
        _join_signs(exit_)
    for pointwise in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(pointwise.weight)
        nn.init.zeros_(pointwise.bias)
    return vae


def _identity_kernel(weight: Tensor) -> Tensor:
    """Return a kernel that copies the cell itself."""
    tap = torch.zeros(weight.shape[2:])
    tap[weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return tap


def _mean_kernel() -> Tensor:
    """Return the mean of the four cells that become one: diffusers pads a downsampling on the right and below only."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _set_identity(weight: Tensor, channels: range, kernel: Tensor) -> None:
    """Apply the kernel to each of these channels alone, without mixing."""
    for channel in channels:
        weight[channel] = 0
        weight[channel, channel] = kernel


def _split_signs(entry: nn.Conv2d) -> None:
    """Map colours to channels 0, 1, 2 and their negatives to 3, 4, 5."""
    for colour in range(NUM_COLOURS):
        for channel, sign in ((colour, 1), (colour + NUM_COLOURS, -1)):
            entry.weight[channel] = 0
            entry.weight[channel, colour] = sign * _identity_kernel(entry.weight)


def _join_signs(exit_: nn.Conv2d) -> None:
    """Map channels after a SiLU to colours: a channel minus its negative."""
    for colour in range(NUM_COLOURS):
        exit_.weight[colour] = 0
        exit_.weight[colour, colour] = _identity_kernel(exit_.weight)
        exit_.weight[colour, colour + NUM_COLOURS] = -_identity_kernel(exit_.weight)
