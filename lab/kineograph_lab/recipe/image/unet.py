"""Stage 3: the U-Net, trained on cached latents with the frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
from kineograph.models.schedule import Schedule
from kineograph.noise import independent
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.sigmas import leading
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.vae import decode_latents, encode_images
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, bf16_autocast, train_loop
from kineograph_lab.recipe.networks import LATENT_CHANNELS, SIDE, VAE_FACTOR, tokenize
from kineograph_lab.recipe.pool import Pool, subject_cells

# Distribution of log(sigma) in training: sigmas between 0.7 and 6 decide the kind of subject; uniform timesteps would spend
# a third of their images above 4, where latents of 16 x 16 cells look like noise. A fifth still are uniform: poses are
# decided at the highest sigmas, and with half as many there (0.7, 1.1, 0.1) a fish had two tails in three of four seeds.
LOG_SIGMA_MEAN, LOG_SIGMA_STD, UNIFORM_SHARE = 0.9, 1.2, 0.2
MAX_WEIGHT = 25.0
CELLS = SIDE // VAE_FACTOR
# Weight of a cell with a subject in it: scenery is most of an image, but the smaller part of its meaning.
SUBJECT_WEIGHT = 3.0
CAPTION_DROPOUT = 0.1  # share of captions dropped, for classifier-free guidance
STEPS = 10  # sampling steps of contact sheets
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "steps_offset": 1, "set_alpha_to_one": True, "clip_sample": False,
}  # fmt: skip


def beta_at(timestep: int) -> float:
    """Return the schedule's beta at this timestep, also beyond its end."""
    first, last = (SCHEDULER[name] ** 0.5 for name in ("beta_start", "beta_end"))
    return (first + (last - first) * timestep / (SCHEDULER["num_train_timesteps"] - 1)) ** 2


REPORT_PROMPTS = ("a red fish over the sea", "a cartoon of a blue car in a city", "a green rabbit in the snow", "a sketch of a purple robot in a room",
         "a clay model of a yellow elephant in a meadow", "a paper cutout of an orange rocket in space", "a pink balloon in the desert", "a brown cat and a red ball in a forest")  # fmt: skip


