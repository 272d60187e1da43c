"""Videos of several clips, with every method that generates from a prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import Run
from generation.test_two_models import image, video  # noqa: F401

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation import run_request
from kineograph.media.metadata import read_settings
from kineograph.methods import text2video_zero, vidrd
from kineograph.models.model import Model
from kineograph.plan import guide
from kineograph.request import Request

FEW = {"num_inference_steps": 4, "seed": 3, "num_frames": 4}
EXACT = kg.ClipOptions(keep=2, guidance=1.0)


@pytest.fixture(scope="module")
def models(image: Model, video: Model) -> dict[str, tuple[Model, dict]]:  # noqa: F811
    return {
        "videocrafter": (video, {}),
        "text2video-zero": (image, {}),
        "video-elevator": (
            image,
            {"video_model": video, "elevation": kg.ElevatorOptions(refine_at=(0.5,), video_steps=1)},
        ),
    }


METHODS = ("videocrafter", "text2video-zero", "video-elevator")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_clips_follow_each_other_with_every_method(method, models) -> None:
    model, more = models[method]
    one = kg.generate(model, "a fish", **FEW, **more)
    two = kg.generate(model, "a fish", clips=2, reuse=EXACT, **FEW, **more)
    assert len(two.frames) == 8 and two.settings["method"] == method
    assert np.array_equal(two.frames[:4], one.frames)
    assert np.array_equal(two.frames[3], two.frames[4])  # guided to the end, the seam is exact
    loose = kg.generate(
        model, "a fish", clips=2, reuse=kg.ClipOptions(keep=0, noise_ratio=0, guidance=0), **FEW, **more
    )
    assert not np.array_equal(loose.frames[3], loose.frames[4])


@pytest.mark.slow
def test_every_option_has_an_effect_and_a_clip_has_its_own_prompt(models) -> None:
    model, _ = models["videocrafter"]
    asked = {"clips": 3, **FEW}
    usual = kg.generate(model, "a fish", **asked)
    others = [
        kg.generate(model, "a fish", **asked, **choice)
        for choice in (
            {"reuse": kg.ClipOptions(keep=1)}, {"reuse": kg.ClipOptions(noise_ratio=1.0)},
            {"reuse": kg.ClipOptions(guidance=0.3)},
            {"reuse": kg.ClipOptions(anchor=0.5)}, {"reuse": kg.ClipOptions(order="kept")}, {"then": ["a car"]},
            {"then": ["a fish", "a car"]},
        )
    ]  # fmt: skip
    assert all(np.array_equal(other.frames[:4], usual.frames[:4]) for other in others)
    assert not any(np.array_equal(other.frames[8:], usual.frames[8:]) for other in others)
    assert np.array_equal(others[-1].frames[:8], usual.frames[:8])
    assert others[-1].settings["then"] == ["a fish", "a car"]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [{}, {"smooth_background": 0.6}, {"sampler": "euler-ancestral"}])
def test_text2video_zero_skips_frames_that_are_overwritten(choice, models, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = models["text2video-zero"][0], {"clips": 2, **FEW, "num_inference_steps": 12, **choice}
    seen = []

    def counted(*asked):
        estimate = guide(*asked)
        return lambda x, sigma: (seen.append(x.shape[1]), estimate(x, sigma))[1]

    monkeypatch.setattr(text2video_zero, "guide", counted)
    reuse = kg.ClipOptions(keep=3, guidance=1.0)
    skipping = kg.generate(model, "a fish", reuse=reuse, **asked)
    count = sum(seen)
    monkeypatch.setattr(vidrd, "skip_overwritten", lambda denoise, *_: denoise)
    seen.clear()
    whole = kg.generate(model, "a fish", reuse=reuse, **asked)
    assert np.abs(skipping.frames.astype(int) - whole.frames).max() <= 1
    assert count < sum(seen)


def test_progress_counts_the_steps_of_all_clips(models) -> None:
    model, _ = models["videocrafter"]
    seen = []
    kg.generate(model, "a fish", clips=2, on_step=seen.append, **FEW)
    assert [step.done for step in seen] == list(range(1, 11)) and {step.total for step in seen} == {10}


@pytest.mark.slow
def test_an_interrupted_video_continues_to_the_same_result(models, tmp_path: Path) -> None:
    model, _ = models["videocrafter"]
    request = Request(prompt="a fish", clips=3, reuse=kg.ClipOptions(anchor=0.3), **FEW)
    whole = run_request(model, request)

    def stop(progress) -> None:
        if progress.done == 13:  # in the third clip
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_request(model, request, stop, keep_clips=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    drawn = []
    again = run_request(model, request, drawn.append, keep_clips=tmp_path)
    assert np.array_equal(again.frames, whole.frames)
    assert drawn[0].done == 11
    assert len(list(tmp_path.rglob("*"))) == 4  # the folder of these settings, and its three clips
    other = run_request(model, replace(request, seed=4), keep_clips=tmp_path)
    assert not np.array_equal(other.frames, whole.frames)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"clips": 0}, "clips is a whole number from 1"),
        ({"then": ["a car"]}, "there are prompts for 1 clips after the first, and 1 clips"),
    ],
)
def test_errors_of_clip_options(asked, said, models) -> None:
    with pytest.raises(InputError, match=said):
        kg.generate(models["videocrafter"][0], "a fish", **FEW, **asked)
    with pytest.raises(InputError, match="guidance is a share from 0 to 1"):
        kg.ClipOptions(guidance=1.5)


def test_the_command_generates_and_replays_clips(run: Run, video: Model, tmp_path: Path) -> None:  # noqa: F811
    folder = kg.save(video, tmp_path / "video")
    few = ["--steps", 2, "--device", "cpu", "--seed", 3, "-n", 3, "--clips", 2, "--then", "a car", "--keep", 1]
    said = run("generate", "a fish", "--model", folder, *few, "--keep-clips", "kept", "-o", "long.gif")
    assert (said.status, said.out) == (0, "long.gif\n"), said.err
    settings = read_settings(tmp_path / "long.gif")
    assert (settings["clips"], settings["then"], settings["reuse"]["keep"]) == (2, ["a car"], 1)
    assert len(kg.open_video(tmp_path / "long.gif").frames) == 6
    again = run("replay", "long.gif", "-o", "again.gif")
    assert again.status == 0 and "differ" not in again.err, again.err
