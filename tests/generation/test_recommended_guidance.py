"""Guidance that a model's authors recommend, `generation_config.json`: where it is read, what comes before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kineograph as kg
from kineograph.generation.check import check, complete, without_unused
from kineograph.generation.resolve import open_inputs, recorded_options, resolve
from kineograph.models.description import describe_model
from kineograph.models.loading.describe import describe
from kineograph.models.network_folders import GENERATION_CONFIG, read_generation_config
from kineograph.models.pocket import WEIGHTS
from kineograph.request import PRESETS, USUAL_GUIDANCE, migrate_settings

OWN = {"guidance_scale": 4.0, "guidance_start": 0.2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in image model, without its own file."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"):
        (folder / part).symlink_to(WEIGHTS / part)
    (folder / GENERATION_CONFIG).write_text(json.dumps({**OWN, "max_new_tokens": 20}))
    return folder


def recorded(model: kg.Model, **options: Any) -> dict[str, Any]:
    asked = complete({"num_frames": 2, "num_inference_steps": 2, "seed": 1, **options})
    return recorded_options(resolve(model, ["a fish"], asked, open_inputs(asked)))


def guidance(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in USUAL_GUIDANCE if name in options}


def test_a_folder_recommends_guidance_which_is_recorded(folder: Path) -> None:
    model = kg.load(folder)
    assert model.recommended == OWN
    assert guidance(recorded(model)) == {**OWN, "guidance_end": 1.0}
    assert guidance(recorded(model, guidance_scale=7.5)) == {**OWN, "guidance_scale": 7.5, "guidance_end": 1.0}
    assert guidance(recorded(model, guidance_scale=1.0)) == {"guidance_scale": 1.0}, "the interval then does nothing"
    fast = guidance(recorded(model, preset="fast"))
    assert fast == {**USUAL_GUIDANCE, **OWN, **guidance(dict(PRESETS["fast"]))}, "a preset was asked for"


def test_a_model_that_recommends_nothing_has_the_usual_guidance(folder: Path) -> None:
    (folder / GENERATION_CONFIG).unlink()
    assert guidance(recorded(kg.load(folder))) == USUAL_GUIDANCE


def test_it_is_known_before_weights_are_loaded_and_saved_with_the_model(folder: Path, tmp_path: Path) -> None:
    found = describe(folder)
    assert found is not None and found.recommended == OWN
    kg.save(kg.load(folder), tmp_path / "again")
    assert read_generation_config(tmp_path / "again") == OWN


def test_a_value_that_is_no_number_is_refused(folder: Path) -> None:
    (folder / GENERATION_CONFIG).write_text(json.dumps({"guidance_scale": "high"}))
    with pytest.raises(kg.InputError, match="`guidance_scale` in .*generation_config.json is a number, not 'high'"):
        kg.load(folder)


def test_a_second_model_has_its_own_scale_unless_one_is_given() -> None:
    image, video = describe("pocket"), describe("pocket-video")
    assert image is not None and video is not None
    image, video = (replace(each, recommended={"guidance_scale": k}) for each, k in ((image, 3.0), (video, 5.0)))
    asked = check(image, video, complete({})).options
    assert (asked["guidance_scale"], asked["video_guidance_scale"]) == (3.0, 5.0)
    asked = check(image, video, complete({"guidance_scale": 6.0})).options
    assert (asked["guidance_scale"], asked["video_guidance_scale"]) == (6.0, None), "one scale for both models"


def test_earlier_videos_are_replayed_with_their_own_guidance(folder: Path) -> None:
    old = migrate_settings({"settings_version": 3, "guidance_scale": 7.5})
    assert guidance(old) == USUAL_GUIDANCE
    model = describe_model(kg.load(folder))
    options = complete(without_unused(model, None, complete(old)))
    assert guidance(dict(check(model, None, options).options)) == USUAL_GUIDANCE
