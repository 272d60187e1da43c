"""The same training steps taken by us and by a plain loop around diffusers' UNetMotionModel: the motion modules learn,
on the same latents, texts, noises and timesteps. What comes out is what the trained network makes of noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNetMotionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from kineograph.condition import Condition
from kineograph.latents import Latents
from kineograph.methods import videocrafter
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement, parse_dtype
from kineograph.models.schedule import epsilon
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training import TrainingSettings, fit
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.bench.animatediff import adapter
from kineograph_lab.bench.text2video_zero import PROMPT, SEED, Draw

VIDEOS, RATE, SHOWN_AT = 2, 1e-4, 500  # videos a step, learning rate, and the timestep of what is shown


class Lesson(NamedTuple):
    """One step's videos, clean; their noises, timesteps and texts."""

    x0: Latents
    noise: Latents
    timesteps: Tensor
    tokens: Tensor


def lesson(model: Model, frames: int, samples: range) -> Lesson:
    """The samples of these numbers, the same on both sides."""
    shape = (frames, *model.latent_shape(*model.default_size))
    draws = [torch.Generator().manual_seed(SEED + number) for number in samples]
    clean, noise = (torch.stack([torch.randn(shape, generator=draw) for draw in draws]) for _ in range(2))
    timesteps = torch.stack([torch.randint(1000, (), generator=draw) for draw in draws])
    return Lesson(clean, noise, timesteps, model.prompt([PROMPT] * len(samples)).tokens.cpu())


def ours(folder: Path, dtype: str) -> Draw:
    """`kineograph.training.fit`, as `kineograph train` has it."""
    model = load(folder, motion=adapter(folder), dtype="float32")
    net = use_fast_group_norm(model.net) if model.device.type == "cpu" else model.net
    for name, weight in net.named_parameters():
        weight.requires_grad_(name.startswith("temporal."))
    start = {name: weight.clone() for name, weight in net.state_dict().items()}

    def loss(net: VideoUNet, step: Lesson, seed: int) -> dict[str, Tensor]:
        told = Condition(step.tokens)
        return {"noise": videocrafter.loss(net, model.schedule, told, *step[:3]).mean()}

    def draw(frames: int, steps: int) -> Frames:
        net.load_state_dict(start)
        settings = TrainingSettings.model_validate(_settings(dtype, steps))
        with TemporaryDirectory() as out:
            for _ in fit(
                net, settings, Path(out), load_batch=lambda _, samples: lesson(model, frames, samples), loss=loss
            ):
                pass
        shown = lesson(model, frames, range(1))
        t = torch.tensor(float(SHOWN_AT))
        return _pictures(lambda z: net(z, t, Condition(shown.tokens)), shown, model, model.vae)

    return draw


def theirs(folder: Path, dtype: str) -> Draw:
    """A plain loop, as diffusers' training scripts have it."""
    model = load(folder, motion=adapter(folder), dtype="float32")
    device = choose_placement().device
    net = UNetMotionModel.from_unet2d(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), adapter(folder))
    net.freeze_unet2d_params()
    net = net.float().to(device).train()
    start = {name: weight.clone() for name, weight in net.state_dict().items()}
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").to(device)
    half = partial(torch.autocast, device.type, torch.bfloat16) if parse_dtype(dtype) == torch.bfloat16 else nullcontext

    def draw(frames: int, steps: int) -> Frames:
        net.load_state_dict(start)
        learnt = [weight for weight in net.parameters() if weight.requires_grad]
        way = torch.optim.AdamW(learnt, RATE, weight_decay=0.01)
        for step in range(steps):
            taken = lesson(model, frames, range(step * VIDEOS, (step + 1) * VIDEOS))
            x0, noise, t, tokens = (each.to(device) for each in taken)
            z, _ = model.schedule.add_noise(x0, noise, t)
            with half():
                predicted = net(z.transpose(1, 2), t, tokens.repeat_interleave(frames, dim=0)).sample.transpose(1, 2)
            mse_loss(predicted.float(), noise).backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            way.step()
            way.zero_grad()
        shown = lesson(model, frames, range(1))
        told = shown.tokens.to(device).repeat_interleave(frames, dim=0)
        return _pictures(lambda z: net(z.transpose(1, 2), SHOWN_AT, told).sample.transpose(1, 2), shown, model, vae)

    return draw


SIDES: Mapping[str, Callable[[Path, str], Draw]] = {"ours": ours, "theirs": theirs}


def _settings(dtype: str, steps: int) -> dict[str, object]:
    """The loop's, in the words of our settings."""
    return {
        "max_train_steps": steps, "train_batch_size": VIDEOS, "learning_rate": RATE, "ema_decay": 0.0,
        "mixed_precision": "bf16" if parse_dtype(dtype) == torch.bfloat16 else "no", "seed": SEED,
        "checkpointing_steps": steps, "log_every": steps,
    }  # fmt: skip


@torch.no_grad()
def _pictures(network: Callable[[Latents], Latents], shown: Lesson, model: Model, vae: AutoencoderKL) -> Frames:
    """What the network makes of one noisy video, as frames."""
    sigma = model.schedule.sigmas[SHOWN_AT]
    a = model.schedule.scale(sigma)
    x = (shown.x0 + sigma * shown.noise).to(model.device)
    x0 = epsilon(x, network(a * x).float(), a, a * sigma)
    frames = vae.decode(x0[0] / vae.config.scaling_factor).sample.cpu()
    return (255 * (frames / 2 + 0.5).clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
