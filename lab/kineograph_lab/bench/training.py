"""Training of motion modules by this library and by a plain loop around diffusers' UNetMotionModel.

Both sides use the same latents, texts, noises and timesteps. The frames are the trained network's prediction from a
noisy video.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.functional import mse_loss

from kineograph.latents import Latents
from kineograph.methods import videocrafter
from kineograph.metrics.features import Frames
from kineograph.models.conditioning.condition import Condition
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.schedule import epsilon
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training import TrainingSettings, fit
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.bench.animatediff import random_motion_adapter
from kineograph_lab.bench.text2video_zero import PROMPT, SEED, Engine, GenerateFrames, Sides
from kineograph_lab.bench.timing import Variant, threads

VIDEOS, LEARNING_RATE, SHOWN_TIMESTEP = 2, 1e-4, 500  # videos a step, learning rate, timestep of the prediction


class TrainingBatch(NamedTuple):
    """Clean videos of one step, their noises, timesteps and text tokens."""

    x0: Latents
    noise: Latents
    timesteps: Tensor
    tokens: Tensor


def training_batch(model: Model, frames: int, samples: range) -> TrainingBatch:
    """Return the samples of these numbers, the same for both sides."""
    shape = (frames, *model.latent_shape(*model.default_size))
    generators = [torch.Generator().manual_seed(SEED + number) for number in samples]
    clean, noise = (torch.stack([torch.randn(shape, generator=each) for each in generators]) for _ in range(2))
    timesteps = torch.stack([torch.randint(1000, (), generator=each) for each in generators])
    return TrainingBatch(clean, noise, timesteps, model.prompt([PROMPT] * len(samples)).tokens.cpu())


def _load_ours(folder: Path, dtype: str, engine: Engine) -> GenerateFrames:
    """Load this library's side: `kineograph.training`, as `kineograph train` runs it; always by torch."""
    assert engine == "torch"
    model = load(folder, motion_module=random_motion_adapter(folder), dtype="float32")
    net = use_fast_group_norm(model.net) if model.device.type == "cpu" else model.net
    for name, weight in net.named_parameters():
        weight.requires_grad_(name.startswith("temporal."))
    start = {name: weight.clone() for name, weight in net.state_dict().items()}

    def loss(net: VideoUNet, step: TrainingBatch, seed: int) -> dict[str, Tensor]:
        tokens = Condition(step.tokens)
        return {"noise": videocrafter.loss(net, model.schedule, tokens, *step[:3]).mean()}

    def generate(frames: int, steps: int) -> Frames:
        net.load_state_dict(start)
        settings = TrainingSettings.model_validate(_settings(dtype, steps))
        with TemporaryDirectory() as out:
            for _ in fit(
                net,
                settings,
                Path(out),
                load_batch=lambda _, samples: training_batch(model, frames, samples),
                loss=loss,
            ):
                pass
        sample = training_batch(model, frames, range(1))
        t = torch.tensor(float(SHOWN_TIMESTEP))
        return _predict_frames(lambda z: net(z, t, Condition(sample.tokens)), sample, model, model.vae)

    return generate


def _load_theirs(folder: Path, variant: Variant) -> GenerateFrames:
    """Load diffusers' side: a plain loop, as in its training scripts."""
    dtype = variant.dtype
    model = load(folder, motion_module=random_motion_adapter(folder), dtype="float32")
    device = choose_placement().device
    net = UNetMotionModel.from_unet2d(
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), random_motion_adapter(folder)
    )
    net.freeze_unet2d_params()
    net = net.float().to(device).train()
    if variant.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if variant.attention == "plain":
        net.set_attn_processor(AttnProcessor())
    start = {name: weight.clone() for name, weight in net.state_dict().items()}
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(device)
    autocast = (
        partial(torch.autocast, device.type, torch.bfloat16) if parse_dtype(dtype) == torch.bfloat16 else nullcontext
    )

    def generate(frames: int, steps: int) -> Frames:
        net.load_state_dict(start)
        trained = [weight for weight in net.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0.01)
        with threads(variant.threads):
            for step in range(steps):
                batch = training_batch(model, frames, range(step * VIDEOS, (step + 1) * VIDEOS))
                x0, noise, t, tokens = (each.to(device) for each in batch)
                z, _ = model.schedule.add_noise(x0, noise, t)
                with autocast():
                    output = net(z.transpose(1, 2), t, tokens.repeat_interleave(frames, dim=0)).sample.transpose(1, 2)
                mse_loss(output.float(), noise).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
        sample = training_batch(model, frames, range(1))
        tokens = sample.tokens.to(device).repeat_interleave(frames, dim=0)
        return _predict_frames(
            lambda z: net(z.transpose(1, 2), SHOWN_TIMESTEP, tokens).sample.transpose(1, 2), sample, model, vae
        )

    return generate


SIDES = Sides(_load_ours, _load_theirs)


def _settings(dtype: str, steps: int) -> dict[str, object]:
    return {
        "max_train_steps": steps, "train_batch_size": VIDEOS, "learning_rate": LEARNING_RATE, "ema_decay": 0.0,
        "mixed_precision": "bf16" if parse_dtype(dtype) == torch.bfloat16 else "no", "seed": SEED,
        "checkpointing_steps": steps, "log_every": steps,
    }  # fmt: skip


@torch.no_grad()
def _predict_frames(
    network: Callable[[Latents], Latents], sample: TrainingBatch, model: Model, vae: AutoencoderKL
) -> Frames:
    """Decode the network's prediction from a noisy video."""
    sigma = model.schedule.sigmas[SHOWN_TIMESTEP]
    a = model.schedule.scale(sigma)
    x = (sample.x0 + sigma * sample.noise).to(model.device)
    x0 = epsilon(x, network(a * x).float(), a, a * sigma)
    frames = vae.decode(x0[0] / vae.config.scaling_factor).sample.cpu()
    return (255 * (frames / 2 + 0.5).clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
