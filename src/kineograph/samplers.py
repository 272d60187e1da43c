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
from numpy.polynomial import Polynomial

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, Mask, add_noise, blend
from kineograph.motion import FrameWarp


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
ScaleTimestep = Callable[[float, float], float]  # (sigma, factor) -> the sigma at `factor` times its timestep


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

    return partial(single_step_sampler, rule=partial(_ancestral_step, noise_at=noise_at, eta=eta))


def _ancestral_step(x: Latents, x0: Latents, sigma: float, to: float, noise_at: NoiseAt, eta: float = 1.0) -> Latents:
    if to > sigma:
        raise InputError(f"ddim_eta needs falling sigmas, got a step from {sigma:g} up to {to:g}. To invert, use ddim.")
    up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
    return _add_sampler_noise(step_to(x, x0, sigma, math.sqrt(to**2 - up**2)), up, noise_at, to)


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


def tcd(noise_at: NoiseAt, scale_timestep: ScaleTimestep, gamma: float = 0.3) -> Sampler:
    """Return strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, algorithm 4).

    Each step follows the trajectory to `1 - gamma` of the next timestep, and noise returns from there. gamma is the
    `eta` of diffusers, 0.3 there too.
    """

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        lower = scale_timestep(to, 1 - gamma)
        return _add_sampler_noise(step_to(x, x0, sigma, lower), math.sqrt(to**2 - lower**2), noise_at, to)

    return partial(single_step_sampler, rule=rule)


