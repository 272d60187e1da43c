"""Claims that can fail: an estimate with its bounds, the region that it should lie in, and p-values.

A claim holds where the estimate lies in its region by a one-sided test at 5 % on each finite side, corrected by Holm for
all claims of a paper. Fewer cases or clusters widen the bounds, so that they never make a claim hold more easily. A claim
whose arm or metric no record has is "not measured": it is in the report, does not hold, and counts for the correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kineograph.metrics.statistics import NO_ESTIMATE, Estimate, holm, mean, mean_difference, ratio

ALPHA = 0.05  # of a one-sided test
# What "not below" and "unchanged" allow, by the kind of metric.
SHARE_MARGIN, SIMILARITY_MARGIN, CLIP_MARGIN = 0.05, 0.02, 2.0  # shares; cosines of neighbours, identities; 100 cosines
SMOOTH = (1 / 1.2, 1.2)  # the change at a seam over that elsewhere: neither a jump nor frozen frames
SHARP = 0.9  # of the sharpness without it, what a method that lessens flicker has to leave


@dataclass(frozen=True)
class Values:
    """A metric of the cases that have it, with the number of each case and of its cluster."""

    values: tuple[float, ...]
    cases: tuple[int, ...]
    clusters: tuple[int, ...]

    def minus(self, other: Values) -> Values:
        """Return the paired differences of two metrics of the same cases; empty if one was not measured."""
        if not (self.values and other.values):
            return Values((), (), ())
        return replace(
            self, values=tuple(one - its for one, its in zip(self.values, _paired(self, other), strict=True))
        )

    @property
    def mean(self) -> Estimate:
        """Mean with the error of a sample of clusters."""
        return mean(self.values, self.clusters)


def _paired(ours: Values, theirs: Values) -> tuple[float, ...]:
    if ours.cases != theirs.cases:
        raise ValueError(f"expected the same cases on both sides, got {ours.cases} and {theirs.cases}")
    return theirs.values


@dataclass(frozen=True)
class Claim:
    """A statement about an estimate.

    low, high    one-sided 95 % bounds
    count        values; `clusters` of them are independent
    bar          the region that the estimate should lie in, in words
    p            p-value of "it lies there"; NaN if there is a single cluster
    p_corrected  the same, corrected for the other claims of the paper; `p` until `correct_claims`
    study        name of the study
    """

    name: str
    value: float
    error: float
    low: float
    high: float
    count: int
    clusters: int
    bar: str
    p: float
    p_corrected: float
    study: str = ""

    @property
    def measured(self) -> bool:
        """The records have all that the claim is about."""
        return self.count > 0

    @property
    def holds(self) -> bool:
        """The claim holds, corrected for the other claims of the paper."""
        return self.p_corrected < ALPHA

    @property
    def holds_uncorrected(self) -> bool:
        """The claim holds by itself: its bounds lie in its region."""
        return self.p < ALPHA


def correct_claims(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims of a paper with p-values corrected by Holm."""
    corrected = holm([each.p for each in claims])
    return [replace(each, p_corrected=p) for each, p in zip(claims, corrected, strict=True)]


def claim_between(name: str, estimate: Estimate, above: float, below: float, bar: str) -> Claim:
    """Claim that a number lies between two others, of which one may be infinite."""
    low, high, p = estimate.lower_bound(), estimate.upper_bound(), estimate.p_within(above, below)
    if estimate.error == 0:
        low, high, p = _bounds_of_equal_clusters(estimate, above, below)
    return Claim(
        name, estimate.value, estimate.error, low, high, estimate.count, estimate.clusters, bar, p, p_corrected=p
    )


def _bounds_of_equal_clusters(estimate: Estimate, above: float, below: float) -> tuple[float, float, float]:
    """Return the bounds and the p-value of an estimate whose clusters are all equal, so that no error is known.

    Were a share q of all clusters different by 1, the range of a share, then n would be equal with probability
    (1 - q)^n. For n = 100 the bound is 3 %, the "rule of three".
    """
    reach = 1 - ALPHA ** (1 / estimate.clusters)
    gap = min(estimate.value - above, below - estimate.value)
    return estimate.value - reach, estimate.value + reach, (1 - min(gap, 1)) ** estimate.clusters if gap > 0 else 1.0


def claim_at_least(name: str, values: Values, bar: float) -> Claim:
    """Claim that the mean is above the bar."""
    return claim_between(name, values.mean, bar, math.inf, f">= {bar:g}")


def claim_within(name: str, values: Values, low: float, high: float) -> Claim:
    """Claim that the mean lies between two bounds."""
    return claim_between(name, values.mean, low, high, f"{low:g} to {high:g}")


def claim_better(name: str, ours: Values, theirs: Values) -> Claim:
    """Claim that the mean difference over the same cases is above 0."""
    return claim_between(name, _difference(ours, theirs), 0, math.inf, "> 0")


def claim_not_below(name: str, ours: Values, theirs: Values, margin: float) -> Claim:
    """Claim that the mean difference over the same cases is not below 0 by more than a margin (non-inferiority)."""
    return claim_between(name, _difference(ours, theirs), -margin, math.inf, f"> -{margin:g}")


def claim_unchanged(name: str, ours: Values, theirs: Values, margin: float) -> Claim:
    """Claim that the mean difference over the same cases is within a margin of 0 (two one-sided tests)."""
    return claim_between(name, _difference(ours, theirs), -margin, margin, f"-{margin:g} to {margin:g}")


def _difference(ours: Values, theirs: Values) -> Estimate:
    if not (ours.values and theirs.values):
        return NO_ESTIMATE
    return mean_difference(ours.values, _paired(ours, theirs), ours.clusters)


def claim_ratio_at_least(name: str, ours: Values, theirs: Values, bar: float) -> Claim:
    """Claim that the ratio of the means over the same cases is above the bar."""
    return claim_between(name, ratio_of_means(ours, theirs), bar, math.inf, f">= {bar:g}")


def claim_as_sharp(ours: Values, theirs: Values, names: str) -> Claim:
    """Claim that less flicker is no blur: the sharpness is at least `SHARP` of that without. names: "ours over theirs"."""
    return claim_ratio_at_least(f"sharpness, {names}", ours, theirs, SHARP)


def claim_ratio_at_most(name: str, ours: Values, theirs: Values, bar: float) -> Claim:
    """Claim that the ratio of the means over the same cases is below the bar."""
    return claim_between(name, ratio_of_means(ours, theirs), -math.inf, bar, f"<= {bar:g}")


def claim_ratio_within(name: str, ours: Values, theirs: Values, low: float, high: float) -> Claim:
    """Claim that the ratio of the means over the same cases lies between two bounds."""
    return claim_between(name, ratio_of_means(ours, theirs), low, high, f"{low:.3g} to {high:.3g}")


def ratio_of_means(ours: Values, theirs: Values) -> Estimate:
    """Return the ratio of the means over the same cases; no estimate if one was not measured."""
    if not (ours.values and theirs.values):
        return NO_ESTIMATE
    return ratio(ours.values, _paired(ours, theirs), ours.clusters)


def claim_counted_at_most(name: str, ours: Values, theirs: Values, bar: float) -> Claim:
    """Claim that a count that varies in no case is at most `bar` times another; there is nothing to estimate."""
    found = ratio_of_means(ours, theirs)
    every = all(one <= bar * its for one, its in zip(ours.values, theirs.values, strict=True)) and found.count > 0
    p, value = 0.0 if every else 1.0, found.value
    return Claim(name, value, 0.0, value, value, found.count, found.clusters, f"<= {bar:g}, counted", p, p_corrected=p)
