"""What a customising of a video model would do, and about how long that takes here: measured, nothing written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from kineograph.models.model import Model
from kineograph.training.customise.natural_videos import NaturalVideos
from kineograph.training.customise.networks import model_with
from kineograph.training.customise.video_inputs import VideoCustomisation, needs_motion_adapter

# Of a walk forwards: a step also goes back, to what learns behind all layers; and a first walk is a slow one.
STEP, WARM = 3.0, 2


Use = Literal["trains", "keeps"]


class PhaseEstimate(NamedTuple):
    """A phase, what is done in it, and about how many seconds that takes."""

    phase: str
    what: str
    seconds: float


def estimate_video_customisation(ready: VideoCustomisation) -> list[PhaseEstimate]:
    """What is before a customising that begins now; one that goes on has less."""
    image = ready.image
    learner, together = model_with(image.model, image.trainee), ready.settings.image.drawing.at_once
    return [
        *_of_image(ready, _walk(learner, image.size, together) / together),
        *estimate_natural_videos(ready.natural, *_uses(ready)),
        *_of_adapter(ready, _walk(ready.video, image.size, ready.natural.frames)),
    ]


def _of_image(ready: VideoCustomisation, walk: float) -> Iterator[PhaseEstimate]:
    image, settings, loop = ready.image, ready.settings.image, ready.settings.image.training
    drawing = 2 * settings.drawing.num_inference_steps * walk
    parts = 2 if settings.prior_weight else 1
    if image.prior:
        what = f"draws {settings.prior_pictures} pictures such as {image.prior[-1]!r}"
        yield PhaseEstimate("prior", what, settings.prior_pictures * drawing)
    yield PhaseEstimate(
        "training",
        f"the image network learns {image.words.name!r} from {len(image.photos)} pictures, "
        f"{loop.max_train_steps} steps of {parts * loop.train_batch_size}",
        loop.max_train_steps * parts * loop.train_batch_size * STEP * walk,
    )
    what = f"draws {len(ready.prompts)} pictures such as {ready.prompts[-1]!r}"
    yield PhaseEstimate("stills", what, len(ready.prompts) * drawing)


def _uses(ready: VideoCustomisation) -> list[Use]:
    trains: list[Use] = ["trains"] if needs_motion_adapter(ready.video, ready.settings) else []
    return [*trains, "keeps"] if ready.settings.natural_weight else trains


def estimate_natural_videos(wanted: NaturalVideos, *uses: Use) -> Iterator[PhaseEstimate]:
    """Natural videos, if they are of use, and what they are for: a motion adapter "trains", the model "keeps"."""
    settings, loop = wanted.settings, wanted.settings.motion_training
    walk = _walk(wanted.video, wanted.size, wanted.frames) if uses else 0.0
    count, long = settings.natural_videos, f"{wanted.frames} frames"
    if uses and wanted.given is not None:
        yield PhaseEstimate("natural", f"cuts {count} videos of {long} from {wanted.given.source.source}", 0.0)
    elif uses:
        steps = settings.drawing.num_inference_steps
        yield PhaseEstimate("natural", f"draws {count} videos of {long}", 2 * count * steps * walk)
    if "trains" in uses:
        steps, batch = loop.max_train_steps, loop.train_batch_size
        what = f"{wanted.video.name} learns to stand still, {steps} steps of {batch} videos"
        yield PhaseEstimate("stilling", what, steps * batch * STEP * walk)


def _of_adapter(ready: VideoCustomisation, walk: float) -> Iterator[PhaseEstimate]:
    settings, loop = ready.settings, ready.settings.training
    parts = 2 if settings.natural_weight else 1
    learns = "all weights learn" if settings.spatial is None else "a spatial adapter learns"
    what = f"{learns}, {loop.max_train_steps} steps of {parts * loop.train_batch_size} videos"
    yield PhaseEstimate("adapting", what, loop.max_train_steps * parts * loop.train_batch_size * STEP * walk)


@torch.no_grad()
def _walk(model: Model, size: tuple[int, int], frames: int) -> float:
    """The seconds that the network takes for so many pictures at once, or for a video of so many frames."""
    look = model.bind(model.prompt([""], size=size), window=frames if model.temporal else None)
    x = torch.zeros(1, frames, *model.latent_shape(*size), device=model.device)
    return min(_timed(lambda: look(x, 1.0).cpu()) for _ in range(WARM))


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
