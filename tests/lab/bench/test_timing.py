"""Pairs of timed runs, intervals of medians, the choice of the fastest variant, and the peak memory of a process."""

import numpy as np
import pytest
import torch

from kineograph_lab.bench import memory, timing
from kineograph_lab.bench.networks import network
from kineograph_lab.bench.timing import Pair, Variant


def test_sides_alternate() -> None:
    calls = list[str]()

    def run(side: str) -> float:
        calls.append(side)
        return {"ours": 1.0, "theirs": 2.0}[side]

    pairs = timing.time_pairs(lambda: run("ours"), lambda: run("theirs"), 3)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs == [(1.0, 2.0)] * 3


def test_speedup_is_the_median_of_paired_ratios() -> None:
    found = timing.summarise_pairs([Pair(1, 3), Pair(2, 2), Pair(1, 2)])
    assert (found["speedup"], found["low"], found["high"], found["level"]) == (2, 1, 3, 0.75)
    assert (found["seconds"], found["their_seconds"], found["repeats"]) == (1, 2, 3)


@pytest.mark.parametrize(("count", "ends"), [(1, (0, 0)), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (20, (5, 14))])
def test_the_interval_of_a_median_contains_it_as_often_as_stated(count: int, ends: tuple[int, int]) -> None:
    low, high, level = timing.median_interval(list(range(count)))
    assert (low, high) == ends and (level >= 0.95 or count < 6)
    values = np.sort(np.random.default_rng(0).standard_normal((20_000, count)), axis=1)
    contains = (values[:, ends[0]] <= 0) & (values[:, ends[1]] >= 0)
    assert contains.mean() == pytest.approx(level, abs=0.01)


def test_the_fastest_variant_is_found_one_property_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def measure(variant: Variant) -> float:
        seconds = 4.0 if variant.dtype == "float32" else 2.0
        return seconds + (variant.attention == "plain") + (variant.threads == 4) - 0.5 * variant.channels_last

    trials = timing.find_fastest(measure, ["float32", "bfloat16"])
    assert trials[0] == (Variant("bfloat16", 2, "sdpa", True), 1.5)
    assert len(trials) == 5 and trials[-1].variant == Variant("float32", 4)


def test_peak_memory_is_read_in_the_process() -> None:
    assert torch.cuda.is_available() or memory.peak_memory() > 10**8
    assert "ru_maxrss" not in memory.peak_memory.__code__.co_names


def allocate(megabytes: int) -> None:
    """Write to as much memory."""
    assert np.full(megabytes << 17, 1.0).sum() > 0


@pytest.mark.slow
def test_the_peak_of_a_child_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(__file__).rpartition("/")[0])
    allocate(1000)  # of this process, which `ru_maxrss` of the child would hold
    small, large = (memory.measure_peak(allocate, each) for each in (1, 300))
    assert small < 0.9 and large - small == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("shape", ["tiny-sd15", pytest.param("tiny-sdxl", marks=pytest.mark.slow)])
def test_networks_of_both_sides_are_equal(shape: str) -> None:
    unet, inputs = network.load_network(shape, "float32"), network.random_inputs(shape, 2)
    for attention in ("own", "first"):
        ours = network.evaluate_ours(unet, inputs, "torch", attention=attention)()
        theirs = network.evaluate_theirs(unet, inputs, Variant("float32", 1), attention=attention)()
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_operations_are_those_of_stable_diffusion() -> None:
    assert network.count_flops("sd15", 2) == pytest.approx(1.604e12, rel=1e-3)


def test_equal_output_is_that_of_diffusers_at_the_dtype() -> None:
    assert timing.is_equal_output(0.12, 0.1, "bfloat16", 0.5) and not timing.is_equal_output(0.13, 0.1, "bfloat16", 0.5)
    assert timing.is_equal_output(0.4, 0.0, "float32", 0.5) and not timing.is_equal_output(0.6, 0.0, "float32", 0.5)
