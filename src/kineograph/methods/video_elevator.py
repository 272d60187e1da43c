"""VideoElevator: an image model draws, and a video model moves what it draws (Zhang et al. 2024, section 3).

The two share no network, no schedule and no text encoder, only the space of clean latents. At some steps on the way
down the image model's clean estimate is handed over: slow motion is kept (a low pass along time), the video model
redraws it from the same noise level (SDEdit), and the image model finds the noisy latents that lead to what came of it
(inversion). What makes the image model see a video at all, attention to the first frame, the caller binds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise

import torch

from kineograph.denoise import Denoise
from kineograph.latents import Latents, add_noise
from kineograph.samplers import NoiseAt, Sampler, Step, ddim, recorded, step_to
from kineograph.sigmas import insert_sigmas, starting_at, until

Refine = Callable[[Latents, float], Latents]  # (clean estimate, its level) -> clean estimate that moves
Return = Callable[[Latents, float], list[Step]]  # (clean, level) -> a path that ends with noisy latents at that level
Correct = Callable[[Sequence[Step], float, float], Latents | float]  # (path, level, next level) -> what is added there
Pass = Callable[[Latents], Latents]


def refinement_sigmas(sigmas: Sequence[float], parts: Iterable[float]) -> set[float]:
    """The rungs at which these parts of the steps are left, for `refine_at`."""
    steps = len(sigmas) - 1
    return {sigmas[steps - max(1, round(part * steps))] for part in parts}


@torch.no_grad()
def sample(
    look: Denoise,
    noise: Latents,
    sigmas: Sequence[float],
    *,
    refine_at: Collection[float],
    refine: Refine,
    back: Return,
    correct: Correct | None = None,
    sampler: Sampler = ddim,
) -> Iterator[Step]:
    """Draw a video down the image model's ladder.

    refine_at  the rungs whose estimate is refined; without any, this is `solve` itself where that takes single steps
    refine     makes the estimate move, see `moved`
    back       takes it to the next rung, see `inverted`, `with_noise`
    correct    what is added after steps that are not refined, see `drift`; nothing unless given
    Raises ValueError for a level that no rung meets, and for the end of the ladder, where nothing is estimated.
    """
    refined = _rungs(sigmas, refine_at)
    x, path = sigmas[0] * noise, list[Step]()
    for sigma, to in pairwise(sigmas):
        step, after = sampler(look, x, [sigma, to])
        yield step
        if sigma in refined:
            path = back(refine(step.x0, sigma), to)
            x = path[-1].x
        else:
            x = after.x + (correct(path, sigma, to) if correct else 0)
    yield Step(sigmas[-1], x, x)


def refine_with_video_model(
    look: Denoise, sigmas: Sequence[float], steps: int, draw: NoiseAt, *, keep: Pass, sampler: Sampler = ddim
) -> Refine:
    """Refine by a video model: what `keep` lets pass of the estimate, noised to its level and redrawn for a few steps.

    sigmas  the video model's ladder; a walk begins at the image model's level, wherever that lies between its rungs, or
            at the ladder's top where the level is higher
    steps   evaluations of the video model; the last of its estimates is what comes back
    draw    noise for a level
    keep    `latents.low_pass` along time in the paper
    """
    if steps < 1:
        raise ValueError(f"The video model takes at least 1 step, got {steps}.")

    def refine(x0: Latents, sigma: float) -> Latents:
        start = min(sigma, sigmas[0])
        way = starting_at(insert_sigmas(sigmas, start), start)[: steps + 1]
        return recorded(sampler(look, add_noise(keep(x0), draw(start).to(x0), start), way))[-2].x0

    return refine


def invert(look: Denoise, sigmas: Sequence[float], most: int | None = None, sampler: Sampler = ddim) -> Return:
    """Back to a level by inversion: the noisy latents from which the image model would draw these clean ones.

    look    the image model told the prompt, not guided: guidance would make it leave the way it came
    sigmas  a falling ladder that ends at the lowest level the image model knows
    most    evaluations, at rungs evenly picked; all of the rungs below the level unless given
    """

    def back(clean: Latents, level: float) -> list[Step]:
        if level <= sigmas[-1]:
            return [Step(level, clean, clean)]
        way = starting_at(insert_sigmas(sigmas, level), level)[::-1]
        return recorded(sampler(look, clean, _thinned(way, most)))

    return back


def add_noise_again(draw: NoiseAt) -> Return:
    """Back to a level with noise that `draw` gives: of the start again, or fresh (the paper's ablation)."""

    def back(clean: Latents, level: float) -> list[Step]:
        return [Step(level, add_noise(clean, draw(level).to(clean), level), clean)]

    return back


def correct_drift(look: Denoise) -> Correct:
    """What a step down from the inverted latents misses of where they came from, as in the released code (not in the
    paper). The path must hold all rungs: `inverted` with `most=None`, on the sampler's own ladder.

    Of the path's own predictions only the highest is missing, so `look` is called once a refined step.
    """

    def correct(path: Sequence[Step], sigma: float, to: float) -> Latents | float:
        if not path or path[-1].sigma < sigma:
            return 0.0
        here, there = (_at(path, level) for level in (sigma, max(to, path[0].sigma)))
        x0 = look(here.x, sigma) if here is path[-1] else here.x0
        return there.x - step_to(here.x, x0, here.sigma, there.sigma)

    return correct


def _at(path: Sequence[Step], level: float) -> Step:
    for step in path:
        if abs(step.sigma - level) <= 1e-4 * level:
            return step
    raise ValueError(
        f"The inversion did not pass level {level:g}: invert on the sampler's own ladder, all rungs of it."
    )


def _rungs(sigmas: Sequence[float], levels: Iterable[float]) -> set[float]:
    """The rungs that meet these levels."""
    found = {until(sigmas, level)[-1] for level in levels}
    if sigmas[-1] in found:
        raise ValueError(f"Nothing is estimated at the end of the ladder, level {sigmas[-1]:g}: refine above it.")
    return found


def _thinned(way: list[float], most: int | None) -> list[float]:
    """`most` steps of the way, evenly picked, both ends among them."""
    steps = len(way) - 1
    if most is None or steps <= most:
        return way
    return [way[round(k * steps / most)] for k in range(most + 1)]
