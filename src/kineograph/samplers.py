"""Walks down (or up) a ladder of noise levels, as generators of steps.

In `x = x0 + sigma * noise` every solver here is one line between two evaluations. Progress bars, previews,
cancelling and recording are a `for` over the steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch

from kineograph.denoise import Denoise
from kineograph.latents import Latents, Mask, add_noise, blend
from kineograph.motion import Warp


class Step(NamedTuple):
    """A latent `x` at the noise level `sigma`, and the estimate `x0` of the clean video made from it.

    The last step of a walk is at the ladder's last rung, where nothing was evaluated: there `x0` is `x`.
    """

    sigma: float
    x: Latents
    x0: Latents


Sampler = Callable[[Denoise, Latents, Sequence[float]], Iterator[Step]]
StepRule = Callable[[Latents, Latents, float, float], Latents]  # (x, x0, sigma, to) -> x at the level `to`
ForegroundMasks = Callable[
    [Latents, float], Mask
]  # (clean estimate, its level) -> [b f 1 h w], 1 where a frame's foreground is
NoiseAt = Callable[[float], Latents]  # level -> fresh noise for it, see noise.at_levels


@torch.no_grad()
def single_step_sampler(denoise: Denoise, x: Latents, sigmas: Sequence[float], rule: StepRule) -> Iterator[Step]:
    """The walk of a single-step rule: one evaluation a rung, from `x` at `sigmas[0]` to `sigmas[-1]`.

    Yields `len(sigmas)` steps. Slices of a ladder that share a rung, walked one after the other, end where the whole
    ladder ends.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        yield Step(sigma, x, x0)
        x = rule(x, x0, sigma, to)
    yield Step(sigmas[-1], x, x)


def ddim(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """DDIM without noise (Song et al. 2020, eq. 13): Euler's method for the probability-flow ODE.

    Walked up a rising ladder it is DDIM inversion. A walk up starts above 0: take a clean latent to be at the lowest
    level that the network knows.
    """
    return single_step_sampler(denoise, x, sigmas, step_to)


def ddim_eta(eta: float, draw: NoiseAt) -> Sampler:
    """DDIM with a share `eta` of DDPM's noise (Song et al. 2020, eq. 12 and 16): 0 is `ddim`, 1 is DDPM.

    `draw` gives the noise for a level. Raises ValueError for another share, and on a rising ladder.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is a share of DDPM's noise, from 0 (none) to 1 (all of it); got {eta:g}.")

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        if to > sigma:
            raise ValueError(f"ddim_eta goes down, got a step from {sigma:g} up to {to:g}. To invert, use ddim.")
        up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
        return _add_sampler_noise(step_to(x, x0, sigma, math.sqrt(to**2 - up**2)), up, draw, to)

    return partial(single_step_sampler, rule=rule)


def euler_ancestral(draw: NoiseAt) -> Sampler:
    """Euler steps with ancestral noise (k-diffusion's, diffusers' EulerAncestralDiscreteScheduler).

    In these units that is DDIM with `eta = 1`, to the letter.
    """
    return ddim_eta(1.0, draw)


def lcm(draw: NoiseAt) -> Sampler:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): to the clean video, and noise from scratch.

    The boundary weights of a distilled network belong to the network: see `Schedule.consistent`.
    """

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        return _add_sampler_noise(x0, to, draw, to)

    return partial(single_step_sampler, rule=rule)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM with x0 extrapolated to the middle of the step.

    Second order in the steps of log(sigma). The first step, and a step to 0, are plain DDIM. What it remembers lives
    in the generator: a new walk starts anew, so slices of a ladder do not add up to the whole exactly.
    """
    before = None
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        yield Step(sigma, x, x0)
        middle = x0
        if before is not None and to > 0:
            ratio = math.log(sigma / to) / math.log(before.sigma / sigma)
            middle = x0 + 0.5 * ratio * (x0 - before.x0)
        before = Step(sigma, x, x0)
        x = step_to(x, middle, sigma, to)
    yield Step(sigmas[-1], x, x)


def smooth_background(sampler: Sampler, warp: Warp, masks: ForegroundMasks, strength: float) -> Sampler:
    """The solver, which after every step draws each frame's background towards the first's, as the camera sees it.

    `x <- M x + (1 - M) (strength W(x_first) + (1 - strength) x)`, with W the camera's `warp` and M the `masks`, of the
    frame's own foreground joined with the first's as the camera sees it: else that would be smeared where it passed by.
    A multistep solver takes single steps here. Source: Text2Video-Zero, section 3.3.3, where `strength` is 0.6.
    """

    @torch.no_grad()
    def walk(look: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        if x.shape[1] == 1:
            yield from sampler(look, x, sigmas)
            return
        for sigma, to in pairwise(sigmas):
            step, after = sampler(look, x, [sigma, to])
            yield step
            x, first = after.x, after.x[:, :1]
            x0 = step.x0[:, :1] if to > 0 else first
            clean, grain = warp(x0, (first - x0) / to if to > 0 else torch.zeros_like(first))
            mask = masks(step.x0, sigma)
            passing, _ = warp(mask[:, :1], torch.zeros_like(mask[:, :1]))
            own = torch.maximum(mask[:, 1:], passing.clamp(0, 1))
            others = blend(x[:, 1:], strength * add_noise(clean, grain, to) + (1 - strength) * x[:, 1:], own)
            x = torch.cat([first, others], dim=1)
        yield Step(sigmas[-1], x, x)

    return walk


def step_to(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
    """The point at level `to` on the straight line from `x0` (level 0) through `x` (level `sigma`).

    Raises ValueError at `sigma == 0`, where there is no line: a clean latent says nothing about its noise.
    """
    if sigma == 0:
        raise ValueError(
            f"A walk cannot leave noise level 0 (towards {to:g}): there is no noise to scale. To invert a clean "
            "video, start the ladder at the lowest level that the network knows, schedule.sigmas[0]."
        )
    return x0 + (to / sigma) * (x - x0)


def final_latents(steps: Iterable[Step]) -> Latents:
    """Where a walk ends."""
    (final,) = deque(steps, maxlen=1)
    return final.x


def recorded(steps: Iterable[Step]) -> list[Step]:
    """All steps of a walk."""
    return list(steps)


def _add_sampler_noise(x: Latents, amount: float, draw: NoiseAt, level: float) -> Latents:
    """`x` with noise drawn for this level; no noise is drawn where none is needed.

    `x` may hold the first frames only of those that noise is drawn for: Text2Video-Zero begins with frame 0 alone.
    """
    return x + amount * draw(level)[:, : x.shape[1]].to(x) if amount > 0 else x
