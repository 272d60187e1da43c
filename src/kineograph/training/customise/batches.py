"""What a step of a customising sees, and the loss of it: each sample is a picture of the subject and one of the prior.

Everything random is told by the seed and the number of the sample, so that it does not matter how a step is shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kineograph import noise
from kineograph.condition import Condition
from kineograph.latents import Latents
from kineograph.methods import dreambooth
from kineograph.models import schedule
from kineograph.models.conditioning import text_encoder
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.model import VIDEO_MODEL_FPS, Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.networks import TrainedNetworks
from kineograph.training.customise.settings import ImageCustomisationSettings
from kineograph.training.temporal_layers.batches import SampleTimesteps

ORDER, SAMPLE = 31, 32  # streams of random numbers of one seed, beside those of other recipes
SUBJECT, PRIOR = 0, 1  # parts of a sample, and the numbers of their noise
MAX_WEIGHT = 25.0  # no level weighs more: near pure noise there is nothing to be learnt


class TrainingSample(NamedTuple):
    """A picture or a video as training sees it: its cuts and mirror images, as latents, and its caption."""

    views: tuple[Float[Tensor, "f c h w"], ...]
    caption: str


class CustomisationBatch(NamedTuple):
    """Clean latents with their noise levels and what is told of them: the subject's, then as many of the prior."""

    x0: Latents
    timesteps: Int[Tensor, " n"]
    texts: tuple[str, ...]


class Chosen(NamedTuple):
    """One picture of a batch."""

    view: Float[Tensor, "f c h w"]
    timestep: int
    text: str


Draw = Callable[[int, range], CustomisationBatch]
EncodePrompts = Callable[[nn.Module, Sequence[str]], Condition]


def sample_batch_loader(
    parts: Sequence[Sequence[TrainingSample]], seed: int, dropout: float, timesteps: SampleTimesteps
) -> Draw:
    """The function that draws the samples of a step, as `training.fit` wants it.

    parts: the subject's pictures, and the prior's if there are any. Each is seen equally often.
    dropout: how often nothing is told of a picture.
    """

    def draw(step: int, samples: range) -> CustomisationBatch:
        chosen = [
            _chosen(shown, np.random.default_rng((SAMPLE, seed, sample, part)), _place(len(shown), seed, sample, part))
            for part, shown in enumerate(parts)
            for sample in samples
        ]
        views, levels, texts = zip(*chosen, strict=True)
        return CustomisationBatch(torch.stack(views), torch.tensor(levels), texts)

    def _chosen(shown: Sequence[TrainingSample], rng: np.random.Generator, place: int) -> Chosen:
        one = shown[place]
        view = one.views[int(rng.integers(len(one.views)))]
        said = "" if rng.uniform() < dropout else one.caption
        return Chosen(view, int(timesteps(rng, 1)[0]), said)

    return draw


def _place(count: int, seed: int, sample: int, part: int) -> int:
    """Which picture a sample is of: all come once, in a random order, before any comes again."""
    turn, place = divmod(sample, count)
    return int(np.random.default_rng((ORDER, seed, turn, part)).permutation(count)[place])


def precomputed_conditions(
    model: Model, texts: Sequence[str], size: tuple[int, int], fps: float = VIDEO_MODEL_FPS
) -> EncodePrompts:
    """What a network is told of these texts, where the text encoder does not learn: read once."""
    places = {each: number for number, each in enumerate(dict.fromkeys(texts))}
    said = model.prompt(list(places), size=size, fps=fps)

    def tell(net: nn.Module, texts: Sequence[str]) -> Condition:
        chosen = [places[each] for each in texts]
        embedding = None if said.embedding is None else said.embedding[chosen].float()
        return Condition(said.tokens[chosen].float(), embedding=embedding)

    return tell


def trained_conditions(model: Model) -> EncodePrompts:
    """What it is told by the text encoder that learns. May be called by several threads."""
    one_at_a_time = Lock()  # a tokenizer may be asked by one only

    def tell(trainee: nn.Module, texts: Sequence[str]) -> Condition:
        assert isinstance(trainee, TrainedNetworks) and trainee.text is not None, "it is what learns"
        with one_at_a_time:
            return Condition(text_encoder.encode_text(TextEncoder(model.text[0].tokenizer, trainee.text), texts))

    return tell


def dreambooth_loss(
    model: Model, settings: ImageCustomisationSettings, tell: EncodePrompts
) -> Callable[[TrainedNetworks, CustomisationBatch, int], dict[str, Tensor]]:
    """The loss as `training.fit` wants it. The noise of a sample's two pictures is that of two frames of its seed."""
    parts = 2 if settings.prior_weight else 1
    measured = ERRORS[settings.error]

    def loss(trainee: TrainedNetworks, batch: CustomisationBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        x0 = batch.x0
        drawn = noise.independent(seed, range(parts), (len(x0) // parts, *x0.shape[2:]))
        return dreambooth.loss(
            partial(measured, trainee.unet, model.schedule),
            tell(trainee, batch.texts),
            x0,
            drawn.transpose(0, 1).reshape(x0.shape).to(x0),
            batch.timesteps,
            prior_weight=settings.prior_weight,
        )

    return loss


def prediction_error(
    net: VideoUNet, levels: Schedule, told: Condition, x0: Latents, noise: Latents, timesteps: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The squared error of what the network predicts of each picture, which is a video of one frame."""
    return levels.training_losses(lambda z, t: net(z, t, told), x0, noise, timesteps)


def v_error(
    net: VideoUNet, levels: Schedule, told: Condition, x0: Latents, noise: Latents, timesteps: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The same, told as that of v."""
    return v_weights(levels, timesteps) * prediction_error(net, levels, told, x0, noise, timesteps)


def uniform_weights(levels: Schedule, timesteps: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How much the error of what is predicted counts, as it is."""
    return torch.ones(len(timesteps), device=timesteps.device)


def v_weights(levels: Schedule, timesteps: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """And told as that of v: an error of the noise counts 1 + sigma^2 times.

    An error of the picture then weighs alike at all high levels (Salimans & Ho 2022, section 4, "SNR + 1").
    """
    if levels.parameterisation is not schedule.epsilon:
        return uniform_weights(levels, timesteps)
    sigma = torch.tensor(levels.sigmas, device=timesteps.device)[timesteps]
    return (1 + sigma.square()).clamp(max=MAX_WEIGHT)


ErrorFunction = Callable[[VideoUNet, Schedule, Condition, Latents, Latents, Tensor], Float[Tensor, " n"]]
ERRORS: Mapping[str, ErrorFunction] = {"predicted": prediction_error, "v": v_error}
WEIGHTS: Mapping[str, Callable[[Schedule, Tensor], Float[Tensor, " n"]]] = {
    "predicted": uniform_weights,
    "v": v_weights,
}
