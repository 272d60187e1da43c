"""The judge: its training data, its labels, and its geometry of held-out images."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

from kineograph_lab.judge import geometry, training
from kineograph_lab.judge.networks import Judge
from kineograph_lab.judge.training import is_inside_frame
from kineograph_lab.recipe.pool import Pool, random_image


def test_a_family_has_one_kind_colour_and_style() -> None:
    images, truths = training.individual_family(np.random.default_rng(0), "train")
    assert images.shape == (8, 128, 128, 3)
    assert len({(t["thing"], t["colour"], t["style"]) for t in truths}) == 1


def test_the_judge_labels_images_of_any_size() -> None:
    judge = Judge().eval()
    labels = judge.classify(np.zeros((2, 96, 160, 3), np.uint8))
    assert len(labels.subject) == len(labels.scene) == 2
    assert labels.identity.shape == (2, 32)
    assert np.linalg.norm(labels.identity, axis=1) == pytest.approx(1, abs=1e-4)
    assert isinstance(judge.classify_motion(np.zeros((5, 128, 128, 3), np.uint8)), str)


def test_the_geometry_network_finds_depth_and_keypoints() -> None:
    samples = []
    for number in count():
        image, fact = random_image(np.random.default_rng(number), "held_out")
        if is_inside_frame(fact):
            samples.append((image, fact))
        if len(samples) == 16:
            break
    pool = Pool(np.stack([image for image, _ in samples]), [fact for _, fact in samples])
    expected, found = geometry.ground_truth_geometry(pool), geometry.load_geometry_network().predict(pool.items)
    assert np.abs(found.depth - expected.depth).mean() < 0.06
    assert np.linalg.norm(found.points - expected.points, axis=-1).mean() < 0.1  # of a star, which end is the front?


def test_soft_argmax_of_a_peak_is_its_position() -> None:
    heatmaps = torch.full((1, 5, 32, 32), -100.0)
    heatmaps[:, :, 8, 24] = 100.0
    torch.testing.assert_close(geometry.soft_argmax(heatmaps)[0, 0], torch.tensor([24.5 / 32, 8.5 / 32]))
