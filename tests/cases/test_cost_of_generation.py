"""Work that is done once is not done for every video, and work that can be batched is."""

from __future__ import annotations

import hashlib

import pytest
import torch
from cases.public_layouts import load, sd
from torch import nn

import kineograph as kg

SMALL = {"num_frames": 2, "num_inference_steps": 2, "guidance_scale": 1, "height": 64, "width": 64, "seed": 0}


class CountedSha256:
    """hashlib.sha256, of which the number of hashed bytes is counted."""

    def __init__(self) -> None:
        self.bytes, self._sha256 = 0, hashlib.sha256

    def __call__(self, content: bytes = b"", **options: object) -> object:
        self.bytes += memoryview(content).nbytes
        return self._sha256(content, **options)


@pytest.fixture
def sha256(monkeypatch: pytest.MonkeyPatch) -> CountedSha256:
    counted = CountedSha256()
    monkeypatch.setattr(hashlib, "sha256", counted)
    return counted


def bytes_of(network: nn.Module) -> int:
    return sum(weight.nbytes for weight in network.state_dict().values())


# --- formats/20-hash-time


def test_weights_are_hashed_for_the_first_video(sha256: CountedSha256) -> None:
    model = load(sd())
    kg.generate(model, "a", **SMALL)
    assert sha256.bytes >= bytes_of(model.net)


def test_weights_are_not_hashed_again_for_the_next_video(sha256: CountedSha256) -> None:
    model = load(sd())
    kg.generate(model, "a", **SMALL)
    sha256.bytes = 0
    kg.generate(model, "a", **SMALL)
    assert sha256.bytes < bytes_of(model.net) / 100


@pytest.mark.slow
def test_weights_that_were_changed_in_place_are_recorded_with_another_hash() -> None:
    model = load(sd())
    before = kg.generate(model, "a", **SMALL).settings["model"]["weights"]
    with torch.no_grad():
        model.net.image_unet.conv_in.weight.mul_(2)
    after = kg.generate(model, "a", **SMALL).settings["model"]["weights"]
    assert before["unet"] != after["unet"]
    assert before["vae"] == after["vae"]


# --- formats/21-batching


def test_prompts_of_a_list_are_evaluated_in_one_batch() -> None:
    pipeline, batches = sd(), list[int]()
    pipeline.unet.conv_in.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    model = load(pipeline)
    small = SMALL | {"num_inference_steps": 1, "guidance_scale": 3}
    kg.generate(model, ["a"], **small)
    one = max(batches)
    batches.clear()
    kg.generate(model, ["a", "b"], **small)
    assert max(batches) > one
