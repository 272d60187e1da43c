"""Guidance in an interval, DeepCache and presets: what is evaluated, and what is recorded."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import kineograph as kg
from kineograph.errors import InputWarning
from kineograph.generation.check import check, complete
from kineograph.generation.resolve import open_inputs, recorded_options, resolve
from kineograph.models.description import describe_model
from kineograph.models.loading.describe import describe
from kineograph.models.unet.deepcache import DeepCache
from kineograph.models.unet.forward import LayerInputs
from kineograph.models.unet.frame_attention import first
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plan import Plan, bind_model, deepcache_settings
from kineograph.request import PRESETS

FEW: dict[str, Any] = {"num_frames": 2, "num_inference_steps": 10, "height": 64, "width": 64, "seed": 3}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load(dtype="float32", device="cpu")


def plan_of(model: kg.Model, **options: Any) -> Plan:
    defaults = {name: value for name, value in FEW.items() if "preset" not in options or name != "num_inference_steps"}
    complete_options = complete({**defaults, **options})
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
    asked = plan_of(model, guidance_start=0.3, guidance_end=0.8, spacing="trailing")
    denoise, x = bind_model(asked, frame_attention=first).guided, torch.zeros(1, 2, 8, 8, 8)
    for sigma in asked.sigmas(model.schedule)[:-1]:
        denoise(x, sigma)
    assert dict(evaluated) == dict.fromkeys((999, 899, 799, 199, 99), 1) | dict.fromkeys((699, 599, 499, 399, 299), 2)


@pytest.mark.slow
def test_an_editing_model_is_evaluated_once_outside_of_the_interval(evaluated: Counter[float]) -> None:
    editor, video = kg.load("pocket-edit", dtype="float32", device="cpu"), np.zeros((2, 64, 64, 3), np.uint8)
    options = {**FEW, "num_inference_steps": 2, "sampler": "ddim", "spacing": "trailing", "guidance_start": 0.3}
    kg.edit(editor, video, "make it snow", **options)
    assert evaluated == {999: 1, 499: 3}


@pytest.mark.slow
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
    run_layers, log = VideoUNet.run_layers, list[tuple[int, bool]]()

    def logged(net: VideoUNet, x: torch.Tensor, residuals: Any, inputs: LayerInputs, settings: Any) -> Any:
        log.append((len(x), inputs.deep.tensor is not None))
        return run_layers(net, x, residuals, inputs, settings)

    monkeypatch.setattr(VideoUNet, "run_layers", logged)
    asked = plan_of(model, deepcache_interval=3, guidance_scale=1.0, chunk_size=2, num_frames=3)
    denoise = bind_model(asked, frame_attention=first).guided
    for sigma in asked.sigmas(model.schedule)[:-1]:
        denoise(torch.zeros(1, 3, 8, 8, 8), sigma)
    assert log == [(frames, reuse) for reuse in (False, True, True) * 4 for frames in (2, 1)][:20]


def test_an_interval_of_1_is_no_deepcache(model: kg.Model) -> None:
    off, on = plan_of(model, deepcache_interval=1), plan_of(model, deepcache_interval=2, deepcache_branch=3)
    assert deepcache_settings(off, [3.0, 2.0, 1.0, 0.0]) is None
    assert deepcache_settings(on, [3.0, 2.0, 1.0, 0.0]) == DeepCache(3, [3.0, 1.0])
    assert recorded_options(off)["deepcache_interval"] == 1 and "deepcache_branch" not in recorded_options(off)


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
        plan_of(model, **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_recorded_as_the_options_it_stands_for(model: kg.Model, preset: str) -> None:
    recorded = recorded_options(plan_of(model, preset=preset, num_frames=2))
    assert recorded.items() >= PRESETS[preset].items() and "preset" not in recorded
    own = recorded_options(plan_of(model, preset=preset, num_frames=2, num_inference_steps=3, guidance_end=0.5))
    changed = {"num_inference_steps": 3, "guidance_end": 0.5}
    assert own == recorded | changed, "what is given comes before the preset"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_no_option_that_some_models_refuse(model: kg.Model, preset: str) -> None:
    video = describe("pocket-video")
    for options in ({}, {"method": "freenoise"}):
        check(video, None, complete({"preset": preset, **options}))
    check(describe_model(model), video, complete({"preset": preset}))
    without = recorded_options(plan_of(model, preset=preset, guidance_scale=1.0))
    assert not {"guidance_start", "guidance_end"} & set(without), "the preset's values that do nothing are left out"


def test_the_paper_preset_takes_50_steps_with_guidance_in_all() -> None:
    assert complete({"preset": "paper"}) == complete({}) | {
        "preset": "paper", "num_inference_steps": 50, "guidance_scale": 7.5,
    }  # fmt: skip


def test_presets_are_refused_for_models_of_a_few_steps(model: kg.Model) -> None:
    description, options = describe_model(model), complete({"preset": "fast"})
    for distilled in (
        {"reads_guidance_scale": True},
        {"scheduler": {**model.schedule.settings, "_class_name": "LCMScheduler"}},
    ):
        with pytest.raises(kg.InputError, match="`preset` is for models that take many steps, and pocket is distilled"):
            check(replace(description, **distilled), None, options)
    with pytest.raises(kg.InputError, match="`preset` is quality or balanced or fast or paper, not 'best'"):
        complete({"preset": "best"})


def test_the_timesteps_of_sd_are_refused_for_sdxl(model: kg.Model) -> None:
    description = describe_model(model)
    assert description.networks is not None
    networks = description.networks._replace(unet={**description.networks.unet, "addition_embed_type": "text_time"})
    sdxl = replace(description, networks=networks)
    check(sdxl, None, complete({"spacing": "ays-sdxl"}))
    with pytest.raises(kg.InputError, match="`spacing` ays has the timesteps of SD 1.5, and pocket is an SDXL model"):
        check(sdxl, None, complete({"spacing": "ays"}))


def test_settings_of_earlier_videos_are_those_of_all_evaluations(model: kg.Model) -> None:
    recorded = recorded_options(plan_of(model))
    assert (recorded["guidance_start"], recorded["guidance_end"], recorded["deepcache_interval"]) == (0.0, 1.0, 1)
