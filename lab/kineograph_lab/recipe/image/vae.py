"""Stage 1: the autoencoder, 8x down, trained on crops of 64 pixels and settled on whole pictures."""

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
FULL_SIZE_FROM = 0.75  # from this progress on whole pictures, so that the norms meet the statistics they will see


def train_vae(net: AutoencoderKL, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool) -> AutoencoderKL:
    """The averaged autoencoder, its scaling factor measured on the pool."""
    ready = use_fast_group_norm(net).to(best_device(), memory_format=torch.channels_last)
    sample_batch = vae_batches(pool, plan.batch, net.config["latent_channels"])
    trained: AutoencoderKL = train_loop(
        ready, plan, folder, sample_batch=sample_batch, loss=vae_losses, report=vae_report(folder, held_out)
    )
    deviation = torch.cat([encode_images(trained, pool.pictures[k : k + 64]) for k in range(0, 512, 64)]).std()
    trained.register_to_config(scaling_factor=round(1 / float(deviation), 4))
    return trained


def vae_batches(pool: Pool, batch: int, channels: int) -> SampleBatch:
    """Batches of (crops in all eight orientations, noise of their latents); as many pixels late as early."""

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        side = CROP if progress < FULL_SIZE_FROM else SIDE
        count = batch * CROP**2 // side**2
        cut = np.stack(
            [_random_crop(pool.pictures[i], side, rng) for i in rng.integers(len(pool.pictures), size=count)]
        )
        noise = rng.standard_normal((count, channels, side // FACTOR, side // FACTOR), np.float32)
        return to_tensor(cut), torch.from_numpy(noise)

    return sample_batch


def _random_crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.integers(SIDE - side + 1, size=2)
    cut = picture[y : y + side, x : x + side]
    cut = cut.swapaxes(0, 1) if rng.uniform() < 0.25 else cut
    return cut[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]


def vae_losses(net: AutoencoderKL, batch: Batch) -> dict[str, Tensor]:
    """Absolute and squared error, the error of the differences between neighbours (edges, eyes, wheels), and a weak KL."""
    pictures, noise = batch
    posterior = net.encode(pictures).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    error = net.decode(mean + (0.5 * logvar).exp() * noise).sample.float() - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
    return {"absolute": error.abs().mean(), "squared": 2 * error.square().mean(), "edges": edges / 4, "kl": 1e-4 * kl}


def vae_report(folder: Path, held_out: Pool) -> Callable[[AutoencoderKL], Metrics]:
    """PSNR on 64 held-out pictures, and a sheet of eight of them beside what came back."""
    pictures = held_out.pictures[:64]

    def report(net: AutoencoderKL) -> Metrics:
        back = torch.cat([decode_latents(net, encode_images(net, pictures[k : k + 16])) for k in range(0, 64, 16)])
        save_contact_sheet(folder / "sheet.png", pictures[:8], to_uint8(back[:8]), pictures[8:16], to_uint8(back[8:16]))
        error = (to_uint8(back).astype(np.float32) - pictures) ** 2
        return {"psnr": float(np.mean([10 * np.log10(255**2 / e.mean()) for e in error]))}

    return report


@torch.no_grad()
def encode_images(net: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> the means of the latents, unscaled, float32 [n, c, h/8, w/8] on the CPU."""
    device = next(net.parameters()).device
    with bf16_autocast(device):
        return net.encode(to_tensor(pictures).to(device)).latent_dist.mean.float().cpu()


@torch.no_grad()
def decode_latents(net: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents [n, c, h, w] -> pictures in -1..1, float32 [n, 3, 8h, 8w] on the CPU."""
    device = next(net.parameters()).device
    with bf16_autocast(device):
        return net.decode(latents.to(device)).sample.float().cpu()


NUM_COLOURS = 3


@torch.no_grad()
def initialise_as_resizing(vae: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder, its weights set so; expects equal group norms and at least 3 latent channels."""
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
    """A filter that takes the cell itself."""
    tap = torch.zeros(weight.shape[2:])
    tap[weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return tap


def _mean_kernel() -> Tensor:
    """The mean of the four cells that become one: diffusers pads a downsampling on the right and below only."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _set_identity(weight: Tensor, channels: range, kernel: Tensor) -> None:
    """These channels go through the filter, each to itself and mixed with no other."""
    for channel in channels:
        weight[channel] = 0
        weight[channel, channel] = kernel


def _split_signs(entry: nn.Conv2d) -> None:
    """Colours to channels 0, 1, 2 and their negatives to 3, 4, 5."""
    for colour in range(NUM_COLOURS):
        for channel, sign in ((colour, 1), (colour + NUM_COLOURS, -1)):
            entry.weight[channel] = 0
            entry.weight[channel, colour] = sign * _identity_kernel(entry.weight)


def _join_signs(exit_: nn.Conv2d) -> None:
    """Behind a SiLU, a channel less its negative is the colour."""
    for colour in range(NUM_COLOURS):
        exit_.weight[colour] = 0
        exit_.weight[colour, colour] = _identity_kernel(exit_.weight)
        exit_.weight[colour, colour + NUM_COLOURS] = -_identity_kernel(exit_.weight)
