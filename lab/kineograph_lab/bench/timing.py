"""Time of pairs of runs, the rate of a matrix product, and the choice of the fastest way to run diffusers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from kineograph.models.placement import choose_placement, parse_dtype

LEVEL = 0.95  # of the intervals
MAX_RATIO = 1.2  # of the mean difference to float32 over diffusers' own, for equal output
MATRIX_SIZE, MATRIX_REPEATS = 2048, 12


Run = Callable[[], float]  # does something and returns its seconds, see `time_run`


class Pair(NamedTuple):
    """Seconds of ours and of theirs, one run after the other."""

    seconds: float
    their_seconds: float


class Variant(NamedTuple):
    """A way to run diffusers.

    attention      "sdpa": torch's fused attention; "plain": matrix products and a softmax
    channels_last  memory format of the U-Net's weights
    """

    dtype: str
    threads: int
    attention: str = "sdpa"
    channels_last: bool = False


class Trial(NamedTuple):
    """Seconds of a short run."""

    variant: Variant
    seconds: float


def time_pairs(ours: Run, theirs: Run, repeats: int) -> list[Pair]:
    """Return the seconds of runs of both sides; the side that starts alternates."""
    pairs = list[Pair]()
    for turn in range(repeats):
        if turn % 2 == 0:
            seconds, their_seconds = ours(), theirs()
        else:
            their_seconds, seconds = theirs(), ours()
        pairs.append(Pair(seconds, their_seconds))
    return pairs


def time_run(run: Callable[[], object]) -> float:
    """Return the seconds of a call, until the GPU has finished too."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summarise_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return medians of the seconds and of the paired ratios, with the interval of the latter.

    "level" is the probability that the interval contains the median: 0.95 or a little more from six pairs on; of fewer,
    the interval is from the least ratio to the greatest, and its level is lower.
    """
    ratios = [theirs / ours for ours, theirs in pairs]
    low, high, level = median_interval(ratios)
    return {
        "speedup": statistics.median(ratios), "low": low, "high": high, "level": level, "repeats": len(pairs),
        "seconds": statistics.median(each.seconds for each in pairs),
        "their_seconds": statistics.median(each.their_seconds for each in pairs),
    }  # fmt: skip


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return an interval of the median by order statistics, and the probability that it contains the median."""
    ordered, count = sorted(values), len(values)
    outside, tail = 0, 0.0  # values left out at each end, and the probability that the median lies among those
    while outside < (count - 1) // 2:
        more = tail + math.comb(count, outside) / 2**count
        if 2 * (more + math.comb(count, outside + 1) / 2**count) > 1 - LEVEL:
            break
        outside, tail = outside + 1, more
    return ordered[outside], ordered[-1 - outside], 1 - 2 * (tail + math.comb(count, outside) / 2**count)


def matrix_peak(dtype: str) -> float:
    """Return the FLOP/s of the fastest of several large matrix products of torch."""
    device = choose_placement().device
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(parse_dtype(dtype)) for _ in range(2))
    return 2 * MATRIX_SIZE**3 / min(time_run(lambda: a @ b) for _ in range(MATRIX_REPEATS))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch with a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_fastest(
    measure: Callable[[Variant], float], dtypes: Sequence[str], *, formats: Sequence[bool] = (False, True)
) -> list[Trial]:
    """Return all trials, the fastest first: one property after the other is changed, and the faster value is kept.

    measure: seconds of a short run. dtypes, formats: values of `dtype` and `channels_last` to try.
    """
    cores = torch.get_num_threads()
    choices: dict[str, Sequence[Any]] = {
        "dtype": dtypes,
        "attention": ["sdpa", "plain"],
        "threads": sorted({cores, max(1, cores // 2)}, reverse=True),
        "channels_last": formats,
    }
    start = Variant(dtypes[0], cores)
    seconds = {start: measure(start)}
    for name, values in choices.items():
        fastest = min(seconds, key=seconds.__getitem__)
        for value in values:
            variant = fastest._replace(**{name: value})
            if variant not in seconds:
                seconds[variant] = measure(variant)
    return sorted((Trial(*each) for each in seconds.items()), key=lambda trial: trial.seconds)


def is_equal_output(difference: float, their_difference: float, dtype: str, rounding: float) -> bool:
    """Return True if a mean difference to diffusers in float32 is at most `MAX_RATIO` times diffusers' own.

    In float32, where diffusers' own is next to nothing, it may be `rounding`.
    """
    return difference <= max(MAX_RATIO * their_difference, rounding if dtype == "float32" else 0.0)
