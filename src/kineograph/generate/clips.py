"""Clip after clip: what each begins from, its frames, and what it leaves to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kineograph.latents import Latents
from kineograph.media.video import Video
from kineograph.methods import vidrd
from kineograph.models.model import Model
from kineograph.plan import Clip, SamplingRun
from kineograph.plan import Plan as Start
from kineograph.request import Request
from kineograph.samplers import Step, recorded

Plan = Callable[[Model, Request, Start], SamplingRun]


class Progress(NamedTuple):
    """How far a video is: `done` of `total` steps; `step.x0` is what it looks like so far, as latents."""

    done: int
    total: int
    step: Step


OnStep = Callable[[Progress], None]


class Drawn(NamedTuple):
    """The frames of a clip, uint8 [f h w 3], and the next clip."""

    frames: np.ndarray
    after: Clip


def drawn(
    plan: Plan, model: Model, request: Request, start: Start, on_step: OnStep | None, clip: Clip
) -> Iterator[Drawn]:
    """The clips of a video from this one on. Only the last clip's way down is held."""
    for number in range(clip.number, request.clips):
        walk = plan(model, replace(request, prompt=prompt_of(request, number)), start._replace(clip=clip))
        told = _told(walk, number, request.clips, on_step)
        steps = list(deque(told, maxlen=1)) if number + 1 == request.clips else recorded(told)
        clip = Clip(number + 1, vidrd.record_past(walk.begin, steps), clip.first or _common(steps))
        yield Drawn(_decoded(model, steps[-1].x), clip)


def prompt_of(request: Request, number: int) -> str:
    """What a clip is told: of the prompts given, its own or the last."""
    said = (request.prompt, *request.then)
    return said[min(number, len(said) - 1)]


def _common(steps: Sequence[Step]) -> dict[float, Latents]:
    """What all frames have in common, by level."""
    return {step.sigma: step.x0.mean(1, keepdim=True) for step in steps}


def _decoded(model: Model, latents: Latents) -> np.ndarray:
    return np.concatenate([Video.from_tensor(part[0]).frames for part in model.decoded(latents)])


def _told(walk: SamplingRun, number: int, clips: int, on_step: OnStep | None) -> Iterator[Step]:
    for done, step in enumerate(walk.steps, number * walk.total + 1):
        if on_step:
            on_step(Progress(done, clips * walk.total, step))
        yield step