@torch.no_grad()
def heun(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by Heun's method (Karras et al. 2022, algorithm 1): two evaluations a step, one in a step to 0."""
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        yield Step(sigma, x, x0)
        after = step_to(x, x0, sigma, to)
        if to > 0:
            slopes = _slope(Step(sigma, x, x0)) + _slope(Step(to, after, denoise(after, to)))
            after = x + (to - sigma) / 2 * slopes
        x = after
    yield Step(sigmas[-1], x, x)


@torch.no_grad()
def lms(denoise: Denoise, x: Latents, sigmas: Sequence[float], order: int = 4) -> Iterator[Step]:
    """Sample by a linear multistep method, the slopes interpolated by a polynomial (k-diffusion, diffusers' LMS)."""
    past = deque[Step](maxlen=order)
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        past.append(Step(sigma, x, x0))
        yield past[-1]
        nodes = [each.sigma for each in past]
        for k, each in enumerate(past):
            x = x + _integrate(nodes, k, sigma, to) * _slope(each)
    yield Step(sigmas[-1], x, x)


def _integrate(nodes: Sequence[float], k: int, start: float, end: float) -> float:
    """Integrate the polynomial that is 1 at node k and 0 at the others."""
    others = [node for number, node in enumerate(nodes) if number != k]
    integral = Polynomial.fromroots(others).integ() if others else Polynomial([0, 1])
    return float(integral(end) - integral(start)) / math.prod(nodes[k] - other for other in others)


# weights of the last estimates, newest first (Adams-Bashforth for equal steps)
PLMS_WEIGHTS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by pseudo linear multistep (Liu et al. 2022, as Stable Diffusion): the first step is Heun's.

    It takes one evaluation more than steps. diffusers' PNDMScheduler with `skip_prk_steps`.
    """
    return _sample_plms(denoise, x, sigmas, _slope, lambda slope, step: slope)


def plms_v(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by PLMS that extrapolates v in place of the noise, as diffusers for networks with v-prediction."""

    def v(step: Step) -> Latents:
        return (_slope(step) - step.sigma * step.x0) / math.hypot(1, step.sigma)

    def slope(v: Latents, step: Step) -> Latents:
        norm = math.hypot(1, step.sigma)
        return v / norm + step.sigma / norm**2 * step.x

    return _sample_plms(denoise, x, sigmas, v, slope)


@torch.no_grad()
def _sample_plms(
    denoise: Denoise,
    x: Latents,
    sigmas: Sequence[float],
    estimate: Callable[[Step], Latents],
    slope: Callable[[Latents, Step], Latents],
) -> Iterator[Step]:
    """Sample by PLMS. estimate: what is extrapolated; slope: function of the result and the step."""
    past = deque[Latents](maxlen=4)
    for sigma, to in pairwise(sigmas):
        now = Step(sigma, x, denoise(x, sigma))
        yield now
        past.appendleft(estimate(now))
        if len(past) == 1 and to > 0:
            after = step_to(x, now.x0, sigma, to)
            combined = (past[0] + estimate(Step(to, after, denoise(after, to)))) / 2
        else:
            weights = PLMS_WEIGHTS[len(past) - 1]
            combined = sum((weight * each for weight, each in zip(weights, past, strict=True)), torch.zeros_like(x))
        x = x + (to - sigma) * slope(combined, now)
    yield Step(sigmas[-1], x, x)


def _slope(step: Step) -> Latents:
    """Return dx/dsigma of the probability flow, which is the estimated noise."""
    return (step.x - step.x0) / step.sigma


def dpmpp_3m(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by DPM-Solver++ of order 3, multistep (Lu et al. 2022): x0 extrapolated on the parabola of three.

    diffusers' `solver_order` 3: the first steps, and the last ones of fewer than 15 to 0, are of lower order.
    """
    return _sample_multistep(denoise, x, sigmas, step_to, order=3)


def dpmpp_2m(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM with x0 extrapolated to the middle of the step.

    Second order in the steps of log(sigma). The first step, and a step to 0, are plain DDIM. A slice of the sigmas
    starts without a previous estimate, so slices do not give exactly the result of the whole list.
    """
    return _sample_multistep(denoise, x, sigmas, step_to)


def dpmpp_2m_sde(noise_at: NoiseAt) -> Sampler:
    """Return the stochastic DPM-Solver++(2M), diffusers' `sde-dpmsolver++`."""

    def rule(x: Latents, x0: Latents, sigma: float, to: float) -> Latents:
        share = (to / sigma) ** 2
        return _add_sampler_noise(x0 + share * (x - x0), to * math.sqrt(1 - share), noise_at, to)

    return partial(_sample_multistep, rule=rule)


@torch.no_grad()
def _sample_multistep(
    denoise: Denoise, x: Latents, sigmas: Sequence[float], rule: StepRule, order: int = 2
) -> Iterator[Step]:
    past = deque[Step](maxlen=order)
    few = sigmas[-1] == 0 and len(sigmas) <= 15
    for left, (sigma, to) in zip(range(len(sigmas) - 1, 0, -1), pairwise(sigmas), strict=True):
        past.append(now := Step(sigma, x, denoise(x, sigma)))
        yield now
        count = min(len(past), left) if few else len(past)
        if count == 1 or to == 0:
            x0 = now.x0
        else:
            x0 = _extrapolate(past[-2], now, to) if count == 2 else _extrapolate_3(past, to)
        x = rule(x, x0, sigma, to)
    yield Step(sigmas[-1], x, x)


def _extrapolate(before: Step, now: Step, to: float) -> Latents:
    """Return x0 at the middle, in log(sigma), of the step to sigma `to`, on the line through two estimates."""
    ratio = math.log(now.sigma / to) / math.log(before.sigma / now.sigma)
    return now.x0 + 0.5 * ratio * (now.x0 - before.x0)


def _extrapolate_3(past: Sequence[Step], to: float) -> Latents:
    """Return the mean of x0 over the step to sigma `to`, weighted as DPM-Solver++ does, on the parabola of three."""
    first, before, now = past
    h = math.log(now.sigma / to)
    near, far = math.log(before.sigma / now.sigma) / h, math.log(first.sigma / before.sigma) / h
    slope, slope_before = (now.x0 - before.x0) / near, (before.x0 - first.x0) / far
    change = (slope - slope_before) / (near + far)
    shrunk = math.expm1(-h)
    return now.x0 - (1 / h + 1 / shrunk) * (slope + near * change) + ((1 + h / shrunk) / h**2 - 0.5 / shrunk) * change


def dpmpp_sde(noise_at: NoiseAt) -> Sampler:
    """Return DPM-Solver++(SDE), an ancestral step by the estimate at its middle: two evaluations, one to 0.

    The noise of both is that of one Brownian path, as in k-diffusion.
    """

    @torch.no_grad()
    def sampler(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        for sigma, to in pairwise(sigmas):
            x0 = denoise(x, sigma)
            yield Step(sigma, x, x0)
            middle = math.sqrt(sigma * to)
            if to > 0:
                first, second = (noise_at(each)[:, : x.shape[1]].to(x) for each in (middle, to))
                whole = (math.sqrt(sigma - middle) * first + math.sqrt(middle - to) * second) / math.sqrt(sigma - to)
                half_way = _ancestral_step(x, x0, sigma, middle, _always(first))
                x0 = denoise(half_way, middle)
                x = _ancestral_step(x, x0, sigma, to, _always(whole))
            else:
                x = x0
        yield Step(sigmas[-1], x, x)

    return sampler


def _always(noise: Latents) -> NoiseAt:
    return lambda sigma: noise


@torch.no_grad()
def dpmpp_2s(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by single-step DPM-Solver++ of order 2 (Lu et al. 2022, algorithm 1), as diffusers orders its steps.

    Every second step starts again from the latents before the first, with the estimates of both. The last step is DDIM.
    """
    before = None
    for number, (sigma, to) in enumerate(pairwise(sigmas), 1):
        x0 = denoise(x, sigma)
        yield Step(sigma, x, x0)
        if before is not None and number + 1 < len(sigmas):
            ratio = math.log(before.sigma / to) / math.log(before.sigma / sigma)
            x = step_to(before.x, before.x0 + 0.5 * ratio * (x0 - before.x0), before.sigma, to)
            before = None
        else:
            before = Step(sigma, x, x0)
            x = step_to(x, x0, sigma, to)
    yield Step(sigmas[-1], x, x)


@torch.no_grad()
def unipc(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by UniPC of order 2 (Zhao et al. 2023, B_2): DPM-Solver++(2M), each step corrected by the next estimate.

    The last step is plain DDIM, and is not corrected.
    """
    past = list[Step]()
    for number, (sigma, to) in enumerate(pairwise(sigmas), 1):
        x0 = denoise(x, sigma)
        if past:
            x = _correct(past, x0, sigma)
        past = [*past[-1:], Step(sigma, x, x0)]
        yield past[-1]
        middle = x0 if len(past) == 1 or number + 1 == len(sigmas) else _extrapolate(past[0], past[1], to)
        x = step_to(x, middle, sigma, to)
    yield Step(sigmas[-1], x, x)


def _correct(past: Sequence[Step], x0: Latents, to: float) -> Latents:
    """Return the step from the last of `past` to sigma `to` again, with the estimate `x0` there."""
    last = past[-1]
    if len(past) == 1:
        return step_to(last.x, (last.x0 + x0) / 2, last.sigma, to)
    h = math.log(to / last.sigma)
    ratio = math.log(past[0].sigma / last.sigma) / h
    phi = (math.expm1(h) / h - 1) / math.expm1(h), 2 * ((math.expm1(h) / h - 1) / h - 0.5) / math.expm1(h)
    weight = (phi[0] - phi[1]) / (1 - ratio)  # solves weight + new = phi[0], ratio * weight + new = phi[1]
    new = phi[0] - weight
    middle = last.x0 + weight / ratio * (past[0].x0 - last.x0) + new * (x0 - last.x0)
    return step_to(last.x, middle, last.sigma, to)


@torch.no_grad()
def deis(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
    """Sample by DEIS of order 2 in log(sigma) (Zhang & Chen 2022): slopes extrapolated on a line and integrated.

    The first step, a step to 0 and the last of fewer than 15 are plain DDIM.
    """
    before = None
    for number, (sigma, to) in enumerate(pairwise(sigmas), 1):
        x0 = denoise(x, sigma)
        now = Step(sigma, x, x0)
        yield now
        if before is None or to == 0 or number + 1 == len(sigmas) < 16:
            x = step_to(x, x0, sigma, to)
        else:
            # the integral of log(s / sigma) / log(sigma / before) from sigma to `to`
            weight = (to * (math.log(to / sigma) - 1) + sigma) / math.log(sigma / before.sigma)
            x = x + (to - sigma) * _slope(now) + weight * (_slope(now) - _slope(before))
        before = now
    yield Step(sigmas[-1], x, x)


def smooth_background(sampler: Sampler, warp: FrameWarp, masks: ForegroundMasks, strength: float) -> Sampler:
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
            warped = add_noise(*warp(x0 := step.x0[:, :1], (first - x0) / to), to) if to > 0 else warp.latents(first)
            mask = masks(step.x0, sigma)
            union = torch.maximum(mask[:, 1:], warp.latents(mask[:, :1]).clamp(0, 1))
            others = blend(x[:, 1:], strength * warped + (1 - strength) * x[:, 1:], union)
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


# Samplers that users choose by name: functions of the noise of stochastic ones and of the model's timesteps.
BY_NAME: Mapping[str, Callable[[NoiseAt, ScaleTimestep], Sampler]] = {
    "ddim": lambda noise_at, scale_timestep: ddim,
    "euler": lambda noise_at, scale_timestep: ddim,  # equal in these units
    "euler-ancestral": lambda noise_at, scale_timestep: euler_ancestral(noise_at),
    "heun": lambda noise_at, scale_timestep: heun,
    "lms": lambda noise_at, scale_timestep: lms,
    "plms": lambda noise_at, scale_timestep: plms,
    "plms-v": lambda noise_at, scale_timestep: plms_v,
    "dpmpp-2m": lambda noise_at, scale_timestep: dpmpp_2m,
    "dpmpp-3m": lambda noise_at, scale_timestep: dpmpp_3m,
    "dpmpp-2m-sde": lambda noise_at, scale_timestep: dpmpp_2m_sde(noise_at),
    "dpmpp-2s": lambda noise_at, scale_timestep: dpmpp_2s,
    "dpmpp-sde": lambda noise_at, scale_timestep: dpmpp_sde(noise_at),
    "unipc": lambda noise_at, scale_timestep: unipc,
    "deis": lambda noise_at, scale_timestep: deis,
    "lcm": lambda noise_at, scale_timestep: lcm(noise_at),
    "tcd": tcd,
}
