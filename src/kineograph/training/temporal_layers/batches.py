"""Batches and loss of VideoCrafter1's training.

A step is of videos only or of images only, as many images as the videos have frames, so that all steps cost the same.
Everything random depends on the seed and the number of the step or of the sample.
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
from kineograph.latents import Latents
from kineograph.media.dataset_layouts import MediaKind
from kineograph.methods import videocrafter
from kineograph.models.conditioning.condition import Condition
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.gradients import LoadBatch, LossFunction
from kineograph.training.temporal_layers.latent_cache import EncodedClip
from kineograph.training.temporal_layers.settings import LogNormalSigmas
from kineograph.training.temporal_layers.sources import ClipLoader

SampleTimesteps = Callable[[np.random.Generator, int], Int[np.ndarray, " n"]]
EncodeCaptions = Callable[[Sequence[str], Sequence[float]], Condition]  # (captions, frame rates) -> condition

KIND_STREAM, SAMPLE_STREAM = 14, 15  # streams of random numbers of one seed, different from those of `sources`


class VideoBatch(NamedTuple):
    """Clean latents with their conditions and timesteps. Images are videos of one frame.

    first: first frames, for models with an image encoder.
    dropped: samples whose caption and first frame are left out, for guidance.
    """

    x0: Latents
    tokens: Tensor
    embedding: Tensor | None
    timesteps: Int[Tensor, " b"]
    dropped: Bool[Tensor, " b"]
    first: UInt8[Tensor, "b 3 H W"] | None


class StepKind(NamedTuple):
    """Kind of data of a step, and the number of earlier steps of that kind."""

    kind: MediaKind
    number: int


class BatchOptions(NamedTuple):
    """Options of a stage's batches.

    batch_size: samples a step. num_frames: of a video. image_share: share of the steps that are of images.
    """

    batch_size: int
    num_frames: int
    image_share: float
    caption_dropout: float
    seed: int


def step_kind(seed: int, share: float, step: int) -> StepKind:
    """Return the kind of a step. Steps of images are spread evenly; the seed decides the first of them."""
    phase = float(np.random.default_rng((KIND_STREAM, seed)).uniform())
    before, after = (math.floor(count * share + phase) for count in (step, step + 1))
    return StepKind("image", before) if after > before else StepKind("video", step - before)


def video_batch_loader(
    loaders: Mapping[MediaKind, ClipLoader],
    options: BatchOptions,
    sample_timesteps: SampleTimesteps,
    encode_captions: EncodeCaptions,
) -> LoadBatch[VideoBatch]:
    """Return the function that loads the samples of a step, for `training.fit`."""

    def load(step: int, samples: range) -> VideoBatch:
        kind, number = step_kind(options.seed, options.image_share, step)
        per_sample = options.num_frames if kind == "image" else 1
        first = step * options.batch_size
        positions = range((samples.start - first) * per_sample, (samples.stop - first) * per_sample)
        clips = [loaders[kind](number, position, options.batch_size * per_sample) for position in positions]
        rngs = [np.random.default_rng((SAMPLE_STREAM, options.seed, sample)) for sample in samples]
        timesteps = np.concatenate([sample_timesteps(rng, per_sample) for rng in rngs])
        dropped = np.concatenate([rng.uniform(size=per_sample) < options.caption_dropout for rng in rngs])
        return _batch(clips, timesteps, dropped, encode_captions)

    return load


def _batch(
    clips: Sequence[EncodedClip], timesteps: np.ndarray, dropped: np.ndarray, encode_captions: EncodeCaptions
) -> VideoBatch:
    captions = ["" if left_out else clip.caption for clip, left_out in zip(clips, dropped, strict=True)]
    condition = encode_captions(captions, [clip.fps for clip in clips])
    first = [clip.first for clip in clips if clip.first is not None]
    return VideoBatch(
        torch.stack([clip.latents for clip in clips]),
        condition.tokens,
        condition.embedding,
        torch.from_numpy(timesteps.astype(np.int64)),
        torch.from_numpy(dropped),
        torch.stack(first) if first else None,
    )


def timestep_sampler(levels: Literal["uniform"] | LogNormalSigmas, schedule: Schedule) -> SampleTimesteps:
    """Return the function that samples timesteps: uniformly, or those at or just above log-normal sigmas."""
    table = np.array(schedule.sigmas)
    if not isinstance(levels, LogNormalSigmas):
        return lambda rng, count: rng.integers(len(table), size=count)
    mean, spread = levels.mean, levels.spread

    def sample_timesteps(rng: np.random.Generator, count: int) -> Int[np.ndarray, " n"]:
        return np.searchsorted(table, np.exp(mean + spread * rng.standard_normal(count))).clip(0, len(table) - 1)

    return sample_timesteps


def caption_encoder(model: Model, size: tuple[int, int]) -> EncodeCaptions:
    """Return the function that encodes captions and frame rates: float32, on the CPU. It is safe in several threads."""
    lock = Lock()  # a tokenizer is not thread-safe

    def encode(captions: Sequence[str], rates: Sequence[float]) -> Condition:
        with lock:
            texts = [truncate_caption(model, text) for text in captions]
            condition = model.prompt(texts, size=size, prompt_weights="off")
        return with_frame_rates(model, replace(condition, tokens=condition.tokens.float().cpu()), rates)

    return encode


def with_frame_rates(model: Model, condition: Condition, rates: Sequence[float]) -> Condition:
    """Return the condition with each sample's own frame rate, if the model has frame-rate conditioning."""
    embedding = None if condition.embedding is None else condition.embedding.float().cpu()
    if embedding is not None and model.net.has_frame_rate:
        embedding = torch.cat([embedding[:, :-1], torch.tensor(rates, dtype=torch.float32)[:, None]], dim=1)
    return replace(condition, embedding=embedding)


