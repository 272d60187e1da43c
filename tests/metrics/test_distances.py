"""Distances between sets of features: closed forms, torchmetrics, invariances."""

import numpy as np
import pytest
import scipy.linalg
import torch

from kineograph.errors import InputError
from kineograph.metrics.distances import Moments, frechet_distance, inception_score, kernel_distance, moments


def features(count: int, width: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + shift


def test_diagonal_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    (m, n), (a, b) = rng.normal(size=(2, 7)), rng.uniform(0.1, 5, size=(2, 7))
    found = frechet_distance(Moments(m, np.diag(a)), Moments(n, np.diag(b)))
    assert found == pytest.approx(((m - n) ** 2).sum() + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-12)


def test_two_by_two_covariances_have_a_closed_form() -> None:
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    assert not np.allclose(a @ b, b @ a)
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))  # Cayley-Hamilton
    mean = np.array([0.5, -1.0])
    found = frechet_distance(Moments(mean, a), Moments(-mean, b))
    assert found == pytest.approx(5 + np.trace(a) + np.trace(b) - 2 * root, rel=1e-12)


def test_samples_approach_the_distance_of_their_gaussians() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0, 1, (200_000, 3)), rng.normal(1, 2, (200_000, 3))
    assert frechet_distance(moments(ours), moments(theirs)) == pytest.approx(3 * (1 + (2 - 1) ** 2), rel=0.02)


def test_frechet_distance_equals_torchmetrics_and_scipy() -> None:
    from torchmetrics.image.fid import _compute_fid

    one, other = moments(features(300, 24)), moments(features(200, 24, 1, shift=0.3))
    tensors = [torch.from_numpy(each) for pair in (one, other) for each in (pair.mean, pair.covariance)]
    assert frechet_distance(one, other) == pytest.approx(float(_compute_fid(*tensors)), rel=1e-9)
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance).real
    plain = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(plain, rel=1e-9)


def test_distances_do_not_depend_on_the_order() -> None:
    ours, theirs = features(40, 16), features(50, 16, 1)
    again = ours[np.random.default_rng(0).permutation(40)]
    assert frechet_distance(moments(ours), moments(again)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(ours), moments(theirs)) == pytest.approx(
        frechet_distance(moments(again), moments(theirs))
    )
    assert kernel_distance(ours, theirs) == pytest.approx(kernel_distance(again, theirs[::-1]))
    assert frechet_distance(moments(ours), moments(theirs)) == pytest.approx(
        frechet_distance(moments(theirs), moments(ours))
    )


def test_singular_covariances_lose_nothing_to_rounding() -> None:
    """With A and B centred, tr (A'A B'B)^(1/2) is the sum of the singular values of A B'."""
    ours, theirs = features(6, 400), features(9, 400, 1)
    one, other = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (ours, theirs))
    common = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    wanted = ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + (one**2).sum() + (other**2).sum() - 2 * common
    assert frechet_distance(moments(ours), moments(theirs)) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(moments(ours), moments(ours)) == pytest.approx(0, abs=1e-6 * (one**2).sum())


def test_float32_features_are_summed_in_float64() -> None:
    far = (features(100, 4) + 1e4).astype(np.float32)
    assert frechet_distance(moments(far), moments(far.astype(np.float64))) == pytest.approx(0, abs=1e-6)
    assert moments(far).covariance.dtype == np.float64


def test_kernel_distance_equals_its_definition_and_is_unbiased() -> None:
    ours, theirs = features(5, 3), features(4, 3, 1)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    inside = [
        np.mean([kernel(x, y) for i, x in enumerate(each) for j, y in enumerate(each) if i != j])
        for each in (ours, theirs)
    ]
    across = np.mean([kernel(x, y) for x in ours for y in theirs])
    assert kernel_distance(ours, theirs) == pytest.approx(sum(inside) - 2 * across)
    rng = np.random.default_rng(0)
    alike = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(300)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / np.sqrt(300)


def test_inception_score_limits() -> None:
    assert inception_score(np.full((40, 5), 0.2)).value == pytest.approx(1)
    in_order = np.repeat(np.eye(4), 20, axis=0)  # class after class, as folders are sorted
    assert inception_score(in_order).value == pytest.approx(4)
    assert inception_score(in_order).error == pytest.approx(0, abs=1e-12)
    assert inception_score(np.tile(np.eye(4)[:1], (40, 1))).value == pytest.approx(1)
    with pytest.raises(InputError, match="10 splits need at least 20 videos, got 19"):
        inception_score(np.full((19, 5), 0.2))
    with pytest.raises(InputError, match="at least 20 videos of different clusters, got 8"):
        inception_score(np.full((40, 5), 0.2), clusters=[number % 8 for number in range(40)])
    clustered = inception_score(np.repeat(np.eye(4), 20, axis=0), clusters=[number // 2 for number in range(80)])
    assert (clustered.count, clustered.clusters, clustered.degrees) == (80, 40, 9)


def test_too_few_videos_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 videos, got 1"):
        moments(np.zeros((1, 3)))
    with pytest.raises(InputError, match="got 1 and 5"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
