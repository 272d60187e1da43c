"""Refusals that need no weights come before any is loaded, from Python and on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import tiny_models
from cases.program import SMALL, run
from models.loading.test_describe import weights_forbidden

import kineograph as kg
from kineograph.generation.check import check, complete
from kineograph.models.loading.describe import describe

LCM = {"_class_name": "LCMScheduler"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "steps of lcm": ({}, {"sampler": "lcm", "num_inference_steps": 51}, "at most 50 sigmas"),
    "steps of tcd": ({}, {"sampler": "tcd", "num_inference_steps": 60}, "at most 50 sigmas"),
    "steps of spacing lcm": ({}, {"spacing": "lcm", "num_inference_steps": 60}, "at most 50 sigmas"),
    "steps of an LCM scheduler": (LCM, {"num_inference_steps": 51}, "LCMScheduler has no sigmas for 51 steps"),
    "few original steps": (LCM | {"original_inference_steps": 10}, {"num_inference_steps": 20}, "for 20 steps"),
    "steps beyond the timesteps": ({"num_train_timesteps": 20}, {"num_inference_steps": 30}, "at most 20"),
    "offset beyond the timesteps": ({}, {"spacing": "leading", "steps_offset": 400, "num_inference_steps": 5}, "offs"),
    "unknown betas": ({"beta_schedule": "sigmoid"}, {}, "Expected beta_schedule to be one of"),
    "zero terminal SNR": ({"rescale_betas_zero_snr": True}, {}, "last timestep has no signal"),
    "height": ({}, {"height": 63}, "multiples of"),
    "negative prompt": ({}, {"negative_prompt": "x", "guidance_scale": 1}, "turns guidance off"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder_with(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """Return a function that returns the folder of a tiny model with these settings of its scheduler."""

    def folder_with(settings: dict[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp("model")
        for each in sd_folder.iterdir():
            if each.name != "scheduler":
                (folder / each.name).symlink_to(each)
        config = json.loads((sd_folder / "scheduler" / "scheduler_config.json").read_text())
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | settings))
        return folder

    return folder_with


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_models.sd().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("scheduler", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_weights_are_read(
    folder_with: Callable[[dict[str, Any]], Path], scheduler: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    folder = folder_with(scheduler)
    with weights_forbidden(), pytest.raises(kg.InputError, match=message):
        kg.generate(str(folder), "a cat", **options)


def test_second_model_is_described_too(folder_with: Callable[[dict[str, Any]], Path]) -> None:
    options = {"spacing": "lcm", "num_inference_steps": 51}
    with weights_forbidden(), pytest.raises(kg.InputError, match="at most 50 sigmas"):
        kg.generate(str(folder_with({})), "a cat", video_model="pocket-video", **options)


@pytest.mark.parametrize(
    ("options", "missing", "message"),
    [
        ({"smooth_background": 0.5, "foreground_masks": "rembg"}, "rembg", "rembg, which is not installed"),
        ({"control": {"canny": "in.mp4"}}, "cv2", "edge detection needs OpenCV, which is not installed"),
    ],
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], missing: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    found = describe("pocket")
    assert found is not None
    with pytest.raises(kg.InputError, match=message):
        check(found, None, complete(options))


def test_kind_of_control_without_an_annotator() -> None:
    found = describe("pocket")
    assert found is not None
    with pytest.raises(kg.InputError, match="no annotator for maps of the kind 'scribble'.*scribble-map=VIDEO"):
        check(replace(found, controls=("",)), None, complete({"control": {"scribble": "in.mp4"}}))


@pytest.mark.parametrize("source", ["pocket", "pocket-video", "pocket-vidrd"])
def test_steps_of_built_in_models(source: str) -> None:
    found = describe(source)
    assert found is not None and found.scheduler is not None
    with pytest.raises(kg.InputError, match="at most 50 sigmas"):
        check(found, None, complete({"sampler": "lcm", "num_inference_steps": 51}))


def test_network_with_a_learned_variance(tmp_path: Path) -> None:
    tiny_models.sd(out_channels=8).save_pretrained(tmp_path / "learned")
    with (
        weights_forbidden(),
        pytest.raises(kg.InputError, match="returns 8 channels for latents of 4, as networks with"),
    ):
        kg.generate(str(tmp_path / "learned"), "a cat")


def test_option_prediction_type_is_that_of_the_scheduler(folder_with: Callable[[dict[str, Any]], Path]) -> None:
    folder = folder_with({"rescale_betas_zero_snr": True})
    found = describe(folder, prediction_type="v_prediction")
    assert found is not None
    check(found, None, complete({}))


@pytest.mark.slow
def test_program_refuses_before_it_loads(folder_with: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    folder = folder_with(LCM)
    said = run("generate", "a fish", "--model", folder, *SMALL, "--steps", 51, "-o", tmp_path / "s.mp4")
    assert said.status == 2 and "loading" not in said.text and "no sigmas for 51 steps" in said.text