def truncate_caption(model: Model, caption: str) -> str:
    """Return as many of a caption's first words as fit the model's tokenizers."""
    words = caption.split()

    def is_too_long(count: int) -> bool:
        text = " ".join(words[:count])
        return any(len(each.tokenizer(text, verbose=False).input_ids) > each.max_tokens for each in model.text_encoders)

    if not is_too_long(len(words)):
        return caption
    return " ".join(words[: max(0, bisect_left(range(len(words)), True, key=is_too_long) - 1)])


def batch_noise(ratio: float, seed: int, num_frames: int, x0: Latents) -> Latents:
    """Return the noise of a batch: that which sampling would start from with each sample's seed.

    Frames of a video share `ratio` parts of it (see `noise.partly_shared`). The images of one sample have the noises of
    its `num_frames` frames, with nothing shared.
    """
    is_image = x0.shape[1] == 1
    count = len(x0) * x0.shape[1] // num_frames
    fresh = noise.partly_shared(0.0 if is_image else ratio, seed, range(num_frames), (count, *x0.shape[2:]))
    return fresh.reshape(x0.shape).to(x0)


def denoising_loss(model: Model, num_frames: int, ratio: float) -> LossFunction[VideoUNet, VideoBatch]:
    """Return the loss for `training.fit`, named "video" or "image" after the data of the step."""

    def loss(net: VideoUNet, batch: VideoBatch, seed: int) -> dict[str, Float[Tensor, ""]]:
        fresh = batch_noise(ratio, seed, num_frames, batch.x0)
        condition = Condition(batch.tokens, image_tokens=_image_tokens(model, net, batch), embedding=batch.embedding)
        errors = videocrafter.loss(net, model.schedule, condition, batch.x0, fresh, batch.timesteps)
        return {"image" if batch.x0.shape[1] == 1 else "video": errors.mean()}

    return loss


def _image_tokens(model: Model, net: VideoUNet, batch: VideoBatch) -> Tensor | None:
    """Return the image tokens of the first frames, and those of no image for dropped samples."""
    if model.image_encoder is None or batch.first is None:
        return None
    tokens = model.image_encoder.image_tokens(net.image_unet, batch.first.float() / 255)
    return torch.where(batch.dropped[:, None, None], model.image_encoder.empty_tokens(net.image_unet, 1), tokens)
