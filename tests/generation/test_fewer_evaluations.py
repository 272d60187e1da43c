"""Guidance in an interval, DeepCache and presets: what is evaluated, and what is recorded."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import kineograph as kg
from kineograph.errors import InputWarning
from kineograph.generation.check import complete
from kineograph.generation.resolve import open_inputs, recorded_options, resolve
from kineograph.models.unet.frame_attention import first
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plan import Plan, bind_model

FEW: dict[str, Any] = {"num_frames": 2, "num_inference_steps": 10, "height": 64, "width": 64, "seed": 3}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load(dtype="float32", device="cpu")


def plan(model: kg.Model, **options: Any) -> Plan:
    complete_options = complete({**FEW, **options})
    return resolve(model, ["a red fish"], complete_options, open_inputs(complete_options))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Count the network's evaluations by timestep, in place of which they return their input."""
    counts: Counter[float] = Counter()

    def forward(net: VideoUNet, z: torch.Tensor, timestep: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        counts[round(float(timestep))] += 1
        return z

    monkeypatch.setattr(VideoUNet, "forward", forward)
    return counts


def test_guidance_off_in_the_first_30_percent_and_after_80(model: kg.Model, evaluated: Counter[float]) -> None:
    asked = plan(model, guidance_start=0.3, guidance_end=0.8, spacing="trailing")
    denoise, x = bind_model(asked, frame_attention=first).guided, torch.zeros(1, 2, 8, 8, 8)
    for sigma in asked.sigmas(model.schedule)[:-1]:
        denoise(x, sigma)
    assert dict(evaluated) == dict.fromkeys((999, 899, 799, 199, 99), 1) | dict.fromkeys((699, 599, 499, 399, 299), 2)


def test_an_editing_model_is_evaluated_once_outside_of_the_interval(evaluated: Counter[float]) -> None:
    editor, video = kg.load("pocket-edit", dtype="float32", device="cpu"), np.zeros((2, 64, 64, 3), np.uint8)
    options = {**FEW, "num_inference_steps": 2, "sampler": "ddim", "spacing": "trailing", "guidance_start": 0.3}
    kg.edit(editor, video, "make it snow", **options)
    assert evaluated == {999: 1, 499: 3}


def test_both_models_of_video_elevator_have_the_interval(model: kg.Model, evaluated: Counter[float]) -> None:
    options = {**FEW, "guidance_end": 0.3, "spacing": "trailing", "sampler": "heun", "num_inference_steps": 4}
    second = kg.load("pocket-video", dtype="float32", device="cpu")
    generate = partial(kg.generate, model, "a red fish", video_model=second, video_steps=1, refine_at=(0.5,), **options)
    generate(renoise="fresh-noise")
    assert evaluated == {999: 2, 749: 4, 499: 2 + 1, 249: 2}  # at 749 the first evaluation of a step and a last one


def test_no_evaluation_inside_of_the_interval_is_no_guidance(model: kg.Model) -> None:
    generate = partial(kg.generate, model, "a red fish", **{**FEW, "num_inference_steps": 2})
    with pytest.warns(
        InputWarning, match="there is no guidance: none of the 2 steps is between `guidance_start`, 0, and"
    ):
        frames = generate(guidance_end=0.2).frames
    assert np.array_equal(frames, generate(guidance_scale=1.0).frames)


def test_deepcache_evaluates_all_layers_at_every_nth_step(model: kg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, log = VideoUNet.forward, list[tuple[int, bool]]()

    def logged(net: VideoUNet, z: torch.Tensor, timestep: torch.Tensor, **given: Any) -> torch.Tensor:
        log.append((z.shape[1], given["deep"].reuse))
        return forward(net, z, timestep, **given)

    monkeypatch.setattr(VideoUNet, "forward", logged)
    asked = plan(model, deepcache_interval=3, guidance_scale=1.0, chunk_size=2, num_frames=3)
    denoise = bind_model(asked, frame_attention=first).guided
    for sigma in asked.sigmas(model.schedule)[:-1]:
        denoise(torch.zeros(1, 3, 8, 8, 8), sigma)
    assert log == [(frames, reuse) for reuse in (False, True, True) * 4 for frames in (2, 1)][:20]


def test_an_interval_of_1_is_the_same_network_call(model: kg.Model) -> None:
    one, off = (
        kg.generate(model, "a red fish", **{**FEW, "num_inference_steps": 3}, **given)
        for given in ({"deepcache_interval": 1}, {})
    )
    assert np.array_equal(one.frames, off.frames) and one.settings["deepcache_interval"] == 1
    assert "deepcache_branch" not in one.settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "`guidance_start` is below `guidance_end`; got 0.5 and 0.5"),
        ({"guidance_start": 0.5, "guidance_scale": 1.0}, "`guidance_start` does nothing here: `guidance_scale` is 1"),
        ({"deepcache_interval": 2, "deepcache_branch": 6}, "a skip connection of the network, from 0 to 5, not 6"),
        ({"deepcache_branch": 1}, "`deepcache_branch` does nothing here: it is read with `deepcache_interval` above 1"),
        ({"deepcache_interval": 0}, "`deepcache_interval` is a whole number from 1 to 999, not 0"),
    ],
)
def test_what_cannot_work_is_refused(model: kg.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(kg.InputError, match=message):
        plan(model, **options)


def test_settings_of_earlier_videos_are_those_of_all_evaluations(model: kg.Model) -> None:
    recorded = recorded_options(plan(model))
    assert (recorded["guidance_start"], recorded["guidance_end"], recorded["deepcache_interval"]) == (0.0, 1.0, 1)
