"""Batches and losses of a customisation: each sample is an image of the subject and one of the prior.

Everything random depends on the seed and the number of the sample, so that it does not matter how a step is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kineograph import noise
from kineograph.latents import Latents
from kineograph.methods import dreambooth, still_moving, videocrafter
from kineograph.models import schedule
from kineograph.models.conditioning.condition import Condition
from kineograph.models.conditioning.text_encoder import TextEncoder, encode_text
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.request import VIDEO_MODEL_FPS
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.settings import ErrorKind, ImageCustomisationSettings
from kineograph.training.gradients import LoadBatch, LossFunction
from kineograph.training.temporal_layers.batches import SampleTimesteps

# Streams of random numbers of one seed, different from those of other trainings.
ORDER_STREAM, SAMPLE_STREAM = 31, 32
MAX_WEIGHT = 25.0  # of any sigma: near pure noise there is nothing to learn


class TrainingSample(NamedTuple):
    """An image or video of a training, as latents: its crops and mirror images, and its caption."""

    views: tuple[Float[Tensor, "f c h w"], ...]
    caption: str


class CustomisationBatch(NamedTuple):
    """Clean latents with their timesteps and prompts: those of the first part, then as many of the second."""

    x0: Latents
    timesteps: Int[Tensor, " n"]
    prompts: tuple[str, ...]


EncodePrompts = Callable[[nn.Module, Sequence[str]], Condition]  # (trained network, prompts) -> condition
NoiseOfBatch = Callable[[int, Latents], Latents]  # (seed of the first sample, x0) -> noise


def sample_batch_loader(
    parts: Sequence[Sequence[TrainingSample]], seed: int, dropout: float, sample_timesteps: SampleTimesteps
) -> LoadBatch[CustomisationBatch]:
    """Return the function that loads the samples of a step, for `training.fit`.

    Args:
        parts: images or videos of the subject, and those of the prior if there are any. Each is used equally often.
        dropout: how often a caption is left out.
    """

    def load(step: int, samples: range) -> CustomisationBatch:
        chosen = [_choose(part, number, sample) for number, part in enumerate(parts) for sample in samples]
        views, timesteps, prompts = zip(*chosen, strict=True)
        return CustomisationBatch(torch.stack(views), torch.tensor(timesteps), prompts)

    def _choose(part: Sequence[TrainingSample], number: int, sample: int) -> tuple[Tensor, int, str]:
        rng = np.random.default_rng((SAMPLE_STREAM, seed, sample, number))
        one = part[_index(len(part), seed, sample, number)]
        view = one.views[int(rng.integers(len(one.views)))]
        prompt = "" if rng.uniform() < dropout else one.caption
        return view, int(sample_timesteps(rng, 1)[0]), prompt

    return load


def _index(count: int, seed: int, sample: int, part: int) -> int:
    """Return the index of a sample's image: each occurs once, in random order, before any is repeated."""
    epoch, position = divmod(sample, count)
    return int(np.random.default_rng((ORDER_STREAM, seed, epoch, part)).permutation(count)[position])


def precomputed_conditions(
    model: Model, prompts: Sequence[str], size: tuple[int, int], fps: float = VIDEO_MODEL_FPS
) -> EncodePrompts:
    """Return the function that looks up the conditions of these prompts, which are encoded once."""
    numbers = {each: number for number, each in enumerate(dict.fromkeys(prompts))}
    encoded = model.prompt(list(numbers), size=size, fps=fps, prompt_weights="off")

    def encode(net: nn.Module, prompts: Sequence[str]) -> Condition:
        chosen = [numbers[each] for each in prompts]
        embedding = None if encoded.embedding is None else encoded.embedding[chosen].float()
        return Condition(encoded.tokens[chosen].float(), embedding=embedding)

    return encode


def trained_conditions(model: Model) -> EncodePrompts:
    """Return the function that encodes prompts with the text encoder in training. It is safe in several threads."""
    lock = Lock()  # a tokenizer is not thread-safe

    def encode(net: nn.Module, prompts: Sequence[str]) -> Condition:
        assert isinstance(net, TrainedNetworks) and net.text is not None, "it is trained"
        with lock:
            encoder = TextEncoder(model.text_encoders[0].tokenizer, net.text)
            return Condition(encode_text(encoder, prompts, model.clip_skip))

    return encode


def dreambooth_loss(
    model: Model, settings: ImageCustomisationSettings, encode_prompts: EncodePrompts
) -> LossFunction[TrainedNetworks, CustomisationBatch]:
    """Return DreamBooth's loss for `training.fit`. The two images of a sample have the noises of two frames."""
    parts = 2 if settings.prior_weight else 1
    weights_of = WEIGHTS[settings.error]

    def loss(networks: TrainedNetworks, batch: CustomisationBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0 = batch.x0
        fresh = noise.independent(seed, range(parts), (len(x0) // parts, *x0.shape[2:]))

        def errors(condition: Condition, x0: Latents, eps: Latents, timesteps: Tensor) -> Float[Tensor, " n"]:
            error = videocrafter.loss(networks.unet, model.schedule, condition, x0, eps, timesteps)
            return weights_of(model.schedule, timesteps) * error

        return dreambooth.loss(
            errors,
            encode_prompts(networks, batch.prompts),
            x0,
            fresh.transpose(0, 1).reshape(x0.shape).to(x0),
            batch.timesteps,
            prior_weight=settings.prior_weight,
        )

    return loss


def still_moving_loss(
    model: Model,
    error: ErrorKind,
    encode_prompts: EncodePrompts,
    parts: Mapping[str, tuple[float, float]],
    noise_of: NoiseOfBatch,
) -> LossFunction[VideoUNet, CustomisationBatch]:
    """Return Still-Moving's loss for `training.fit`.

    parts: parts of a batch, in order and of equal size: name -> scale of the motion adapter, weight of the loss.
    """
    weights_of = WEIGHTS[error]
    scales, factors = zip(*parts.values(), strict=True)

    def loss(net: VideoUNet, batch: CustomisationBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0 = batch.x0
        motion_scale = torch.tensor(scales, device=x0.device).repeat_interleave(len(x0) // len(parts))
        condition = encode_prompts(net, batch.prompts)
        fresh = noise_of(seed, x0).to(x0)
        off = still_moving.loss(net, model.schedule, condition, x0, fresh, batch.timesteps, motion_scale)
        errors = (weights_of(model.schedule, batch.timesteps) * off).chunk(len(parts))
        return {name: factor * each.mean() for name, factor, each in zip(parts, factors, errors, strict=True)}

    return loss


def uniform_weights(schedule: Schedule, timesteps: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the weight 1 for every timestep: the error of the network's own prediction."""
    return torch.ones(len(timesteps), device=timesteps.device)


def v_weights(levels: Schedule, timesteps: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the weights that turn the error of a predicted epsilon into that of v: 1 + sigma^2, at most `MAX_WEIGHT`.

    An error of x0 then has the same weight at all high sigmas (Salimans & Ho 2022, section 4, "SNR + 1").
    """
    if levels.parameterisation is not schedule.epsilon:
        return uniform_weights(levels, timesteps)
    sigma = torch.tensor(levels.sigmas, device=timesteps.device)[timesteps]
    return (1 + sigma.square()).clamp(max=MAX_WEIGHT)


WEIGHTS: Mapping[ErrorKind, Callable[[Schedule, Tensor], Float[Tensor, " n"]]] = {
    "predicted": uniform_weights,
    "v": v_weights,
}
