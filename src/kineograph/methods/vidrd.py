"""VidRD, Reuse and Diffuse: more frames than a model holds, clip after clip (Gu et al. 2023, section 3.2).

A clip leaves its noise and its whole way down to the next one, both turned round in time, so that where the last clip
ended the next begins. What draws a clip is any sampler of this package: it takes noise, and a solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch

from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.noise import past_dependent
from kineograph.trajectory import Solver, Step


class Past(NamedTuple):
    """What a clip leaves to the next: the noise that it began with, and the latents at every level on its way."""

    noise: Latents
    levels: Mapping[float, Latents]


Draw = Callable[[Latents, Solver], Iterator[Step]]  # (noise, solver) -> the walk of one clip
Guided = Mapping[float, int]  # level -> how many frames, from the first, follow the past there


@torch.no_grad()
def sample(
    draw: Draw, fresh: Latents, past: Past | None, *, keep: int, ratio: float, guided: Guided, solve: Solver
) -> Iterator[Step]:
    """Draw the next clip; the first, where there is no past.

    fresh   noise of its own for this clip, [b n c h w]
    keep    M, the frames that tie it to the last clip; less than n
    ratio   beta, how many parts of the past's noise come to one of fresh noise in the other frames
    guided  see `stages`
    `left_by` makes the past of the next clip from these steps and `begun`.
    """
    yield from draw(begun(fresh, past, keep, ratio), solve if past is None else staged(solve, past, guided))


def begun(fresh: Latents, past: Past | None, keep: int, ratio: float) -> Latents:
    """What the clip begins with: the past's noise turned round in time (frame-level noise reversion), mixed with fresh
    noise from frame `keep` on (past-dependent noise sampling)."""
    if not 0 <= keep < fresh.shape[1]:
        raise ValueError(f"A clip of {fresh.shape[1]} frames keeps fewer of them from the last clip, got {keep}.")
    if past is None:
        return fresh
    turned = past.noise.flip(1)
    return torch.cat([turned[:, :keep], past_dependent(turned, fresh, ratio)[:, keep:]], dim=1)


def stages(sigmas: Sequence[float], keep: int, share: float) -> dict[float, int]:
    """Denoising with staged guidance: frame j of `keep` follows the past for the first (keep - j) S / keep * share of S
    steps; the paper's share is gamma, 0.4. With 1 the first frame follows it to the end.

    >>> list(stages([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], keep=2, share=0.8).values())
    [2, 2, 1, 1]
    """
    steps = len(sigmas) - 1
    many = [sum(s < ceil((keep - j) * steps / keep * share - 1e-9) for j in range(keep)) for s in range(steps)]
    if share >= 1:
        many.append(1)
    return {sigma: count for sigma, count in zip(sigmas, many, strict=False) if count}


def staged(solve: Solver, past: Past, guided: Guided) -> Solver:
    """The solver, which before each step puts the past's latents, turned round, in place of the guided frames.

    A multistep solver takes single steps here.
    """

    @torch.no_grad()
    def walk(look: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        for sigma, to in pairwise(sigmas):
            step, after = solve(look, _overwritten(x, past, guided, sigma), [sigma, to])
            yield step
            x = after.x
        x = _overwritten(x, past, guided, sigmas[-1])
        yield Step(sigmas[-1], x, x)

    return walk


def _overwritten(x: Latents, past: Past, guided: Guided, sigma: float) -> Latents:
    then, count = past.levels.get(sigma), min(guided.get(sigma, 0), x.shape[1])
    if then is None or count == 0:
        return x
    return torch.cat([then.flip(1)[:, :count].to(x), x[:, count:]], dim=1)


def anchored(denoise: Denoise, first: Mapping[float, Latents], strength: float) -> Denoise:
    """The same model, whose estimate's mean over the frames is drawn to the first clip's, `first`, at the levels there.

    Not in the paper, where a clip is tied to its predecessor alone and drifts over many clips.
    """

    def look(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        if (wanted := first.get(sigma)) is None:
            return x0
        return x0 + strength * (wanted.to(x0) - x0.mean(1, keepdim=True))

    return look


def left_by(noise: Latents, steps: Sequence[Step]) -> Past:
    """What a clip that began with this noise and took these steps leaves. Steps of some frames only are left out."""
    return Past(noise, {step.sigma: step.x for step in steps if step.x.shape[1] == noise.shape[1]})
