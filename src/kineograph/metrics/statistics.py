"""Estimates with cluster-robust errors: means, paired differences, ratios of means, and statistics of whole sets.

Values of one cluster (the videos of one trained adapter, say) depend on one another; clusters do not. All errors are
those of a sample of clusters, and all intervals use Student's t with one degree of freedom less than there are
clusters. A single cluster has no error: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr, stdtrit

LEVEL = 0.95  # of intervals
GROUPS = 10  # of clusters, left out one after another by the jackknife
ROUNDING = 1e-12  # an error this small, relative to the values, is rounding of equal values

Values = Sequence[float] | Float[np.ndarray, " n"]
Clusters = Sequence[Hashable] | Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Estimate:
    """A number computed from a sample, with its standard error.

    error    standard error; NaN for fewer than two clusters
    count    values that it is computed from
    clusters independent groups of them
    degrees  degrees of freedom of the error
    """

    value: float
    error: float
    count: int
    clusters: int
    degrees: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; NaN where all clusters are equal, so that no error is known."""
        return self.lower_bound((1 + LEVEL) / 2) if self.error else math.nan

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return 2 * self.value - self.low

    def lower_bound(self, level: float = LEVEL) -> float:
        """Return the bound that the true value lies above with this probability."""
        return self.value - self._quantile(level) * self.error

    def upper_bound(self, level: float = LEVEL) -> float:
        """Return the bound that the true value lies below with this probability."""
        return self.value + self._quantile(level) * self.error

    def _quantile(self, level: float) -> float:
        return float(stdtrit(self.degrees, level)) if self.degrees > 0 else math.nan

    def p_within(self, low: float, high: float) -> float:
        """Return the p-value of "the true value lies between low and high" by two one-sided tests; NaN without error.

        An infinite end leaves a single one-sided test. The p-value is below 0.05 where the one-sided 95 % bounds lie
        between the two ends.
        """
        if math.isnan(self.error):
            return math.nan
        return max(_upper_tail(self.value - low, self), _upper_tail(high - self.value, self))

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.error):
            return f"{self.value:.3f}"
        if self.error == 0:
            return f"{self.value:.3f} (no interval: all are equal)"
        return f"{self.value:.3f} ± {self.error:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


NO_ESTIMATE = Estimate(math.nan, math.nan, 0, 0, 0)


def _upper_tail(gap: float, estimate: Estimate) -> float:
    """Return the probability of an estimate at least this far inside of a region, if the true value is at its end."""
    if math.isinf(gap):
        return 0.0
    if estimate.error == 0:
        return 0.0 if gap > 0 else 1.0
    return float(stdtr(estimate.degrees, -gap / estimate.error))


def mean(values: Values, clusters: Clusters | None = None) -> Estimate:
    """Return the mean of values; each is a cluster of its own if `clusters` does not say otherwise."""
    return ratio(values, np.ones(len(values)), clusters)


def mean_difference(ours: Values, theirs: Values, clusters: Clusters | None = None) -> Estimate:
    """Return the mean of paired differences, ours minus theirs."""
    return mean(np.subtract(ours, theirs), clusters)


def ratio(ours: Values, theirs: Values, clusters: Clusters | None = None) -> Estimate:
    """Return the ratio of the means of paired values, ours over theirs; NaN if theirs have the mean 0.

    The error is the linearised one (delta method) with residuals summed within clusters; of equally large clusters it
    equals, for a mean, the standard error of the clusters' means. Source: Cochran, Sampling Techniques (1977), 6.3 and
    9A.2.
    """
    number = cluster_numbers(clusters, len(ours))
    top, bottom = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if len(top) == 0:
        return NO_ESTIMATE
    count = int(number.max()) + 1
    if bottom.sum() == 0:
        return Estimate(math.nan, math.nan, len(top), count, 0)
    value = top.sum() / bottom.sum()
    totals = np.bincount(number, top - value * bottom)
    scale = abs(bottom.sum())
    error = math.sqrt(count / (count - 1) * np.square(totals).sum()) / scale if count > 1 else math.nan
    rounding = ROUNDING * (np.abs(top).sum() + abs(value) * np.abs(bottom).sum()) / scale
    return Estimate(float(value), 0.0 if error <= rounding else float(error), len(top), count, count - 1)


def cluster_numbers(clusters: Clusters | None, count: int) -> Int[np.ndarray, " n"]:
    """Return the number of each value's cluster, from 0 in the order in which they appear."""
    if clusters is None:
        return np.arange(count)
    if len(clusters) != count:
        raise ValueError(f"expected the cluster of each of {count} values, got {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in clusters], dtype=np.int64)


def jackknife(
    statistic: Callable[[Float[np.ndarray, "n d"]], float],
    features: Float[np.ndarray, "n d"],
    clusters: Clusters | None = None,
    groups: int = GROUPS,
) -> Estimate:
    """Return a statistic of a set of rows, with its error by leaving out a tenth of the clusters at a time.

    Resampling with repetition would not do for the Frechet distance: repeated videos narrow a covariance, and the error
    comes out too large (docs/decisions/0015-errors-by-clusters.md). What the set is compared with is taken as exact.
    """
    number = cluster_numbers(clusters, len(features))
    count = int(number.max()) + 1
    groups = min(groups, count)
    if groups < 3:  # one cluster would be left
        return Estimate(statistic(features), math.nan, len(features), count, 0)
    without = [statistic(features[number % groups != group]) for group in range(groups)]
    error = math.sqrt((groups - 1) * np.var(without))
    return Estimate(statistic(features), error, len(features), count, groups - 1)


def difference_of_independent(ours: Estimate, theirs: Estimate) -> Estimate:
    """Return the difference of two estimates from independent samples (degrees of freedom: Welch and Satterthwaite)."""
    parts = [(each.error**2, each.degrees) for each in (ours, theirs)]
    error = math.hypot(ours.error, theirs.error)
    spread = sum(variance**2 / degrees for variance, degrees in parts if degrees > 0)
    degrees = error**4 / spread if spread > 0 else sum(degrees for _, degrees in parts)
    counts = ours.count + theirs.count, ours.clusters + theirs.clusters
    return Estimate(ours.value - theirs.value, error, *counts, degrees)


def holm(p_values: Values) -> list[float]:
    """Return the p-values of several claims corrected by Holm (1979), for the chance of one false claim among all.

    NaN, a claim without an error, counts as 1.
    """
    p = np.nan_to_num(np.asarray(p_values, np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()
