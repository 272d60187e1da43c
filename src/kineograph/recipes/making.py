"""A request becomes a video."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from kineograph import trajectory
from kineograph.data.request import Request
from kineograph.data.video import Video
from kineograph.errors import InputWarning
from kineograph.models.model import Model
from kineograph.models.origin import origin
from kineograph.recipes import instruct_pix2pix, text2video_zero, video_elevator, videocrafter
from kineograph.recipes.inputs import opened, size
from kineograph.recipes.settling import settled
from kineograph.recipes.walks import Start
from kineograph.trajectory import Step

METHODS = {
    "text2video-zero": text2video_zero.plan,
    "instruct-pix2pix": instruct_pix2pix.plan,
    "videocrafter": videocrafter.plan,
    "video-elevator": video_elevator.plan,
}
DECODED_AT_ONCE = 8  # frames, before they are a quarter as large


class Progress(NamedTuple):
    """How far a video is: `done` of `total` steps; `step.x0` is what it looks like so far, as latents."""

    done: int
    total: int
    step: Step


OnStep = Callable[[Progress], None]


def made(model: Model, request: Request, on_step: OnStep | None = None, *, video_model: Model | None = None) -> Video:
    """The video that a request asks for, with the settings that make it again.

    video_model: the second model of "video-elevator".
    """
    request = settled(model, request, video_model)
    start = _start(model, request)._replace(video_model=video_model)
    if unknown := model.unknown_words(f"{request.prompt} {request.negative_prompt}"):
        warnings.warn(f"{model.name} has never seen the words {', '.join(unknown)}", InputWarning, stacklevel=2)
    steps, walk = METHODS[str(request.method)](model, request, start)
    latents = trajectory.last(_told(walk, steps, on_step))
    parts = [Video.from_tensor(model.decode(part)[0]) for part in latents.split(DECODED_AT_ONCE, dim=1)]
    video = Video(np.concatenate([part.frames for part in parts]), start.inputs.fps)
    asked = asdict(replace(request, seed=start.seed, height=start.height, width=start.width))
    read = {str(each.path): each.digest for each in start.inputs.footage}
    if start.inputs.picture:
        read[start.inputs.picture.path] = start.inputs.picture.digest
    asked["control"] = list(asked["control"])  # as JSON would bring it back
    asked["elevation"]["refine_at"] = list(request.elevation.refine_at)
    kinds = [control.kind for control in request.control]
    made_by = origin(model, kinds) | ({"video_model": origin(video_model)["model"]} if video_model else {})
    return replace(video, settings={**asked, "frames_sha256": video.digest, "read": read, **made_by})


def _start(model: Model, request: Request) -> Start:
    inputs = opened(request)
    height, width = size(request, inputs, model.default_size, model.factor)
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Start(seed, height, width, (1, *model.latent_shape(height, width)), inputs, str(request.solver))


def _told(walk: Iterator[Step], steps: int, on_step: OnStep | None) -> Iterator[Step]:
    for done, step in enumerate(walk, 1):
        if on_step:
            on_step(Progress(done, steps, step))
        yield step
