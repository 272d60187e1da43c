"""Accuracy of the judge on unseen renderings: held-out pairs, individuals, positions and scenery."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from kineograph_lab.judge import training
from kineograph_lab.judge.networks import WEIGHTS, ImageLabels, load_judge
from kineograph_lab.recipe import pool
from kineograph_lab.world import world

pytestmark = [
    pytest.mark.claims,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights: python -m kineograph_lab.recipe.run --export"),
]


@pytest.fixture(scope="module")
def recognised() -> list[tuple[ImageLabels, dict[str, str], bool]]:
    """Labels of 1,000 images, true labels, and True for one subject at rest, as in generated images."""
    judge = load_judge()
    renderings = [pool.random_image(np.random.default_rng((99, k)), "held_out") for k in range(1000)]
    labels = [judge.classify(image[None]) for image, _ in renderings]
    simple = [fact["time"] == 0 and len(fact["things"]) == 1 for _, fact in renderings]
    return list(
        zip(labels, [training.labels_of(pool.shot_from_facts(fact)) for _, fact in renderings], simple, strict=True)
    )


@pytest.fixture(scope="module")
def families() -> list[ImageLabels]:
    judge = load_judge()
    return [
        judge.classify(training.individual_family(np.random.default_rng((99, k)), "held_out")[0]) for k in range(64)
    ]


@pytest.mark.parametrize(
    ("name", "threshold", "threshold_for_all"), [("subject", 0.99, 0.95), ("colour", 0.99, 0.99), ("scene", 0.99, 0.99)]
)
def test_labels_of_images(recognised, name, threshold, threshold_for_all) -> None:
    correct = np.array(
        [getattr(labels, name)[0] == truth["thing" if name == "subject" else name] for labels, truth, _ in recognised]
    )
    simple = np.array([simple for *_, simple in recognised])
    assert simple.sum() > 400
    assert correct[simple].mean() >= threshold
    assert correct.mean() >= threshold_for_all  # with two subjects, or one that is leaving the frame


def test_labels_are_constant_while_the_camera_pans() -> None:
    judge, constant = load_judge(), []
    shots = (shot for shot in world.sample_shots(555, split="held_out") if len(shot.things) == 1)
    for shot in islice(shots, 150):
        wide = np.pad(world.render(shot), ((0, 21), (0, 21), (0, 0)), mode="symmetric")
        labels = judge.classify(np.stack([wide[k : k + 128, k : k + 128] for k in range(0, 24, 3)]))  # pan:12,12
        constant.append(len({*labels.subject}) == len({*labels.colour}) == 1)
    assert np.mean(constant) >= 0.95


def test_individuals_of_one_kind_and_colour_are_identified(families) -> None:
    embeddings = torch.from_numpy(np.concatenate([labels.identity for labels in families]))
    assert training.identification_rate(embeddings) >= 0.4  # by chance 0.14


def test_motion_of_clips() -> None:
    judge = load_judge()
    clips = [training.motion_clip(np.random.default_rng((99, k)), "held_out") for k in range(200)]
    correct = [judge.classify_motion(frames) == shot["things"][0]["motion"] for frames, shot in clips]
    assert np.mean(correct) >= 0.88  # the bar is 0.97: docs/decisions/0005
