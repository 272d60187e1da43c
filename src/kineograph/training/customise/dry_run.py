"""Estimate of a video model's customisation: its phases and the seconds they take on this machine; writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from kineograph.models.model import Model
from kineograph.training.customise.natural_videos import NaturalVideos
from kineograph.training.customise.phases import Phase
from kineograph.training.customise.video_model import VideoCustomisation, needs_motion_adapter

# Time of a training step relative to a forward pass: it also computes gradients, back to the first trained layer.
STEP_COST = 3.0
NUM_TIMED = 2  # forward passes, of which the faster one counts: the first is slow

Use = Literal["motion_adapter", "natural"]  # natural videos train a motion adapter, or preserve the prior


class PhaseEstimate(NamedTuple):
    """A phase, a description of its work, and about how many seconds it takes."""

    phase: Phase
    what: str
    seconds: float


def estimate_video_customisation(prepared: VideoCustomisation) -> list[PhaseEstimate]:
    """Estimate the time of each phase of a whole customisation; finished work of a resumed one is not subtracted."""
    image, settings = prepared.image, prepared.settings
    batch = settings.image.drawing.at_once
    image_seconds = _time_forward(image.model, image.size, batch) / batch
    uses: list[Use] = ["motion_adapter"] if needs_motion_adapter(prepared.video, settings) else []
    uses += ["natural"] if settings.natural_weight else []
    return [
        *_estimate_image(prepared, image_seconds),
        *estimate_natural_videos(prepared.natural, *uses),
        _estimate_spatial_adapter(prepared),
    ]


def _estimate_image(prepared: VideoCustomisation, seconds: float) -> Iterator[PhaseEstimate]:
    """Yield the phases of the image network. seconds: of one image's forward pass."""
    image, settings, loop = prepared.image, prepared.settings.image, prepared.settings.image.training
    per_image = 2 * settings.drawing.num_inference_steps * seconds
    parts = 2 if settings.prior_weight else 1
    if image.prior_prompts:
        what = f"generates {settings.prior_pictures} images such as {image.prior_prompts[-1]!r}"
        yield PhaseEstimate("prior", what, settings.prior_pictures * per_image)
    yield PhaseEstimate(
        "training",
        f"the image network learns {image.words.name!r} from {len(image.photos)} images, "
        f"{loop.max_train_steps} steps of {parts * loop.train_batch_size}",
        loop.max_train_steps * parts * loop.train_batch_size * STEP_COST * seconds,
    )
    what = f"generates {len(prepared.prompts)} images such as {prepared.prompts[-1]!r}"
    yield PhaseEstimate("stills", what, len(prepared.prompts) * per_image)


def estimate_natural_videos(natural: NaturalVideos, *uses: Use) -> Iterator[PhaseEstimate]:
    """Yield the phases of natural videos, if they have a use, and of the motion adapter, if it is one of the uses."""
    settings, loop = natural.settings, natural.settings.motion_training
    seconds = _time_forward(natural.video, natural.size, natural.num_frames) if uses else 0.0
    count, length = settings.natural_videos, f"{natural.num_frames} frames"
    if uses and natural.given is not None:
        what = f"reads {count} videos of {length} from {natural.given.source.source}"
        yield PhaseEstimate("natural", what, 0.0)
    elif uses:
        steps = settings.drawing.num_inference_steps
        yield PhaseEstimate("natural", f"generates {count} videos of {length}", 2 * count * steps * seconds)
    if "motion_adapter" in uses:
        steps, batch = loop.max_train_steps, loop.train_batch_size
        what = f"trains a motion adapter for {natural.video.name}, {steps} steps of {batch} videos"
        yield PhaseEstimate("motion_adapter", what, steps * batch * STEP_COST * seconds)


def _estimate_spatial_adapter(prepared: VideoCustomisation) -> PhaseEstimate:
    settings, loop = prepared.settings, prepared.settings.training
    seconds = _time_forward(prepared.video, prepared.image.size, prepared.natural.num_frames)
    videos = (2 if settings.natural_weight else 1) * loop.train_batch_size
    trained = "all weights" if settings.spatial is None else "a spatial adapter"
    what = f"trains {trained}, {loop.max_train_steps} steps of {videos} videos"
    return PhaseEstimate("spatial_adapter", what, loop.max_train_steps * videos * STEP_COST * seconds)


@torch.no_grad()
def _time_forward(model: Model, size: tuple[int, int], frames: int) -> float:
    """Return the seconds of a forward pass of so many images, or of a video of so many frames."""
    denoise = model.bind(model.prompt([""], size=size), window=frames if model.temporal else None)
    x = torch.zeros(1, frames, *model.latent_shape(*size), device=model.device)
    seconds = []
    for _ in range(NUM_TIMED):
        start = time.monotonic()
        denoise(x, 1.0).cpu()
        seconds.append(time.monotonic() - start)
    return min(seconds)
