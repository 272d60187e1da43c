"""Decreasing lists of sigmas to sample along, usually down to 0: spacings, subsets and slices.

A slice of the list samples from one sigma to another; a reversed slice is inversion. `leading`, `trailing` and
`linspace` pick integer timesteps from a model's table (`schedule.sigmas`, ascending), as diffusers' schedulers of that
`timestep_spacing` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from kineograph.errors import InputError

TOLERANCE = 1e-4  # relative; neighbours in a table of a thousand sigmas are thirty times further apart
DISTILLED_STEPS = 50  # of the spacing that latent consistency models are distilled on


def leading(table: Sequence[float], steps: int, offset: int = 1, last: float = 0.0) -> list[float]:
    """Return every (T // steps)-th timestep's sigma from `offset` up, as Stable Diffusion: 981, 961, ..., 1 for 50.

    diffusers' `set_alpha_to_one=False` is `last=table[0]`. DPMSolverMultistepScheduler's `leading` and `linspace` of n
    steps are these of n + 1 steps without their lowest evaluated sigma.
    """
    _check_steps(steps, len(table))
    stride = len(table) // steps
    top = (steps - 1) * stride + offset
    if not 0 <= offset <= top < len(table):
        raise InputError(
            f"Leading spacing of {steps} steps with offset {offset} starts at timestep {top}, "
            f"but the table's timesteps are 0 to {len(table) - 1}. Use offset=0, or fewer steps."
        )
    return _sigmas_at(table, range(top, offset - 1, -stride), last)


def trailing(table: Sequence[float], steps: int, last: float = 0.0) -> list[float]:
    """Return evenly spaced timesteps' sigmas from the highest, as distilled models need: 999, 979, ..., 19 for 50.

    Source: Lin et al. 2023, table 2.
    """
    _check_steps(steps, len(table))
    counts = np.arange(len(table), 0, -len(table) / steps)[:steps]  # arange may round to one too many
    return _sigmas_at(table, (counts.round().astype(int) - 1).tolist(), last)


def linspace(table: Sequence[float], steps: int, last: float = 0.0) -> list[float]:
    """Return evenly spaced timesteps' sigmas with both ends: 999, 979, 958, ..., 0 for 50; 999 for one step."""
    _check_steps(steps, len(table))
    top = len(table) - 1
    timesteps = np.linspace(0, top, steps).round().astype(int)[::-1].tolist()
    return _sigmas_at(table, timesteps if steps > 1 else [top], last)


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0, last: float = 0.0) -> list[float]:
    """Return sigmas evenly spaced in sigma^(1 / rho) between two sigmas (Karras et al. 2022, eq. 5)."""
    if steps < 1 or not sigma_max > sigma_min > last:
        raise InputError(
            "Karras spacing needs steps >= 1 and sigma_max > sigma_min > last; got "
            f"{steps} steps, {sigma_max:g}, {sigma_min:g} and {last:g}."
        )
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return [*(roots**rho).tolist(), last]


