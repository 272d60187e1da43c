"""How far two sets of videos are apart, by the features that an extractor finds in each: FVD, KVD and IS.

Features are [n d], a row a video; all sums are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kineograph.errors import InputError

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
Probabilities = Float[np.ndarray, "n k"]

SPLITS = 10  # of the Inception Score, as is the custom
GROUPS = 10  # that the jackknife leaves out, one after another


class Mean(NamedTuple):
    """A mean over independent cases, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} ± {self.error:.3f}"


def mean(values: Sequence[float]) -> Mean:
    """The mean, with the error that independent cases have."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Mean(float(np.mean(values)) if len(values) else float("nan"), float(spread))


class Moments(NamedTuple):
    """The mean and the covariance of features."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def moments(features: Features) -> Moments:
    """The mean and the unbiased covariance. Raises InputError for fewer than two videos."""
    if len(features) < 2:
        raise InputError(f"a covariance takes at least 2 videos, and {len(features)} came: give more videos")
    exact = features.astype(np.float64)
    return Moments(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)))


def frechet(ours: Moments, theirs: Moments) -> float:
    """The squared Frechet distance of two Gaussians: FVD, of a video network's features (Unterthiner et al. 2018).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), the last by eigenvalues of the symmetric
    C1^(1/2) C2 C1^(1/2), which has those of C1 C2: no root of a matrix that is not symmetric is ever taken.
    """
    values, vectors = np.linalg.eigh(ours.covariance)
    root = (vectors * np.sqrt(_above_rounding(values))) @ vectors.T
    mixed = root @ theirs.covariance @ root
    common = np.sqrt(_above_rounding(np.linalg.eigvalsh((mixed + mixed.T) / 2))).sum()
    apart = np.square(ours.mean - theirs.mean).sum()
    return float(max(0.0, apart + np.trace(ours.covariance) + np.trace(theirs.covariance) - 2 * common))


def _above_rounding(values: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Eigenvalues without those that are zero but for rounding, whose roots would add up."""
    least = len(values) * np.finfo(np.float64).eps * max(0.0, values.max())
    return np.where(values > least, values, 0.0)


def kernel_distance(ours: Features, theirs: Others) -> float:
    """The squared maximum mean discrepancy under the kernel (x y / d + 1)^3, unbiased (Binkowski et al. 2018).

    Unlike the Frechet distance its mean does not depend on the number of videos; it may be below 0.
    """
    if min(len(ours), len(theirs)) < 2:
        raise InputError(f"expected at least 2 videos on both sides, got {len(ours)} and {len(theirs)}")
    within = [_cubed(each, each) for each in (ours, theirs)]
    apart = [(each.sum() - np.trace(each)) / (len(each) * (len(each) - 1)) for each in within]
    return float(sum(apart) - 2 * _cubed(ours, theirs).mean())


def _cubed(one: Features, other: Others) -> Float[np.ndarray, "n m"]:
    return (one.astype(np.float64) @ other.T.astype(np.float64) / one.shape[1] + 1) ** 3


def inception_score(probabilities: Probabilities, splits: int = SPLITS) -> Mean:
    """exp of the mean divergence of each video's classes from those of all (Salimans et al. 2016).

    The mean over so many splits, and its standard error: papers print the standard deviation, sqrt(splits) times it.
    A split takes every so manieth video, since videos lie in the order of their classes.
    Raises InputError for fewer than two videos a split.
    """
    if len(probabilities) < 2 * splits:
        raise InputError(f"{splits} splits take at least {2 * splits} videos, and {len(probabilities)} came")
    exact = probabilities.astype(np.float64)
    scores = [_inception(exact[start::splits]) for start in range(splits)]
    return Mean(float(np.mean(scores)), float(np.std(scores, ddof=1) / np.sqrt(splits)) if splits > 1 else np.nan)


def _inception(each: Probabilities) -> float:
    tiny = np.finfo(np.float64).tiny
    divergences = each * (np.log(np.maximum(each, tiny)) - np.log(np.maximum(each.mean(0), tiny)))
    return float(np.exp(divergences.sum(1).mean()))


def jackknifed(statistic: Callable[[Features], float], features: Features, groups: int = GROUPS) -> Mean:
    """A statistic of a set, and its standard error by leaving out a tenth of the set at a time.

    The error is that of these videos; what they are compared with is taken as it is.
    """
    groups = min(groups, len(features))
    if groups < 3:  # what is left would be one video
        return Mean(statistic(features), np.nan)
    number = np.arange(len(features)) % groups
    without = [statistic(features[number != group]) for group in range(groups)]
    return Mean(statistic(features), float(np.sqrt((groups - 1) * np.var(without))))
