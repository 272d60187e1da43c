"""VidRD, Reuse and Diffuse: more frames than a model holds, clip after clip (Gu et al. 2023, section 3).

Each clip reuses the initial noise and the latents of the previous one, with the frames in reversed order, and so begins
where the previous one ended. Any other method can sample the clips, with any sampler. The paper's network and temporal
decoder are in `models/temporal` and `models/vae`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.noise import mix
from kineograph.plan import SamplingRun
from kineograph.samplers import Sampler, Step

GuidedFrames = Mapping[float, int]  # sigma -> number of frames, from the first, that follow the previous clip there


class Past(NamedTuple):
    """Initial noise of the previous clip, and its latents at every sigma."""

    noise: Latents
    latents: Mapping[float, Latents]


class ClipState(NamedTuple):
    """Number of the next clip, what it reuses of the previous one, and the first clip's mean over frames of x0."""

    number: int = 0
    past: Past | None = None
    first: Mapping[float, Latents] | None = None  # by sigma


def sample_clips(
    run_clip: Callable[[ClipState], SamplingRun], num_clips: int, state: ClipState
) -> Iterator[tuple[Latents, ClipState]]:
    """Sample the clips of a video one after the other; yield each clip's latents, and the state for the next clip.

    run_clip  starts a clip from the state: its noise by `initial_noise`, its sampler by `overwrite_guided`
    state     the state to continue from
    """
    for number in range(state.number, num_clips):
        run, is_last = run_clip(state), number + 1 == num_clips
        steps = list(deque(run.steps, maxlen=1 if is_last else None))  # no clip reuses the last clip's
        first = state.first or {step.sigma: step.x0.mean(1, keepdim=True) for step in steps}
        state = ClipState(number + 1, record_past(run.initial_noise, steps), first)
        yield steps[-1].x, state


def initial_noise(fresh: Latents, past: Past | None, keep: int, ratio: float) -> Latents:
    """Return a clip's initial noise: frame-level noise reversion and past-dependent noise sampling.

    fresh  the clip's own noise, [b n c h w]
    keep   M, the number of frames that take the previous clip's noise, in reversed order; less than n
    ratio  beta, the ratio of the previous clip's noise to fresh noise in the other frames; the paper's is 4
    """
    if not 0 <= keep < fresh.shape[1]:
        raise InputError(f"A clip of {fresh.shape[1]} frames keeps fewer of them from the last clip, got {keep}.")
    if past is None:
        return fresh
    reversed_noise = past.noise.flip(1).to(fresh)
    return torch.cat([reversed_noise[:, :keep], mix(reversed_noise, fresh, ratio)[:, keep:]], dim=1)


def guided_frames(sigmas: Sequence[float], keep: int, share: float) -> dict[float, int]:
    """Return the number of guided frames at each sigma: denoising with staged guidance.

    Of S steps, frame j of `keep` is guided in the first `ceil(share * (1 - j / keep) * S)`. `share` is the paper's
    gamma, 0.4 there; with 1 the first frame is guided to the end.

    >>> list(guided_frames([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], keep=2, share=0.8).values())
    [2, 2, 1, 1]
    """
    steps = len(sigmas) - 1
    counts = [sum(s < ceil((keep - j) * steps / keep * share - 1e-9) for j in range(keep)) for s in range(steps)]
    if share >= 1:
        counts.append(1)
    return {sigma: count for sigma, count in zip(sigmas, counts, strict=False) if count}


def overwrite_guided(sampler: Sampler, past: Past, guided: GuidedFrames) -> Sampler:
    """Wrap a sampler: before each step the previous clip's latents, in reversed order, overwrite the guided frames.

    A multistep sampler takes single steps here.
    """

    @torch.no_grad()
    def wrapped(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        for sigma, to in pairwise(sigmas):
            step, after = sampler(denoise, _overwrite(x, past, guided, sigma), [sigma, to])
            yield step
            x = after.x
        x = _overwrite(x, past, guided, sigmas[-1])
        yield Step(sigmas[-1], x, x)

    return wrapped


def _overwrite(x: Latents, past: Past, guided: GuidedFrames, sigma: float) -> Latents:
    latents, count = past.latents.get(sigma), min(guided.get(sigma, 0), x.shape[1])
    if latents is None or count == 0:
        return x
    return torch.cat([latents.flip(1)[:, :count].to(x), x[:, count:]], dim=1)


def skip_overwritten(denoise: Denoise, past: Past, guided: GuidedFrames, sigmas: Sequence[float]) -> Denoise:
    """Wrap a model whose frames attend to the first frame alone: skip the frames that are overwritten anyway.

    Of the frames that are still guided at the next sigma, only the first is evaluated, since the others attend to it.
    The previous clip's final latents take the place of the skipped estimates.
    """
    final = past.latents[min(past.latents)].flip(1)
    known = {sigma: guided.get(sigma, 0) for sigma in sigmas if sigma in past.latents}
    skipped = {sigma: known.get(to, 0) for sigma, to in pairwise(sigmas) if sigma in known}

    def wrapped(x: Latents, sigma: float) -> Latents:
        count = min(skipped.get(sigma, 0), x.shape[1])
        if count < 2:
            return denoise(x, sigma)
        x0 = denoise(torch.cat([x[:, :1], x[:, count:]], dim=1), sigma)
        return torch.cat([x0[:, :1], final[:, 1:count].to(x0), x0[:, 1:]], dim=1)

    return wrapped


def anchor_to_first(denoise: Denoise, first: Mapping[float, Latents], strength: float) -> Denoise:
    """Wrap a model: pull the mean of its estimate over the frames to the first clip's, at the sigmas in `first`.

    Not in the paper, where a clip depends on its predecessor alone and drifts over many clips.
    """

    def wrapped(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        if (mean := first.get(sigma)) is None:
            return x0
        return x0 + strength * (mean.to(x0) - x0.mean(1, keepdim=True))

    return wrapped


def record_past(noise: Latents, steps: Sequence[Step]) -> Past:
    """Return what the next clip reuses: the initial noise, and the latents of those steps that have all frames."""
    return Past(noise, {step.sigma: step.x for step in steps if step.x.shape[1] == noise.shape[1]})
