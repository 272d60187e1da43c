"""What a step of VideoCrafter1's training sees, and the loss of it.

A step is all videos or all pictures, of which there are as many as the videos have frames, so that all steps cost
alike. Everything random is told by the seed, and the number of the step or of the sample.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from kineograph import noise
from kineograph.condition import Condition
from kineograph.latents import Latents
from kineograph.media.dataset_layouts import Kind
from kineograph.methods import videocrafter as method
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.temporal_layers.latents import EncodedClip
from kineograph.training.temporal_layers.settings import LogNormalSigmas
from kineograph.training.temporal_layers.sources import ClipLoader

Rng = np.random.Generator
SampleTimesteps = Callable[[Rng, int], Int[np.ndarray, " n"]]
EncodeCaptions = Callable[[Sequence[str], Sequence[float]], Condition]

PHASE, SAMPLE = 14, 15  # streams of random numbers of one seed, beside those of `sources`


class VideoBatch(NamedTuple):
    """Clean latents, what the network is told of them, and their noise levels. Pictures are videos of one frame.

    first: what a network is shown that is shown pictures. untold: which are told and shown nothing.
    """

    x0: Latents
    tokens: Tensor
    embedding: Tensor | None
    timesteps: Int[Tensor, " b"]
    untold: Bool[Tensor, " b"]
    first: UInt8[Tensor, "b 3 H W"] | None


Draw = Callable[[int, range], VideoBatch]


class StepKind(NamedTuple):
    """Which kind a step is, and how many of the kind were before it."""

    kind: Kind
    number: int


class BatchOptions(NamedTuple):
    """How steps are dealt: samples a step, frames of each, share of the steps that see pictures, captions left out."""

    batch: int
    num_frames: int
    image_share: float
    caption_dropout: float
    seed: int


def step_kind(seed: int, share: float, step: int) -> StepKind:
    """What a step is. Those that see pictures are spread evenly; the seed says where the first is."""
    phase = float(np.random.default_rng((PHASE, seed)).uniform())
    before, after = (math.floor(count * share + phase) for count in (step, step + 1))
    return StepKind("image", before) if after > before else StepKind("video", step - before)


def video_batch_loader(looks: Mapping[Kind, ClipLoader], deal: BatchOptions, timesteps: SampleTimesteps, told: EncodeCaptions) -> Draw:
    """The function that draws the samples of a step, as `training.fit` wants it."""

    def draw(step: int, samples: range) -> VideoBatch:
        kind, number = step_kind(deal.seed, deal.image_share, step)
        many = deal.num_frames if kind == "image" else 1
        first = step * deal.batch
        places = range((samples.start - first) * many, (samples.stop - first) * many)
        sights = [looks[kind](number, place, deal.batch * many) for place in places]
        chances = [np.random.default_rng((SAMPLE, deal.seed, sample)) for sample in samples]
        levels = np.concatenate([timesteps(rng, many) for rng in chances])
        untold = np.concatenate([rng.uniform(size=many) < deal.caption_dropout for rng in chances])
        return _batch(sights, levels, untold, told)

    return draw


def _batch(sights: Sequence[EncodedClip], levels: np.ndarray, untold: np.ndarray, told: EncodeCaptions) -> VideoBatch:
    texts = ["" if left_out else sight.caption for sight, left_out in zip(sights, untold, strict=True)]
    condition = told(texts, [sight.fps for sight in sights])
    first = [sight.first for sight in sights if sight.first is not None]
    return VideoBatch(
        torch.stack([sight.latents for sight in sights]),
        condition.tokens,
        condition.embedding,
        torch.from_numpy(levels.astype(np.int64)),
        torch.from_numpy(untold),
        torch.stack(first) if first else None,
    )


def timestep_sampler(levels: Literal["uniform"] | LogNormalSigmas, schedule: Schedule) -> SampleTimesteps:
    """What draws timesteps: all alike, or those whose levels are nearest above log-normal ones."""
    table = np.array(schedule.sigmas)
    if not isinstance(levels, LogNormalSigmas):
        return lambda rng, count: rng.integers(len(table), size=count)
    mean, spread = levels.mean, levels.spread

    def draw(rng: Rng, count: int) -> Int[np.ndarray, " n"]:
        return np.searchsorted(table, np.exp(mean + spread * rng.standard_normal(count))).clip(0, len(table) - 1)

    return draw


def caption_encoder(model: Model, size: tuple[int, int]) -> EncodeCaptions:
    """What the network is told of captions and frame rates: float32, on the CPU. May be called by several threads."""
    one_at_a_time = Lock()  # a tokenizer may be asked by one only

    def told(texts: Sequence[str], rates: Sequence[float]) -> Condition:
        with one_at_a_time:
            condition = model.prompt([truncate_caption(model, text) for text in texts], size=size)
        return with_frame_rates(model, replace(condition, tokens=condition.tokens.float().cpu()), rates)

    return told


def with_frame_rates(model: Model, condition: Condition, rates: Sequence[float]) -> Condition:
    """The condition with each sample's own frame rate, where the model is told them."""
    embedding = None if condition.embedding is None else condition.embedding.float().cpu()
    if embedding is not None and model.net.has_frame_rate:
        embedding = torch.cat([embedding[:, :-1], torch.tensor(rates, dtype=torch.float32)[:, None]], dim=1)
    return replace(condition, embedding=embedding)


def truncate_caption(model: Model, caption: str) -> str:
    """As many of a caption's first words as the model reads."""
    words = caption.split()

    def is_too_long(count: int) -> bool:
        text = " ".join(words[:count])
        return any(len(each.tokenizer(text, verbose=False).input_ids) > each.limit for each in model.text)

    if not is_too_long(len(words)):
        return caption
    return " ".join(words[: max(0, bisect_left(range(len(words)), True, key=is_too_long) - 1)])


def denoising_loss(
    model: Model, num_frames: int, ratio: float
) -> Callable[[VideoUNet, VideoBatch, int], dict[str, Float[Tensor, ""]]]:
    """The loss as `training.fit` wants it, named after what was seen.

    The noise of frame k of a sample is that which drawing begins with, from the sample's seed; pictures of one sample
    are its frames, with noise of their own.
    """

    def loss(net: VideoUNet, batch: VideoBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        kind, x0 = "image" if batch.x0.shape[1] == 1 else "video", batch.x0
        count = x0.shape[0] * x0.shape[1] // num_frames
        drawn = noise.partly_shared(ratio if kind == "video" else 0.0, seed, range(num_frames), (count, *x0.shape[2:]))
        told = Condition(batch.tokens, image_tokens=_shown(model, net, batch), embedding=batch.embedding)
        off = method.loss(net, model.schedule, told, x0, drawn.reshape(x0.shape).to(x0), batch.timesteps)
        return {kind: off.mean()}

    return loss


def _shown(model: Model, net: VideoUNet, batch: VideoBatch) -> Tensor | None:
    """The tokens of the first frames, or of no picture for what is told nothing."""
    if model.reader is None or batch.first is None:
        return None
    seen = model.reader.tokens(net.image_unet, batch.first.float() / 255)
    return torch.where(batch.untold[:, None, None], model.reader.no_tokens(net.image_unet, 1), seen)
