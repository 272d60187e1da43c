"""Foreground masks from self-attention, compared with the exact masks of the pocket world."""

import numpy as np
import pytest
import torch

import kineograph as kg
from kineograph.models import foreground
from kineograph.models.foreground import bind_foreground_mask
from kineograph_lab.world.captions import caption_image
from kineograph_lab.world.truth import ground_truth
from kineograph_lab.world.world import render, sample_shots


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load(dtype="float32")


def test_masks_overlap_the_exact_masks(model) -> None:
    shots = [shot for shot, _ in zip(sample_shots(11, split="held_out"), range(8), strict=False)]
    images = torch.stack([torch.from_numpy(render(shot)).permute(2, 0, 1).float() / 255 for shot in shots])
    captions = [caption_image(shot, np.random.default_rng(0)) for shot in shots]
    masks = bind_foreground_mask(model, model.prompt(captions))(model.encode(images[:, None]), 0.0)
    assert masks.shape == (8, 1, 1, 16, 16) and set(masks.unique().tolist()) == {0.0, 1.0}
    large = masks[:, 0, 0].numpy().repeat(8, 1).repeat(8, 2) > 0
    exact = [ground_truth(shot).mask > 0 for shot in shots]
    overlaps = [(ours & theirs).sum() / (ours | theirs).sum() for ours, theirs in zip(large, exact, strict=True)]
    assert np.mean(overlaps) > 0.6


def test_masks_do_not_depend_on_chunks_and_batches_and_no_hook_remains(model) -> None:
    x0 = torch.randn(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, parts = (
        bind_foreground_mask(model, model.prompt(["a red fish", "a cat"]), chunk_size=size)(x0, 2.0) for size in (8, 2)
    )
    assert (whole != parts).float().mean() < 0.01
    alone = bind_foreground_mask(model, model.prompt(["a cat"]))(x0[1:], 2.0)
    assert (alone != whole[1:]).float().mean() < 0.01
    assert not any(layer._forward_hooks for layer in model.net.modules())


def test_grids_of_odd_sizes() -> None:
    assert foreground._grid(256, (64, 64)) == (16, 16)
    assert foreground._grid(15, (10, 6)) == (5, 3)
    assert foreground._grid(6, (9, 5)) == (3, 2)