def exponential(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """Return sigmas evenly spaced in log(sigma) between two sigmas, and 0; diffusers' `use_lu_lambdas` has the same."""
    return [*np.geomspace(sigma_max, sigma_min, steps).tolist(), 0.0]


def beta(sigma_max: float, sigma_min: float, steps: int, shape: float = 0.6) -> list[float]:
    """Return sigmas at quantiles of a beta distribution between two sigmas, dense at both ends, and 0.

    Source: Lee et al. 2024.
    """
    from scipy.stats import beta as distribution  # imported here, as it takes half a second

    quantiles = distribution.ppf(1 - np.linspace(0, 1, steps), shape, shape)
    return [*(sigma_min + quantiles * (sigma_max - sigma_min)).tolist(), 0.0]


def align_your_steps(table: Sequence[float], steps: int, name: str = "StableDiffusionTimesteps") -> list[float]:
    """Return the sigmas that were optimised for a model, interpolated on a line in log(sigma), and 0.

    name: of ten timesteps, or of sigmas, in diffusers' `AysSchedules`. The lowest sigma of the table follows them, as
    in the authors' lists. Source: Sabour et al. 2024.
    """
    from diffusers.schedulers import AysSchedules  # imported here, as it takes seconds

    _check_steps(steps, len(table))
    values, low, high = AysSchedules[name], table[0], table[-1]
    if name.endswith("Timesteps"):
        values = [table[round(t * (len(table) - 1) / 999)] for t in values]
    levels = [high, *(each for each in values if low < each < high), low]
    positions = np.linspace(0, len(levels) - 1, steps + 1)
    return [*np.exp(np.interp(positions, range(len(levels)), np.log(levels))).tolist()[:-1], 0.0]


def lcm_spacing(table: Sequence[float], steps: int) -> list[float]:
    """Return a subset of the 50 sigmas that latent consistency models are distilled on, as LCMScheduler's."""
    if steps > DISTILLED_STEPS:
        raise InputError(
            f"lcm and tcd sample along at most {DISTILLED_STEPS} sigmas, those that such models are distilled on, and "
            f"`num_inference_steps` is {steps}: ask for fewer, or for another `spacing`"
        )
    return subsample(trailing(table, DISTILLED_STEPS), steps)


def subsample(sigmas: Sequence[float], steps: int) -> list[float]:
    """Return `steps` of the evaluated sigmas, evenly picked by position, and the last sigma."""
    _check_steps(steps, len(sigmas) - 1)
    picked = np.linspace(0, len(sigmas) - 1, steps, endpoint=False).astype(int)
    return [*(sigmas[i] for i in picked), sigmas[-1]]


def insert_sigmas(sigmas: Sequence[float], *added: float) -> list[float]:
    """Return the list with these sigmas inserted, except those within 1e-4 (relative) of a listed one.

    Raises InputError for a sigma outside of the list's range.
    """
    inserted = list(sigmas)
    for sigma in added:
        if any(_close(sigma, other) for other in inserted):
            continue
        if not sigmas[-1] < sigma < sigmas[0]:
            raise InputError(
                f"Sigma {sigma:g} lies outside of the sigmas, which go from {sigmas[0]:g} to {sigmas[-1]:g}."
            )
        inserted.append(sigma)
    return sorted(inserted, reverse=True)


def until(sigmas: Sequence[float], sigma: float) -> list[float]:
    """Return the slice from the highest sigma to this one, both included. Raises InputError if it is not listed."""
    return list(sigmas[: _position(sigmas, sigma) + 1])


def starting_at(sigmas: Sequence[float], sigma: float) -> list[float]:
    """Return the slice from this sigma to the end, both included. Raises InputError if it is not listed."""
    return list(sigmas[_position(sigmas, sigma) :])


def _position(sigmas: Sequence[float], sigma: float) -> int:
    for position, other in enumerate(sigmas):
        if _close(sigma, other):
            return position
    raise InputError(
        f"Sigma {sigma:g} is not one of these {len(sigmas)} sigmas from {sigmas[0]:g} to {sigmas[-1]:g}. "
        "Insert it first: insert_sigmas(sigmas, sigma)."
    )


def _close(sigma: float, other: float) -> bool:
    return math.isclose(sigma, other, rel_tol=TOLERANCE)


def _sigmas_at(table: Sequence[float], timesteps: Iterable[int], last: float) -> list[float]:
    """Return the sigmas of falling timesteps above `last`, and `last` itself."""
    return [*(table[t] for t in timesteps if table[t] > last), last]


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise InputError(f"Expected between 1 and {most} steps, got {steps} (`num_inference_steps`).")


# Spacings that users choose by name: functions of the table and the number of steps.
SPACINGS: Mapping[str, Callable[[Sequence[float], int], list[float]]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": lambda table, steps: karras(table[-1], table[0], steps),
    "exponential": lambda table, steps: exponential(table[-1], table[0], steps),
    "beta": lambda table, steps: beta(table[-1], table[0], steps),
    "ays": align_your_steps,
    "ays-sdxl": lambda table, steps: align_your_steps(table, steps, "StableDiffusionXLTimesteps"),
    "ays-svd": lambda table, steps: align_your_steps(table, steps, "StableDiffusionVideoSigmas"),
    "lcm": lcm_spacing,
}
