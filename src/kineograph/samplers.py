"""Samplers as generators of steps along a list of sigmas, and the table of samplers by name.

Latents are `x = x0 + sigma * noise`. Progress bars, previews, cancelling and recording are a `for` over the steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, Mask, add_noise, blend
from kineograph.motion import Warp
from kineograph.sigmas import lcm_spacing, leading


class Step(NamedTuple):
    """Latents `x` at `sigma`, and the model's estimate `x0` of the clean latents.

    The last step of a sampler is at the last sigma, where the model is not evaluated: there `x0` is `x`.
    """

    sigma: float
    x: Latents
    x0: Latents


Sampler = Callable[[Denoise, Latents, Sequence[float]], Iterator[Step]]
StepRule = Callable[[Latents, Latents, float, float], Latents]  # (x, x0, sigma, to) -> x at the sigma `to`
ForegroundMasks = Callable[[Latents, float], Mask]  # (clean estimate, its sigma) -> [b f 1 h w], 1 in the foreground
NoiseAt = Callable[[float], Latents]  # sigma -> fresh noise for it, see noise.per_sigma


@torch.no_grad()
def single_step_sampler(denoise: Denoise, x: Latents, sigmas: Sequence[float], rule: StepRule) -> Iterator[Step]:
    """Sample by a single-step rule: one evaluation per sigma, from `x` at `sigmas[0]` to `sigmas[-1]`.

    Yields `len(sigmas)` steps. Sampling along two slices of the sigmas, one after the other, gives the same result as
    along the whole list.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        yield Step(sigma, x, x0)
        x = rule(x, x0, sigma, to)
    yield Step(sigmas[-1], x, x)


def ddim(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by DDIM without noise (Song et al. 2020, eq. 13): Euler's method for the probability-flow ODE.

    Along rising sigmas it is DDIM inversion; clean latents then count as latents at the lowest sigma of the schedule.
    """
    return single_step_sampler(denoise, x, sigmas, step_to)


def ddim_eta(eta: float, noise_at: NoiseAt) -> Sampler:
    """Return DDIM with a share `eta` of DDPM's noise (Song et al. 2020, eq. 12 and 16): 0 is `ddim`, 1 is DDPM.

    Raises InputError for `eta` outside of 0 to 1; the sampler raises it for rising sigmas.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta is a share of DDPM's noise, from 0 (none) to 1 (all of it); got {eta:g}.")

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        if to > sigma:
            raise InputError(
                f"ddim_eta needs falling sigmas, got a step from {sigma:g} up to {to:g}. To invert, use ddim."
            )
        up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
        return _add_sampler_noise(step_to(x, x0, sigma, math.sqrt(to**2 - up**2)), up, noise_at, to)

    return partial(single_step_sampler, rule=rule)


def euler_ancestral(noise_at: NoiseAt) -> Sampler:
    """Return Euler steps with ancestral noise (k-diffusion, diffusers' EulerAncestralDiscreteScheduler).

    In these units it is exactly DDIM with `eta = 1`.
    """
    return ddim_eta(1.0, noise_at)


def lcm(noise_at: NoiseAt) -> Sampler:
    """Return multistep consistency sampling (Luo et al. 2023, algorithm 3): each step adds fresh noise to x0.

    The boundary weights of a distilled network belong to the network: see `Schedule.consistency_denoise`.
    """

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        return _add_sampler_noise(x0, to, noise_at, to)

    return partial(single_step_sampler, rule=rule)


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM with x0 extrapolated to the middle of the step.

    Second order in the steps of log(sigma). The first step, and a step to 0, are plain DDIM. A slice of the sigmas
    starts without a previous estimate, so slices do not give exactly the result of the whole list.
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
    """Wrap a sampler: after every step each frame's background is blended with frame 0's, warped to that frame.

    `x <- M x + (1 - M) (strength W(x_first) + (1 - strength) x)`, with W the camera's `warp` and M the `masks`: the
    union of the frame's foreground and frame 0's, warped, which would otherwise leave a trail in the background.
    A multistep sampler takes single steps here. Source: Text2Video-Zero, section 3.3.3, where `strength` is 0.6.
    """

    @torch.no_grad()
    def wrapped(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        if x.shape[1] == 1:
            yield from sampler(denoise, x, sigmas)
            return
        for sigma, to in pairwise(sigmas):
            step, after = sampler(denoise, x, [sigma, to])
            yield step
            x, first = after.x, after.x[:, :1]
            x0 = step.x0[:, :1] if to > 0 else first
            clean, noise = warp(x0, (first - x0) / to if to > 0 else torch.zeros_like(first))
            mask = masks(step.x0, sigma)
            first_mask, _ = warp(mask[:, :1], torch.zeros_like(mask[:, :1]))
            union = torch.maximum(mask[:, 1:], first_mask.clamp(0, 1))
            others = blend(x[:, 1:], strength * add_noise(clean, noise, to) + (1 - strength) * x[:, 1:], union)
            x = torch.cat([first, others], dim=1)
        yield Step(sigmas[-1], x, x)

    return wrapped


def step_to(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
    """Return the point at sigma `to` on the straight line from `x0` (sigma 0) through `x` (at `sigma`).

    Raises InputError at `sigma == 0`, where there is no line: a clean latent does not determine its noise.
    """
    if sigma == 0:
        raise InputError(
            f"A sampler cannot leave noise level 0 (to {to:g}): there is no noise to scale. To invert a clean video, "
            "start at the lowest sigma that the network knows, schedule.sigmas[0]."
        )
    return x0 + (to / sigma) * (x - x0)


def final_latents(steps: Iterable[Step]) -> Latents:
    """Return the latents of the last step."""
    (final,) = deque(steps, maxlen=1)
    return final.x


def _add_sampler_noise(x: Latents, amount: float, noise_at: NoiseAt, sigma: float) -> Latents:
    """Add `amount` times the noise for this sigma, to the frames in `x`: Text2Video-Zero starts with frame 0 alone."""
    return x + amount * noise_at(sigma)[:, : x.shape[1]].to(x) if amount > 0 else x


class NamedSampler(NamedTuple):
    """A sampler that users choose by name.

    spacing  (the model's table of sigmas, steps) -> the sigmas to sample along
    sampler  noise for ancestral steps, as a function of sigma -> the sampler
    """

    spacing: Callable[[Sequence[float], int], list[float]]
    sampler: Callable[[NoiseAt], Sampler]


BY_NAME: Mapping[str, NamedSampler] = {
    "ddim": NamedSampler(leading, lambda noise_at: ddim),
    "dpmpp-2m": NamedSampler(leading, lambda noise_at: dpmpp_2m),
    "euler-ancestral": NamedSampler(leading, euler_ancestral),
    "lcm": NamedSampler(lcm_spacing, lcm),
}
