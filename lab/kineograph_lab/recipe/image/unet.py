"""Stage 3: the U-Net, on latents made once, told by the text tower, which learns no more."""

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
from kineograph_lab.recipe.image import vae as autoencoder
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, bf16_autocast, train_loop
from kineograph_lab.recipe.networks import LATENT_CHANNELS, SIDE, VAE_FACTOR, tokenize
from kineograph_lab.recipe.pool import Pool, subject_cells

# Where training looks: levels between 0.7 and 6 decide what a thing is; uniform timesteps would spend a third of their
# images above 4, where latents of 16 x 16 cells are noise to the eye. A fifth still are uniform: poses are decided at the
# top, and with half as many there (0.7, 1.1, 0.1) a fish had two tails in three of four seeds.
LOG_SIGMA_MEAN, LOG_SIGMA_STD, UNIFORM_SHARE = 0.9, 1.2, 0.2
MAX_WEIGHT = 25.0
CELLS = SIDE // VAE_FACTOR
SUBJECT_WEIGHT = (
    3.0  # weight of a cell with a thing in it: scenery is most of a picture, and the smaller part of its meaning
)
CAPTION_DROPOUT = 0.1  # share of captions dropped, for guidance
STEPS = 10  # of the solver that draws what a sheet shows
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def beta_at(timestep: int) -> float:
    """The schedule's beta at this timestep, also beyond its end."""
    first, last = (SCHEDULER[name] ** 0.5 for name in ("beta_start", "beta_end"))
    return (first + (last - first) * timestep / (SCHEDULER["num_train_timesteps"] - 1)) ** 2


REPORT_PROMPTS = ("a red fish over the sea", "a cartoon of a blue car in a city", "a green rabbit in the snow", "a sketch of a purple robot in a room",
         "a clay model of a yellow elephant in a meadow", "a paper cutout of an orange rocket in space", "a pink balloon in the desert", "a brown cat and a red ball in a forest")  # fmt: skip


