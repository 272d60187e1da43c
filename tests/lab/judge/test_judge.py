"""The judge: its training data, its labels, and its geometry of held-out images."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

from kineograph_lab.judge import geometry, training
from kineograph_lab.judge.networks import Judge
from kineograph_lab.judge.training import is_inside_frame
from kineograph_lab.recipe import pool as feed


def test_a_family_is_of_one_kind_colour_and_style():
    pictures, told = training.individual_family(np.random.default_rng(0), "train")
    assert pictures.shape == (8, 128, 128, 3)
    assert len({(t["thing"], t["colour"], t["style"]) for t in told}) == 1


def test_the_judge_answers_for_any_size():
    judge = Judge().eval()
    looks = judge.classify(np.zeros((2, 96, 160, 3), np.uint8))
    assert len(looks.thing) == len(looks.scene) == 2
    assert looks.individual.shape == (2, 32)
    assert np.linalg.norm(looks.individual, axis=1) == pytest.approx(1, abs=1e-4)
    assert isinstance(judge.classify_motion(np.zeros((5, 128, 128, 3), np.uint8)), str)


def test_the_geometry_eye_finds_depth_and_points():
    known = []
    for number in count():
        picture, fact = feed.random_image(np.random.default_rng(number), "held_out")
        if is_inside_frame(fact):
            known.append((picture, fact))
        if len(known) == 16:
            break
    pool = feed.Pool(np.stack([picture for picture, _ in known]), [fact for _, fact in known])
    wanted, found = geometry.ground_truth_geometry(pool), geometry.load_geometry_network().look(pool.items)
    assert np.abs(found.depth - wanted.depth).mean() < 0.06
    assert np.linalg.norm(found.points - wanted.points, axis=-1).mean() < 0.1  # of a star, which end is the front?


def test_the_middle_of_a_heat_is_where_it_is():
    heat = torch.full((1, 5, 32, 32), -100.0)
    heat[:, :, 8, 24] = 100.0
    torch.testing.assert_close(geometry.soft_argmax(heat)[0, 0], torch.tensor([24.5 / 32, 8.5 / 32]))
