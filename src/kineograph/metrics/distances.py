"""Statistics of sets of videos: FVD, KVD and the Inception Score, from features.

Features are [n d], one row per video; all sums are in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kineograph.errors import InputError
from kineograph.metrics.statistics import Clusters, Estimate, cluster_numbers, mean

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
Probabilities = Float[np.ndarray, "n k"]

SPLITS = 10  # of the Inception Score, as is the custom


class Moments(NamedTuple):
    """Mean and covariance of features."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def moments(features: Features) -> Moments:
    """Return the mean and the unbiased covariance of features. Raises InputError for fewer than two videos."""
    if len(features) < 2:
        raise InputError(f"a covariance needs at least 2 videos, got {len(features)}: give more videos")
    exact = features.astype(np.float64)
    return Moments(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)))


def frechet_distance(ours: Moments, theirs: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians.

    With the features of a video network it is FVD (Unterthiner et al. 2018).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last term is computed from the eigenvalues of the
    symmetric C1^(1/2) C2 C1^(1/2), which are those of C1 C2, so that no root of an asymmetric matrix is needed.
    """
    values, vectors = np.linalg.eigh(ours.covariance)
    root = (vectors * np.sqrt(_zero_rounding_errors(values))) @ vectors.T
    mixed = root @ theirs.covariance @ root
    common = np.sqrt(_zero_rounding_errors(np.linalg.eigvalsh((mixed + mixed.T) / 2))).sum()
    apart = np.square(ours.mean - theirs.mean).sum()
    return float(max(0.0, apart + np.trace(ours.covariance) + np.trace(theirs.covariance) - 2 * common))


def _zero_rounding_errors(values: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Set eigenvalues that are zero within rounding to 0, since their roots would add up."""
    least = len(values) * np.finfo(np.float64).eps * max(0.0, values.max())
    return np.where(values > least, values, 0.0)


def kernel_distance(ours: Features, theirs: Others) -> float:
    """Return the unbiased squared maximum mean discrepancy under the kernel (x y / d + 1)^3 (Binkowski et al. 2018).

    With the features of a video network it is KVD. Unlike the Frechet distance its expectation does not depend on the
    number of videos; it may be below 0.
    """
    if min(len(ours), len(theirs)) < 2:
        raise InputError(f"expected at least 2 videos on both sides, got {len(ours)} and {len(theirs)}")
    within = [_cubic_kernel(each, each) for each in (ours, theirs)]
    apart = [(each.sum() - np.trace(each)) / (len(each) * (len(each) - 1)) for each in within]
    return float(sum(apart) - 2 * _cubic_kernel(ours, theirs).mean())


def _cubic_kernel(one: Features, other: Others) -> Float[np.ndarray, "n m"]:
    return (one.astype(np.float64) @ other.T.astype(np.float64) / one.shape[1] + 1) ** 3


def inception_score(probabilities: Probabilities, splits: int = SPLITS, clusters: Clusters | None = None) -> Estimate:
    """Return exp of the mean KL divergence of each video's classes from the marginal (Salimans et al. 2016).

    The result is the mean over the splits and its standard error; papers print the standard deviation, which is
    sqrt(splits) times as large. Split k holds clusters k, k + splits, ..., since folders are often sorted by class.

    probabilities: class probabilities of each video, [n k]. Raises InputError for fewer than two clusters per split;
    each video is a cluster of its own if `clusters` does not say otherwise.
    """
    number = cluster_numbers(clusters, len(probabilities))
    count = len({*number.tolist()})
    if count < 2 * splits:
        of_clusters = "" if clusters is None else " of different clusters"
        raise InputError(f"{splits} splits need at least {2 * splits} videos{of_clusters}, got {count}")
    exact = probabilities.astype(np.float64)
    scores = [_split_score(exact[number % splits == split]) for split in range(splits)]
    return replace(mean(scores), count=len(probabilities), clusters=count)


def _split_score(each: Probabilities) -> float:
    tiny = np.finfo(np.float64).tiny
    divergences = each * (np.log(np.maximum(each, tiny)) - np.log(np.maximum(each.mean(0), tiny)))
    return float(np.exp(divergences.sum(1).mean()))
