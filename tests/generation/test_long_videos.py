"""Videos of several clips, with every method that generates from a prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Run
from generation.test_two_models import image, video  # noqa: F401

import kineograph as kg
from kineograph import plan
from kineograph.errors import InputError
from kineograph.media.metadata import read_settings
from kineograph.methods import vidrd
from kineograph.models.model import Model
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

FEW = {"num_inference_steps": 4, "seed": 3, "num_frames": 4}
EXACT = {"clip_overlap": 2, "clip_guidance": 1.0}


@pytest.fixture(scope="module")
def models(image: Model, video: Model) -> dict[str, tuple[Model, dict]]:  # noqa: F811
    return {
        "videocrafter": (video, {}),
        "text2video-zero": (image, {}),
        "video-elevator": (image, {"video_model": video, "refine_at": (0.5,), "video_steps": 1}),
    }


METHODS = ("videocrafter", "text2video-zero", "video-elevator")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_clips_follow_each_other_with_every_method(method, models) -> None:
    model, more = models[method]
    one = kg.generate(model, "a fish", **FEW, **more)
    two = kg.generate(model, "a fish", clips=2, **EXACT, **FEW, **more)
    assert len(two.frames) == 8 and two.settings["method"] == method
    assert np.array_equal(two.frames[:4], one.frames)
    assert np.array_equal(two.frames[3], two.frames[4])  # guided to the end, the seam is exact
    loose = kg.generate(model, "a fish", clips=2, clip_overlap=0, clip_noise_ratio=0, clip_guidance=0, **FEW, **more)
    assert not np.array_equal(loose.frames[3], loose.frames[4])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_forward_clips_share_their_last_frames_which_are_shown_once(method, models) -> None:
    model, more = models[method]
    forward = {"clip_order": "forward", **EXACT}
    one = kg.generate(model, "a fish", **FEW, **more)
    three = kg.generate(model, "a fish", clips=3, **forward, **FEW, **more)
    assert len(three.frames) == 4 + 2 + 2 and np.array_equal(three.frames[:4], one.frames)
    assert "clip_noise_ratio" not in three.settings and three.settings["clip_order"] == "forward"
    with pytest.raises(InputError, match="`clip_noise_ratio` does nothing here: with the `clip_order` forward"):
        kg.generate(model, "a fish", clips=2, clip_noise_ratio=1.0, **forward, **FEW, **more)


def test_a_model_that_was_trained_to_continue_frames_gets_the_last_ones(
    models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained_to_continue(models["videocrafter"][0])
    known = []

    def watched(denoise, frames, noise):
        known.append((frames, noise))
        return pin(denoise, frames, noise)

    pin = plan.replace_known_frames
    monkeypatch.setattr(plan, "replace_known_frames", watched)
    finals = []

    def keep_last(progress) -> None:
        if progress.done % 5 == 0:
            finals.append(progress.step.x)

    long = kg.generate(model, "a fish", clips=3, on_step=keep_last, **{**FEW, "num_frames": 6})
    assert (long.settings["clip_order"], long.settings["clip_overlap"]) == ("forward", 4)
    assert not {"clip_guidance", "clip_anchor", "clip_noise_order"} & set(long.settings)
    assert len(long.frames) == 6 + 2 + 2 and len(known) == 2
    for (frames, noise), before, after in zip(known, finals, finals[1:], strict=False):
        assert not noise.any() and torch.equal(frames, before[:, -4:])
        torch.testing.assert_close(after[:, :4], before[:, -4:], atol=0.25, rtol=0)  # the last sigma is above 0
    reversed_clips = kg.generate(model, "a fish", clips=2, clip_order="reversed", **FEW)
    assert reversed_clips.settings["clip_overlap"] == 2 and len(reversed_clips.frames) == 8


def test_frames_of_forward_clips_have_their_own_numbers(models) -> None:
    model = trained_to_continue(models["videocrafter"][0])
    with pytest.raises(InputError, match="`prompt_at` has a prompt at frame 8, and the video has frames 0 to 7"):
        kg.generate(model, "a fish", clips=3, clip_overlap=2, prompt_at={8: "a car"}, **FEW)


def trained_to_continue(model: Model) -> Model:
    """Return the video model as one that was trained with first frames without noise."""
    layers = TemporalLayers(model.net.image_unet, model.temporal.model_copy(update={"clean_frames": True}))
    layers.load_state_dict(model.net.temporal.state_dict())
    return replace(model, net=VideoUNet(model.net.image_unet, layers.eval()))


@pytest.mark.slow
def test_every_option_has_an_effect_and_a_clip_has_its_own_prompt(models) -> None:
    model, _ = models["videocrafter"]
    asked = {"clips": 3, **FEW}
    usual = kg.generate(model, "a fish", **asked)
    others = [
        kg.generate(model, "a fish", **asked, **choice)
        for choice in (
            {"clip_overlap": 1}, {"clip_noise_ratio": 1.0}, {"clip_guidance": 0.3}, {"clip_anchor": 0.5},
            {"clip_noise_order": "kept"}, {"then": ["a car"]}, {"then": ["a fish", "a car"]},
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

    def counted(*asked, **more):
        denoise = bind(*asked, **more)
        return lambda x, sigma: (seen.append(x.shape[1]), denoise(x, sigma))[1]

    bind = Model.bind
    monkeypatch.setattr(Model, "bind", counted)
    reuse = {"clip_overlap": 3, "clip_guidance": 1.0}
    skipping = kg.generate(model, "a fish", **reuse, **asked)
    count = sum(seen)
    monkeypatch.setattr(vidrd, "skip_overwritten", lambda denoise, *_: denoise)
    seen.clear()
    whole = kg.generate(model, "a fish", **reuse, **asked)
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
    asked = {"clips": 3, "clip_anchor": 0.3, **FEW}
    whole = kg.generate(model, "a fish", **asked)

    def stop(progress) -> None:
        if progress.done == 13:  # in the third clip
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kg.generate(model, "a fish", on_step=stop, keep_clips=tmp_path, **asked)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    drawn = []
    again = kg.generate(model, "a fish", on_step=drawn.append, keep_clips=tmp_path, **asked)
    assert np.array_equal(again.frames, whole.frames)
    assert drawn[0].done == 11
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    other = kg.generate(model, "a fish", keep_clips=tmp_path, **{**asked, "seed": 4})
    assert not np.array_equal(other.frames, whole.frames)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"clips": 0}, "`clips` is a whole number from 1"),
        ({"then": ["a car"]}, "`then`.* does nothing here, .* it is read with `clips` above 1"),
        ({"then": ["a car"] * 2, "clips": 2}, r"prompts for 2 clips after the first \(`then`\), and 2 `clips`"),
        ({"clips": 2, "clip_guidance": 1.5}, "`clip_guidance` is a number from 0 to 1, not 1.5"),
    ],
)
def test_errors_of_clip_options(asked, said, models) -> None:
    with pytest.raises(InputError, match=said):
        kg.generate(models["videocrafter"][0], "a fish", **FEW, **asked)


@pytest.mark.slow
def test_the_command_generates_and_replays_clips(run: Run, video: Model, tmp_path: Path) -> None:  # noqa: F811
    folder = kg.save(video, tmp_path / "video")
    few = ["--steps", 2, "--device", "cpu", "--seed", 3, "-n", 3, "--clips", 2, "--then", "a car", "--clip-overlap", 1]
    said = run("generate", "a fish", "--model", folder, *few, "--keep-clips", "kept", "-o", "long.gif")
    assert (said.status, said.out) == (0, "long.gif\n"), said.err
    settings = read_settings(tmp_path / "long.gif")
    assert (settings["clips"], settings["then"], settings["clip_overlap"]) == (2, ["a car"], 1)
    assert len(kg.open_video(tmp_path / "long.gif").frames) == 6
    again = run("replay", "long.gif", "--yes", "-o", "again.gif")
    assert again.status == 0 and "differ" not in again.err, again.err
