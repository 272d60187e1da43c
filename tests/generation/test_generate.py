"""`generate` and `replay`: every argument is checked, and a video records all that reproduces it."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.conftest import sd, sd_folder  # noqa: F401

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.generation.check import complete
from kineograph.generation.resolve import Inputs, resolve
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.plan import Plan, bind_model
from kineograph.samplers import BY_NAME

FEW = {"num_inference_steps": 2, "num_frames": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    return kg.load(sd())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"num_frames": 0}, "`num_frames` is a whole number from 1 to 4096, not 0"),
        ({"num_frames": -3}, "from 1 to 4096, not -3"),
        ({"num_frames": 1_000_000}, "not 1000000: frames stay in memory"),
        ({"num_frames": True}, "whole number .* not True"),
        ({"num_inference_steps": 0}, "`num_inference_steps` .* not 0"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` .* not 1001"),
        ({"guidance_scale": math.nan}, "`guidance_scale` is a number, not nan"),
        ({"height": 0}, "`height` .* not 0"),
        ({"width": 100_000}, "`width` .* not 100000"),
        ({"seed": -1}, "`seed` .* not -1"),
        ({"fps": 0}, "`fps` .* not 0"),
        ({"fps": math.inf}, "`fps` .* not inf"),
        ({"chunk_size": 0}, "`chunk_size` .* not 0"),
        ({"sampler": "huen"}, "deis or lcm or tcd, not 'huen'"),
        ({"method": "magic"}, "animatediff or video-elevator or freenoise, not 'magic'"),
        ({"method": "instruct-pix2pix"}, "not 'instruct-pix2pix'"),
        ({"video": "in.mp4"}, "there is no file in.mp4"),
        ({"noise": "pink"}, "shared or independent, not 'pink'"),
        ({"smooth_background": 2.0}, "a number from 0 to 1, not 2"),
        ({"control": {"canny": "a.mp4"}}, "there is no file a.mp4"),
        ({"image": "a.png"}, "there is no image a.png"),
    ],
)
def test_errors_of_arguments(model: Model, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.generate(model, **{"prompt": "a fish", **arguments})


def test_an_editing_model_needs_a_video_to_edit() -> None:
    with pytest.raises(InputError, match="no video to edit"):
        kg.generate(kg.load(sd(in_channels=8)), "make it snow")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 17}, "multiples of 2"),  # the tiny VAE halves
        ({"camera": "sideways"}, "pan:X,Y"),
        ({"camera": "zoom:3", "num_frames": 8}, "zoom"),
        ({"prompt": "word " * 5000}, "at most 20,000 characters"),
        ({"sampler": "lcm", "num_inference_steps": 60}, "at most 50 sigmas"),
    ],
)
def test_errors_that_depend_on_the_model(model: Model, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kg.generate(model, **{"prompt": "a fish", **FEW, **arguments})


def test_progress_ends_at_the_total_and_holds_the_latents(model: Model) -> None:
    progress: list = []
    video = kg.generate(model, "a fish", **FEW, seed=3, on_step=progress.append)
    assert [each.done for each in progress] == list(range(1, progress[-1].total + 1))
    assert progress[0].step.x0.shape == (1, 1, 4, 8, 8)  # frame 0 alone
    assert np.array_equal(kg.Video.from_tensor(model.decode(progress[-1].step.x)[0]).frames, video.frames)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", BY_NAME)
@pytest.mark.parametrize("num_frames", [1, 3])
def test_every_sampler_counts_its_steps(model: Model, sampler: str, num_frames: int) -> None:
    progress: list = []
    video = kg.generate(
        model, "a fish", num_inference_steps=2, num_frames=num_frames, sampler=sampler, on_step=progress.append
    )
    assert progress[-1].done == progress[-1].total
    assert video.frames.shape == (num_frames, 16, 16, 3)


def test_an_exception_from_on_step_ends_the_work(model: Model) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kg.generate(model, "a fish", **FEW, on_step=stop)


def test_the_settings_are_json_and_complete(model: Model) -> None:
    video = kg.generate(model, "a fish", **FEW, height=24, fps=3)
    settings = video.settings
    assert json.loads(json.dumps(settings)) == settings
    assert {"prompt", "seed", "camera", "frames_sha256", "model", "versions", "machine"} <= set(settings)
    assert (settings["height"], settings["width"], video.fps) == (24, 16, 3)
    assert isinstance(settings["seed"], int)
    assert set(settings["model"]["weights"]) == {"unet", "vae", "text_encoder"}
    assert settings["frames_sha256"] == video.digest


@pytest.mark.slow
def test_the_seed_determines_the_video_and_is_random_if_none_is_given(model: Model) -> None:
    one, same, other = (kg.generate(model, "a fish", **FEW, seed=seed) for seed in (5, 5, 6))
    assert one.digest == same.digest != other.digest
    drawn = kg.generate(model, "a fish", **FEW)
    assert kg.generate(model, "a fish", **FEW, seed=drawn.settings["seed"]).digest == drawn.digest


def test_a_list_of_prompts_gives_the_video_of_each(model: Model) -> None:
    both = kg.generate(model, ["a fish", "a dog"], **FEW, seed=5)
    assert [video.settings["seed"] for video in both] == [5, 6]
    assert both[1].digest == kg.generate(model, "a dog", **FEW, seed=6).digest


@pytest.mark.parametrize("scale", [1, 0])
def test_without_guidance_the_negative_prompt_is_refused(model: Model, scale: float) -> None:
    plain = kg.generate(model, "a fish", guidance_scale=scale, **FEW, seed=1)
    with pytest.raises(InputError, match="`negative_prompt` does nothing here: `guidance_scale` is 1 or less"):
        kg.generate(model, "a fish", negative_prompt="a dog", guidance_scale=scale, **FEW, seed=1)
    assert plain.digest != kg.generate(model, "a fish", **FEW, seed=1).digest


def test_guidance_below_0_is_warned_of(model: Model) -> None:
    with pytest.warns(InputWarning, match="`guidance_scale` is -2: guidance is off"):
        kg.generate(model, "a fish", guidance_scale=-2, **FEW)


def test_lcm_uses_the_model_as_a_consistency_model(model: Model) -> None:
    x = torch.ones(1, 1, 4, 8, 8)
    wrapped, plain = (bind_model(_plan(model, sampler=name), frame_attention=first).guided for name in ("lcm", "ddim"))
    torch.testing.assert_close(wrapped(x, 0.03), model.schedule.consistency_denoise(plain)(x, 0.03))
    assert not torch.allclose(wrapped(x, 0.03), plain(x, 0.03), rtol=1e-3)


def _plan(model: Model, **options: object) -> Plan:
    return resolve(model, ("a fish",), complete({"guidance_scale": 1, **FEW, **options}), Inputs())


def test_unknown_words_are_warned_of(model: Model) -> None:
    knowing = replace(model, vocabulary=frozenset({"a", "red", "fish"}))
    with pytest.warns(InputWarning, match="the words gryphon, zeppelin"):
        kg.generate(knowing, "a red gryphon", negative_prompt="zeppelin", **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kg.generate(knowing, "a red fish", **FEW)


def test_nan_is_an_error_that_names_the_frame() -> None:
    broken = kg.load(sd())
    with torch.no_grad():
        broken.net.image_unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="frame 0"):
        kg.generate(broken, "a fish", **FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fish.mp4", "fish.gif", "fish.webp", "fish"])
def test_replay_generates_every_pixel_again(tmp_path: Path, sd_folder: Path, name: str) -> None:  # noqa: F811
    video = kg.generate(kg.load(sd_folder), "a fish", **FEW, camera="pan:70,0+zoom:1.1", sampler="euler-ancestral")
    again = kg.replay(video.save(tmp_path / name), trust=True)
    assert np.array_equal(again.frames, video.frames)
    assert again.settings == video.settings


def test_replay_names_the_differences(tmp_path: Path, model: Model) -> None:
    path = kg.generate(model, "a fish", **FEW).save(tmp_path / "fish.mp4")
    other = kg.load(sd())
    with torch.no_grad():
        other.net.image_unet.conv_in.weight.mul_(1.1)
    with pytest.warns(InputWarning, match="the hash of unet was"):
        kg.replay(path, model=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kg.replay(path, model=model)


def test_replay_of_a_live_pipeline_needs_the_pipeline(tmp_path: Path, model: Model) -> None:
    path = kg.generate(model, "a fish", **FEW).save(tmp_path / "fish.mp4")
    with pytest.raises(InputError, match="model=kineograph.load"):
        kg.replay(path)


def test_replay_refuses_incomplete_settings_and_unknown_load_arguments(tmp_path: Path, model: Model) -> None:
    video = kg.generate(model, "a fish", **FEW)
    bare = replace(video, settings={"prompt": "a fish"})
    with pytest.raises(InputError, match="not of a video"):
        kg.replay(bare.save(tmp_path / "bare.mp4"))
    settings = json.loads(json.dumps(video.settings))
    settings["model"]["load"] = {"source": "x", "cache_dir": "/etc"}
    with pytest.raises(InputError, match="unknown arguments: cache_dir"):
        kg.replay(replace(video, settings=settings).save(tmp_path / "sly.mp4"))
