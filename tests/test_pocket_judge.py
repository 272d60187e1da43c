"""The judge on renderings that it never saw: held-out pairs, individuals, places and scenery."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kineograph.pocket import judging
from kineograph.pocket.judge import WEIGHTS, Looks, load_judge

pytestmark = [
    pytest.mark.claims,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights: python -m kineograph.pocket.recipe --export"),
]


@pytest.fixture(scope="module")
def families() -> list[tuple[Looks, list[dict[str, str]]]]:
    judge = load_judge()
    shown = [judging.family(np.random.default_rng((99, k)), "held_out") for k in range(64)]
    return [(judge.look(pictures), told) for pictures, told in shown]


@pytest.mark.parametrize(("name", "bar"), [("thing", 0.99), ("colour", 0.99), ("scene", 0.99), ("style", 0.99)])
def test_it_sees_what_a_picture_shows(families, name, bar):
    right = [
        seen == fact[name] for looks, told in families for seen, fact in zip(getattr(looks, name), told, strict=True)
    ]
    assert len(right) == 512
    assert np.mean(right) >= bar


def test_it_tells_individuals_of_one_kind_and_colour_apart(families):
    embeddings = torch.from_numpy(np.concatenate([looks.individual for looks, _ in families]))
    assert judging.told_apart(embeddings) >= 0.8  # by chance 0.14


def test_it_sees_how_a_clip_moves():
    judge = load_judge()
    films = [judging.film(np.random.default_rng((99, k)), "held_out") for k in range(200)]
    right = [judge.motion(frames) == shot["things"][0]["motion"] for frames, shot in films]
    assert np.mean(right) >= 0.97