def train_unet(
    net: UNet2DConditionModel, plan: StagePlan, folder: Path, pool: Pool,
    *, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> UNet2DConditionModel:  # fmt: skip
    """The averaged U-Net."""
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
    """Return the U-Net trained on these batches, averaged."""
    net.set_attn_processor(AttnProcessor())  # with torch's fused attention a step takes half as long again on a CPU
    text.set_attn_implementation("eager")
    device = best_device()
    ready = use_fast_group_norm(net).to(device, memory_format=torch.channels_last)
    text.to(device)
    return train_loop(
        ready, plan, folder, sample_batch=sample_batch, loss=partial(image_noise_loss, text), report=report
    )


def load_latents(folder: Path, vae: AutoencoderKL, pool: Pool) -> np.ndarray:
    """The scaled latents of all pictures: float16 [n, c, h, w], made once."""
    path, beside = folder / "latents.npy", folder / "latents.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scale = vae.config["scaling_factor"]
        parts = range(0, len(pool.pictures), 64)
        made = [(scale * autoencoder.encode_images(vae, pool.pictures[k : k + 64])).half().numpy() for k in parts]
        with beside.open("wb") as file:
            np.save(file, np.concatenate(made))
        beside.replace(path)
    return np.load(path)


def cell_weights(pool: Pool) -> np.ndarray:
    """What each cell's error weighs: float32 [pictures, side, side], of mean 1 in a picture."""
    return weights_from_cells(np.stack([subject_cells(fact, CELLS) for fact in pool.facts]))


def weights_from_cells(there: np.ndarray) -> np.ndarray:
    """Return the weight of each cell's error from the number of the subject in it, -1 for none."""
    weights = np.where(there >= 0, np.float32(SUBJECT_WEIGHT), np.float32(1))
    return weights / weights.mean((1, 2), keepdims=True)


def unet_batches(
    latents: np.ndarray, words: np.ndarray, weights: np.ndarray, schedule: Schedule, batch: int, untold: np.ndarray,
    *beside: np.ndarray,
) -> SampleBatch:  # fmt: skip
    """Batches of (latents, noise, weights of their cells, timestep, signal a_t, sigma, words, what stands beside)."""

    def fetch(chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        return (latents[chosen], words[chosen], weights[chosen], *(each[chosen] for each in beside))

    return unet_batches_from(fetch, lambda progress: len(latents), schedule, batch, untold)


def unet_batches_from(
    fetch: Callable[[np.ndarray], tuple[np.ndarray, ...]], count: Callable[[float], int], schedule: Schedule,
    batch: int, untold: np.ndarray,
) -> SampleBatch:  # fmt: skip
    """Return batches as `draws` has them, of images that are fetched by their numbers.

    Args:
        fetch: images' numbers to their latents, captions as tokens [n, captions, words], weights, what stands beside.
        count: the number of images there are at this progress.
    """
    table, norms = np.array(schedule.sigmas), np.array(schedule.norms)

    def sample_batch(rng: np.random.Generator, progress: float) -> Batch:
        latents, words, weights, *beside = fetch(rng.integers(count(progress), size=batch))
        told = words[np.arange(batch), rng.integers(words.shape[1], size=batch)]
        told[rng.uniform(size=batch) < CAPTION_DROPOUT] = untold
        wanted = np.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * rng.standard_normal(batch))
        near = np.searchsorted(table, wanted).clip(0, len(table) - 1)
        t = np.where(rng.uniform(size=batch) < UNIFORM_SHARE, rng.integers(len(table), size=batch), near)
        sigma = table[t]
        noise = rng.standard_normal((batch, *latents.shape[1:]), np.float32)
        numbers = (t, norms[t] / np.hypot(1, sigma), sigma)
        return (
            torch.from_numpy(latents.astype(np.float32)), torch.from_numpy(noise), torch.from_numpy(weights),
            *(torch.from_numpy(n.astype(np.float32)) for n in numbers), torch.from_numpy(told.astype(np.int64)),
            *(torch.from_numpy(each) for each in beside),
        )  # fmt: skip

    return sample_batch


def image_noise_loss(text: CLIPTextModel, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise, weighted by 1 + sigma^2: then an error of the picture weighs alike at
    all high levels (Salimans & Ho 2022, the "SNR + 1" weighting of section 4)."""
    x0, noise, weight, t, a, sigma, words, *beside = batch
    with torch.no_grad():
        told = text(words).last_hidden_state
    level = sigma[:, None, None, None]
    z = (a[:, None, None, None] * (x0 + level * noise)).to(memory_format=torch.channels_last)
    error = ((net(z, t, told, *beside).sample.float() - noise).square().mean(1) * weight).mean((1, 2))
    return {"noise": ((1 + sigma**2).clamp(max=MAX_WEIGHT) * error).mean()}


def unet_report(
    folder: Path, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[UNet2DConditionModel], Metrics]:
    """A sheet of pictures drawn from eight prompts with always the same noise."""

    @torch.no_grad()
    def report(net: UNet2DConditionModel) -> Metrics:
        drawn = sample_images(
            net, schedule, text, tokenize(tokenizer, REPORT_PROMPTS), tokenize(tokenizer, [""] * len(REPORT_PROMPTS))
        )
        pictures = to_uint8(autoencoder.decode_latents(vae, drawn / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", pictures)
        return {"spread": float(drawn.std())}

    return report


def sample_images(
    net: nn.Module,
    schedule: Schedule,
    text: CLIPTextModel,
    told: np.ndarray,
    untold: np.ndarray,
    *beside: Tensor,
    scale: float = 5.0,
    steps: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Latents [n, c, h, w] of pictures from tokens, by guided steps of DPM-Solver++."""
    device = next(net.parameters()).device

    def bound(words: np.ndarray) -> Callable[[Latents, Tensor], Latents]:
        states = text(torch.from_numpy(words.astype(np.int64)).to(device)).last_hidden_state

        def network(z: Latents, t: Tensor) -> Latents:
            with bf16_autocast(device):
                return net(z[:, 0].to(device), t.to(device), states, *beside).sample.float().cpu()[:, None]

        return network

    look = classifier_free_guidance(schedule.denoise(bound(told)), schedule.denoise(bound(untold)), scale)
    sigmas = leading(schedule.sigmas, steps or STEPS)
    if noise is None:
        noise = independent(0, [0], (len(told), LATENT_CHANNELS, CELLS, CELLS))
    return final_latents(dpmpp_2m(look, sigmas[0] * noise, sigmas))[:, 0]
