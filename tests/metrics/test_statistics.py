"""Estimates with cluster-robust errors: coverage by simulation, scipy's bootstrap, closed forms, limits."""

import math

import numpy as np
import pytest
import scipy.stats

from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.statistics import (
    Estimate,
    difference_of_independent,
    holm,
    jackknife,
    mean,
    mean_difference,
    ratio,
)

EACH = 10  # values of a cluster
RATIO = 0.8


def simulated(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return paired values with effects of clusters in both and in their difference, and the clusters."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(0, [[1.0], [0.5]], (2, count)).repeat(EACH, axis=1)
    theirs = 5 + shared + rng.normal(0, 1, count * EACH)
    ours = RATIO * theirs + own + rng.normal(0, 1, count * EACH)
    return ours, theirs, np.arange(count).repeat(EACH)


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [6, 12, 40])
def test_intervals_hold_the_truth_in_95_percent(clusters: int) -> None:
    repeats, inside = 1500, {"mean": 0, "difference": 0, "ratio": 0}
    truth = {"mean": RATIO * 5, "difference": (RATIO - 1) * 5, "ratio": RATIO}
    for seed in range(repeats):
        ours, theirs, number = simulated(clusters, seed)
        found = {
            "mean": mean(ours, number), "difference": mean_difference(ours, theirs, number),
            "ratio": ratio(ours, theirs, number),
        }  # fmt: skip
        for name, each in found.items():
            inside[name] += each.low <= truth[name] <= each.high
    assert all(0.93 <= count / repeats <= 0.97 for count in inside.values()), inside


def test_intervals_of_independent_values_would_be_too_narrow() -> None:
    found = [mean(simulated(12, seed)[0]) for seed in range(400)]
    assert np.mean([each.low <= RATIO * 5 <= each.high for each in found]) < 0.7


def test_error_is_that_of_scipys_bootstrap_over_clusters() -> None:
    ours, theirs, number = simulated(40, 3)
    sums = np.stack([np.bincount(number, each) for each in (ours, theirs, np.ones(len(ours)))])

    def resampled(top: int, bottom: int) -> float:
        found = scipy.stats.bootstrap(
            (np.arange(40),), lambda chosen, axis: sums[top][chosen].sum(axis) / sums[bottom][chosen].sum(axis),
            n_resamples=9999, method="basic", rng=np.random.default_rng(0),
        )  # fmt: skip
        return found.standard_error * math.sqrt(40 / 39)  # of resamples it is that much smaller

    assert mean(ours, number).error == pytest.approx(resampled(0, 2), rel=0.03)
    assert ratio(ours, theirs, number).error == pytest.approx(resampled(0, 1), rel=0.03)


def test_errors_of_equal_clusters_are_those_of_their_means() -> None:
    ours, theirs, number = simulated(6, 1)
    found, means = mean(ours, number), ours.reshape(6, EACH).mean(1)
    assert found.error == pytest.approx(scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx(
        scipy.stats.t.interval(0.95, 5, means.mean(), scipy.stats.sem(means))
    )
    assert (found.count, found.clusters, found.degrees) == (60, 6, 5)
    assert mean_difference(ours, theirs, number) == mean(ours - theirs, number)
    assert mean(ours, [f"LoRA {each}" for each in number]) == found
    assert mean(ours).error == pytest.approx(scipy.stats.sem(ours))
    twice = ratio(2 * theirs, theirs, number)
    assert (twice.value, twice.error) == (2, 0)


def test_tests_agree_with_scipys_and_with_the_bounds() -> None:
    values = np.random.default_rng(5).normal(0.3, 1, 30)
    found = mean(values)
    greater = scipy.stats.ttest_1samp(values, 0, alternative="greater").pvalue
    less = scipy.stats.ttest_1samp(values, 1, alternative="less").pvalue
    assert found.p_within(0, math.inf) == pytest.approx(greater)
    assert found.p_within(-math.inf, 1) == pytest.approx(less)
    assert found.p_within(0, 1) == max(greater, less)  # two one-sided tests
    assert found.p_within(found.lower_bound(), math.inf) == pytest.approx(0.05)
    assert found.p_within(-math.inf, found.upper_bound()) == pytest.approx(0.05)


def test_fewer_values_never_pass_more_easily() -> None:
    values = np.random.default_rng(5).normal(0.0, 1, 400)
    assert mean(values).p_within(-0.5, 0.5) < 0.01
    assert all(mean(values[:few]).p_within(-0.5, 0.5) > 0.05 for few in (2, 3, 6))


def test_one_cluster_has_no_error_and_equal_values_no_interval() -> None:
    found = mean([1.0, 2.0, 3.0], ["a"] * 3)
    assert found.value == 2 and (found.count, found.clusters) == (3, 1)
    assert all(map(math.isnan, (found.error, found.low, found.high, found.p_within(0, 9))))
    equal = mean([1.0, 1.0, 1.0])
    assert math.isnan(equal.low) and math.isnan(equal.high) and str(equal) == "1.000 (no interval: all are equal)"
    assert str(found) == "2.000" and str(mean([])) == str(ratio([1.0], [0.0])) == "-"
    with pytest.raises(ValueError, match="the cluster of each of 2 values, got 3"):
        mean([1.0, 2.0], [1, 2, 3])


def test_equal_values_have_no_error_of_rounding() -> None:
    found = mean([0.1] * 7)
    assert (found.error, found.p_within(0, 1), found.p_within(0.1, 1)) == (0, 0, 1)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R's p.adjust
    assert holm([0.02, math.nan, 0.5]) == pytest.approx([0.06, 1, 1]) and holm([]) == []


def test_difference_of_independent_samples_is_welchs() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(1, 1, 12), rng.normal(0, 3, 40)
    found = difference_of_independent(mean(one), mean(other))
    expected = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(10, 1))
    found = jackknife(lambda features: float(features.mean()), values)
    assert found.value == values.mean() and found.error == pytest.approx(scipy.stats.sem(values[:, 0]))
    assert np.isnan(jackknife(lambda features: 0.0, values[:2]).error)
    repeated = jackknife(lambda features: float(features.mean()), values.repeat(3, 0), np.arange(10).repeat(3))
    assert repeated == Estimate(repeated.value, repeated.error, 30, 10, 9)
    assert repeated.error == pytest.approx(found.error)


@pytest.mark.slow
def test_jackknife_gives_the_error_of_fvd_and_resampling_does_not() -> None:
    count, width, rng = 60, 80, np.random.default_rng(0)  # fewer videos than features, as in the studies
    real = moments(rng.normal(size=(count, width)))

    def fvd(features: np.ndarray) -> float:
        return frechet_distance(moments(features), real)

    sets = [rng.normal(0.3, np.linspace(1, 2, width), (count, width)) for _ in range(60)]
    true = np.std([fvd(each) for each in sets])
    assert np.mean([jackknife(fvd, each).error for each in sets[:8]]) == pytest.approx(true, rel=0.25)
    resampled = [[fvd(each[rng.integers(0, count, count)]) for _ in range(20)] for each in sets[:8]]
    assert np.mean(np.std(resampled, axis=1)) > 1.35 * true