def train_unet(
    net: UNet2DConditionModel, plan: StagePlan, folder: Path, pool: Pool,
    *, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> UNet2DConditionModel:  # fmt: skip
    """Train the U-Net on the pool; return it with averaged weights."""
    schedule = Schedule.from_config(SCHEDULER)
    latents = load_latents(folder, vae, pool)
    sample_batch = unet_batches(
        latents,
        tokenize_captions(pool, tokenizer),
        cell_weights(pool),
        schedule,
        plan.batch,
        tokenize(tokenizer, [""])[0],
    )
    return train_unet_on(
        net, plan, folder, sample_batch, unet_report(folder, schedule, vae, text, tokenizer), text=text
    )


def train_unet_on(
    net: UNet2DConditionModel, plan: StagePlan, folder: Path, sample_batch: SampleBatch,
    report: Callable[[UNet2DConditionModel], Metrics], *, text: CLIPTextModel,
) -> UNet2DConditionModel:  # fmt: skip
    """Train the U-Net on these batches; return it with averaged weights."""
    net.set_attn_processor(AttnProcessor())  # with torch's fused attention a step takes half as long again on a CPU
    text.set_attn_implementation("eager")
    device = best_device()
    ready = use_fast_group_norm(net).to(device, memory_format=torch.channels_last)
    text.to(device)
    return train_loop(
        ready, plan, folder, sample_batch=sample_batch, loss=partial(image_noise_loss, text), report=report
    )


def load_latents(folder: Path, vae: AutoencoderKL, pool: Pool) -> np.ndarray:
    """Return the scaled latents of all images, float16 [n, c, h, w], encoded once."""
    path, part_file = folder / "latents.npy", folder / "latents.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scale = vae.config["scaling_factor"]
        parts = range(0, len(pool.items), 64)
        parts_of_latents = [(scale * encode_images(vae, pool.items[k : k + 64])).half().numpy() for k in parts]
        with part_file.open("wb") as file:
            np.save(file, np.concatenate(parts_of_latents))
        part_file.replace(path)
    return np.load(path)


def cell_weights(pool: Pool) -> np.ndarray:
    """Return the weight of each cell's error, float32 [images, side, side], of mean 1 in an image."""
    return weights_from_cells(np.stack([subject_cells(fact, CELLS) for fact in pool.facts]))


def weights_from_cells(subjects: np.ndarray) -> np.ndarray:
    """Return the weight of each cell's error from the index of the subject in it, -1 for none."""
    weights = np.where(subjects >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    return weights / weights.mean((1, 2), keepdims=True)


def unet_batches(
    latents: np.ndarray, words: np.ndarray, weights: np.ndarray, schedule: Schedule, batch: int, empty_caption: np.ndarray,
    *others: np.ndarray,
) -> SampleBatch:  # fmt: skip
    """Return a sampler of (latents, noise, cell weights, timestep, signal a_t, sigma, tokens, other inputs)."""

    def fetch(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        return (latents[chosen], words[chosen], weights[chosen], *(each[chosen] for each in others))

    return unet_batches_from(fetch, lambda progress: len(latents), schedule, batch, empty_caption)


def unet_batches_from(
    fetch: Callable[[np.ndarray], tuple[np.ndarray, ...]], count: Callable[[float], int], schedule: Schedule,
    batch: int, empty_caption: np.ndarray,
) -> SampleBatch:  # fmt: skip
    """Return a sampler like `unet_batches`, of images that are fetched by their indices.

    Args:
        fetch: indices of images to their latents, captions as tokens [n, captions, tokens], weights, other inputs.
        count: the number of images available at a progress.
    """
    table, norms = np.array(schedule.sigmas), np.array(schedule.norms)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        latents, words, weights, *others = fetch(rng.integers(count(progress), size=batch))
        captions_of_batch = words[np.arange(batch), rng.integers(words.shape[1], size=batch)]
        captions_of_batch[rng.uniform(size=batch) < CAPTION_DROPOUT] = empty_caption
        sigmas_wanted = np.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * rng.standard_normal(batch))
        nearest = np.searchsorted(table, sigmas_wanted).clip(0, len(table) - 1)
        t = np.where(rng.uniform(size=batch) < UNIFORM_SHARE, rng.integers(len(table), size=batch), nearest)
        sigma = table[t]
        noise = rng.standard_normal((batch, *latents.shape[1:]), np.float32)
        numbers = (t, norms[t] / np.hypot(1, sigma), sigma)
        return (
            torch.from_numpy(latents.astype(np.float32)), torch.from_numpy(noise), torch.from_numpy(weights),
            *(torch.from_numpy(n.astype(np.float32)) for n in numbers), torch.from_numpy(captions_of_batch.astype(np.int64)),
            *(torch.from_numpy(each) for each in others),
        )  # fmt: skip

    return sample_batch


def image_noise_loss(text: CLIPTextModel, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the squared error of the predicted noise, weighted by 1 + sigma^2.

    With this weight an error of the image counts alike at all high sigmas (Salimans & Ho 2022, the "SNR + 1" weighting of
    section 4).
    """
    x0, noise, weight, t, scale, sigma, words, *others = batch
    with torch.no_grad():
        text_states = text(words).last_hidden_state
    sigma_map = sigma[:, None, None, None]
    z = (scale[:, None, None, None] * (x0 + sigma_map * noise)).to(memory_format=torch.channels_last)
    error = ((net(z, t, text_states, *others).sample.float() - noise).square().mean(1) * weight).mean((1, 2))
    return {"noise": ((1 + sigma**2).clamp(max=MAX_WEIGHT) * error).mean()}


def unet_report(
    folder: Path, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[UNet2DConditionModel], Metrics]:
    """Return a report that saves a contact sheet of eight prompts, always from the same noise."""

    @torch.no_grad()
    def report(net: UNet2DConditionModel) -> Metrics:
        latents = sample_images(
            net, schedule, text, tokenize(tokenizer, REPORT_PROMPTS), tokenize(tokenizer, [""] * len(REPORT_PROMPTS))
        )
        images = to_uint8(decode_latents(vae, latents / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", images)
        return {"spread": float(latents.std())}

    return report


def sample_images(
    net: nn.Module,
    schedule: Schedule,
    text: CLIPTextModel,
    captions: np.ndarray,
    empty_captions: np.ndarray,
    *others: Tensor,
    scale: float = 5.0,
    steps: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return latents [n, c, h, w] sampled from tokens by DPM-Solver++ (2M) with classifier-free guidance."""
    device = next(net.parameters()).device

    def network_for(words: np.ndarray) -> Callable[[Latents, Tensor], Latents]:
        states = text(torch.from_numpy(words.astype(np.int64)).to(device)).last_hidden_state

        def network(z: Latents, t: Tensor) -> Latents:
            with bf16_autocast(device):
                return net(z[:, 0].to(device), t.to(device), states, *others).sample.float().cpu()[:, None]

        return network

    denoise = classifier_free_guidance(
        schedule.denoise(network_for(captions)), schedule.denoise(network_for(empty_captions)), scale
    )
    sigmas = leading(schedule.sigmas, steps or STEPS)
    if noise is None:
        noise = independent(0, [0], (len(captions), LATENT_CHANNELS, CELLS, CELLS))
    return final_latents(dpmpp_2m(denoise, sigmas[0] * noise, sigmas))[:, 0]
