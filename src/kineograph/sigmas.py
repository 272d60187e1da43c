"""Ladders: falling noise levels, from where a walk starts to where it ends, usually 0.

A slice of a ladder says "from here to there"; reversed, it is inversion. The first three pick integer timesteps from
a model's table (`schedule.sigmas`, ascending), as diffusers' schedulers of that `timestep_spacing` do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

CLOSE = 1e-4  # relative; neighbours in a table of a thousand levels are thirty times further apart


def leading(table: Sequence[float], steps: int, offset: int = 1, last: float = 0.0) -> list[float]:
    """Every (T // steps)-th timestep from `offset` up, Stable Diffusion's own choice: 981, 961, ..., 1 for 50 steps.

    diffusers' `set_alpha_to_one=False` is `last=table[0]`. DPMSolverMultistepScheduler's `leading` and `linspace` of n
    steps are these of n + 1 steps without their lowest evaluated rung.
    """
    _check_steps(steps, len(table))
    stride = len(table) // steps
    top = (steps - 1) * stride + offset
    if not 0 <= offset <= top < len(table):
        raise ValueError(
            f"Leading spacing of {steps} steps with offset {offset} starts at timestep {top}, "
            f"but the table's timesteps are 0 to {len(table) - 1}. Use offset=0, or fewer steps."
        )
    return _rungs(table, range(top, offset - 1, -stride), last)


def trailing(table: Sequence[float], steps: int, last: float = 0.0) -> list[float]:
    """Evenly spaced from the very top, as distilled models want: 999, 979, ..., 19 for 50 steps.

    Source: Lin et al. 2023, table 2.
    """
    _check_steps(steps, len(table))
    counts = np.arange(len(table), 0, -len(table) / steps)[:steps]  # arange may round to one too many
    return _rungs(table, (counts.round().astype(int) - 1).tolist(), last)


def linspace(table: Sequence[float], steps: int, last: float = 0.0) -> list[float]:
    """Evenly spaced with both ends, rounded to timesteps: 999, 979, 958, ..., 0 for 50 steps. One step is the top."""
    _check_steps(steps, len(table))
    top = len(table) - 1
    timesteps = np.linspace(0, top, steps).round().astype(int)[::-1].tolist()
    return _rungs(table, timesteps if steps > 1 else [top], last)


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0, last: float = 0.0) -> list[float]:
    """Evenly spaced in sigma^(1 / rho), between two levels (Karras et al. 2022, eq. 5)."""
    if steps < 1 or not sigma_max > sigma_min > last:
        raise ValueError(
            "A Karras ladder needs steps >= 1 and sigma_max > sigma_min > last; got "
            f"{steps} steps, {sigma_max:g}, {sigma_min:g} and {last:g}."
        )
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return [*(roots**rho).tolist(), last]


def subsample(sigmas: Sequence[float], steps: int) -> list[float]:
    """A ladder of `steps` evaluations, evenly picked by position from the evaluations of a longer one.

    `thinned(trailing(table, 50), n)` is LCMScheduler's ladder: a subset of the 50 levels the model was distilled on.
    """
    _check_steps(steps, len(sigmas) - 1)
    picked = np.linspace(0, len(sigmas) - 1, steps, endpoint=False).astype(int)
    return [*(sigmas[i] for i in picked), sigmas[-1]]


def insert_sigmas(sigmas: Sequence[float], *levels: float) -> list[float]:
    """The ladder with these levels on it; a level that a rung meets within 1e-4 adds none.

    Raises ValueError for a level outside the ladder.
    """
    rungs = list(sigmas)
    for level in levels:
        if any(_same(level, rung) for rung in rungs):
            continue
        if not sigmas[-1] < level < sigmas[0]:
            raise ValueError(
                f"Level {level:g} lies outside this ladder, which goes from {sigmas[0]:g} to {sigmas[-1]:g}."
            )
        rungs.append(level)
    return sorted(rungs, reverse=True)


def until(sigmas: Sequence[float], level: float) -> list[float]:
    """The slice from the top down to this level, ends included. Raises ValueError when no rung meets the level."""
    return list(sigmas[: _position(sigmas, level) + 1])


def starting_at(sigmas: Sequence[float], level: float) -> list[float]:
    """The slice from this level to the end, ends included. Raises ValueError when no rung meets the level."""
    return list(sigmas[_position(sigmas, level) :])


def _position(sigmas: Sequence[float], level: float) -> int:
    for position, rung in enumerate(sigmas):
        if _same(level, rung):
            return position
    raise ValueError(
        f"No rung of this ladder ({sigmas[0]:g} to {sigmas[-1]:g}, {len(sigmas)} rungs) is at level {level:g}. "
        "Put it there first: through(sigmas, level)."
    )


def _same(level: float, rung: float) -> bool:
    return math.isclose(level, rung, rel_tol=CLOSE)


def _rungs(table: Sequence[float], timesteps: Iterable[int], last: float) -> list[float]:
    """The levels of falling timesteps, and the end. A rung at the end already would be a step to where one stands."""
    return [*(table[t] for t in timesteps if table[t] > last), last]


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"Expected between 1 and {most} steps, got {steps}.")
