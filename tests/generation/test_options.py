"""Declared options: their values, signatures, older settings, refusals, and prompts in batches."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation.test_animate import animator, pictures  # noqa: F401
from generation.test_two_models import image, video  # noqa: F401
from models.conftest import sd, seg_controlnet

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation.call import CallOptions
from kineograph.generation.check import check, complete, without_unused
from kineograph.generation.recorded import recorded_request
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.models.description import describe_model
from kineograph.models.model import Model
from kineograph.options import declared, defaults, validate
from kineograph.request import SETTINGS_VERSION

FACES = (kg.GenerateOptions, kg.AnimateOptions, kg.EditOptions)
FORMS = {"num_videos_per_prompt", "output_type"}
BEFORE = Path(__file__).parents[1] / "data" / "made_before"


# --- values


@pytest.mark.parametrize("kind", FACES)
def test_each_default_is_valid_by_its_own_declaration(kind: type) -> None:
    for name, value in defaults(kind).items():
        assert validate({name: value}, kind)[name] == value, name
    assert validate({}, kind) == defaults(kind)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_frame": 3}, "there is no option `num_frame`; did you mean `num_frames`?"),
        ({"steps": 3}, "there is no option `steps`; did you mean `video_steps`?"),
        ({"elevation": {}}, "there is no option `elevation`"),
        ({"negative_prompt": None}, "`negative_prompt` is a text or a list, of which each is a text, not None"),
        ({"num_frames": "8"}, "`num_frames` is a whole number from 1 to 4096, not '8': frames stay in memory until"),
        ({"num_frames": 8.0}, "`num_frames` is a whole number from 1 to 4096, not 8.0: "),
        ({"num_inference_steps": None}, "`num_inference_steps` is a whole number from 1 to 999, not None"),
        ({"guidance_scale": "7"}, "`guidance_scale` is a number, not '7'"),
        ({"guidance_scale": True}, "`guidance_scale` is a number, not True"),
        ({"guidance_scale": math.inf}, "`guidance_scale` is a number, not inf"),
        ({"height": 8192}, "`height` is a whole number from 1 to 4096, not 8192"),
        ({"fps": 0}, "`fps` is a number above 0 and at most 240, not 0"),
        ({"sampler": "huen"}, "unipc or deis or lcm or tcd, not 'huen'"),
        ({"sampler": 3}, "unipc or deis or lcm or tcd, not 3"),
        ({"foreground_masks": "depth"}, "`foreground_masks` is attention or rembg, not 'depth'"),
        ({"smooth_background": -0.1}, "`smooth_background` is a number from 0 to 1, not -0.1"),
        ({"window": 1}, "`window` is a whole number from 2 to 4096, not 1"),
        ({"then": "a car"}, "`then` is a list, of which each is a text, not 'a car'"),
        ({"then": [3]}, "`then` is a list, of which each is a text, not [3]"),
        ({"refine_at": 0.5}, "`refine_at` is a list, of which each is a number above 0 and at most 1, not 0.5"),
        ({"refine_at": [0.0]}, "`refine_at` is a list, of which each is a number above 0 and at most 1, not [0.0]"),
        ({"drift_correction": "often"}, "`drift_correction` is true or false, not 'often'"),
        ({"clip_overlap": -1}, "`clip_overlap` is a whole number from 0 to 4096, not -1"),
        ({"low_pass": -1.0}, "`low_pass` is a number at least 0, not -1.0"),
    ],
)
def test_an_invalid_option_is_explained_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        complete(given)
    assert "\n" not in str(error.value)


def test_lists_and_whole_numbers_are_converted() -> None:
    options = complete({"then": ["a car"], "refine_at": [1, 0.5], "guidance_scale": 7})
    assert options["then"] == ("a car",) and options["refine_at"] == (1.0, 0.5)
    assert options["guidance_scale"] == 7.0 and isinstance(options["guidance_scale"], float)


# --- signatures


@pytest.mark.parametrize(("function", "kind"), [*zip((kg.generate, kg.animate, kg.edit), FACES, strict=True)])
def test_the_signature_and_the_documentation_have_each_declared_option(function: Any, kind: type) -> None:
    given = inspect.signature(function).parameters
    arguments = {"generate": set(), "animate": {"image"}, "edit": {"video"}}[function.__name__]
    assert set(given) == {*declared(kind, CallOptions), *arguments, "model", "prompt", *FORMS}
    for name, option in declared(kind, CallOptions).items():
        assert given[name].kind is inspect.Parameter.KEYWORD_ONLY and given[name].default == option.default
        assert f"    {name}: {option.help}" in function.__doc__


# --- settings of older versions


def test_settings_of_version_0_become_options() -> None:
    prompt, options = recorded_request(read_settings(BEFORE / "elevated"))
    assert prompt == "a blue cat rising over the sea"
    recorded = read_settings(BEFORE / "elevated")
    assert options["sampler"] == recorded["solver"] and options["seed"] == 3
    elevation = recorded["elevation"]
    assert options["refine_at"] == tuple(elevation["refine_at"]) and options["renoise"] == elevation["back"]
    assert options["video_steps"] == elevation["video_steps"]


MODEL = {
    "model": {"name": "pocket", "load": {}, "device": "cpu", "dtype": "float32", "weights": {}},
    "versions": {}, "machine": {},
}  # fmt: skip
RECORDED = {
    "settings_version": 1, "prompt": "a fish", "seed": 3, "frames_sha256": "", **MODEL, "method": "video-elevator",
    "num_frames": None, "fps": None, "sampler": "ddim", "motion": None, "masks": "rembg", "control": [], "video": None,
    "image": None, "then": ["a car"], "clips": 2, "smooth_background": 0.0,
    "elevation": {
        "refine_at": [0.5], "video_steps": 2, "low_pass": None, "low_pass_space": None, "shared_noise": 0.5,
        "back": "fresh-noise", "inversion_steps": None, "drift_correction": False, "video_guidance_scale": 2.0,
        "video_prompt": None,
    },
    "reuse": {"keep": 1, "noise_ratio": 2.0, "guidance": 0.5, "anchor": 0.25, "order": "kept"},
}  # fmt: skip


def test_records_of_version_1_become_flat_options() -> None:
    _, options = recorded_request(RECORDED)
    expected = {
        "refine_at": (0.5,), "video_steps": 2, "low_pass": 0, "low_pass_space": 0, "shared_noise": 0.5,
        "renoise": "fresh-noise", "inversion_steps": 12, "drift_correction": False, "video_guidance_scale": 2.0,
        "video_prompt": "", "clip_overlap": 1, "clip_noise_ratio": 2.0, "clip_guidance": 0.5, "clip_anchor": 0.25,
        "clip_noise_order": "kept", "foreground_masks": "rembg", "then": ("a car",), "clips": 2, "camera": None,
        "control": {}, "method": "video-elevator",
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    elevation = {**RECORDED["elevation"], "back": "inversion"}  # None was all steps
    assert recorded_request({**RECORDED, "elevation": elevation})[1]["inversion_steps"] == 0


def _control(kind: str, **changes: Any) -> dict[str, Any]:
    usual = {"video": "in.mp4", "ready": False, "scale": 0.5, "start": 0.1, "end": 0.9, "annotator": None}
    return {"kind": kind, **usual, **changes}


def test_the_control_list_of_version_1_becomes_flat_options() -> None:
    controls = [_control("canny"), _control("pose", ready=True, video="maps"), _control("depth", annotator="net")]
    _, options = recorded_request({**RECORDED, "method": "text2video-zero", "control": controls})
    assert options["control"] == {"canny": "in.mp4", "pose-map": "maps", "depth": "in.mp4"}
    assert options["annotators"] == {"depth": "net"}
    assert options["controlnet_conditioning_scale"] == 0.5
    assert (options["control_guidance_start"], options["control_guidance_end"]) == (0.1, 0.9)
    with pytest.raises(InputError, match="several values of controlnet_conditioning_scale"):
        recorded_request({**RECORDED, "control": [_control("canny"), _control("pose", scale=1.0)]})


def test_an_edit_of_version_1_has_the_method_of_an_image_model() -> None:
    _, options = recorded_request({**RECORDED, "method": "instruct-pix2pix", "video": "in.mp4", "noise": "independent"})
    assert (options["method"], options["video"], options["noise"]) == ("text2video-zero", "in.mp4", "independent")


def test_current_settings_are_their_own_options_and_later_ones_are_refused() -> None:
    settings = {"prompt": "a fish", "seed": 3, "frames_sha256": "", **MODEL, "clip_overlap": 1}
    assert recorded_request({**settings, "settings_version": SETTINGS_VERSION})[1]["clip_overlap"] == 1
    with pytest.raises(InputError, match=f"from 0 to {SETTINGS_VERSION}, not 99"):
        recorded_request({**settings, "settings_version": 99})


def test_options_of_older_settings_that_nothing_reads_are_left_out(models: dict[str, Model]) -> None:
    """Version 1 recorded the options of every method, with whatever values they had."""
    first, second = (describe_model(models[name]) for name in ("image", "video"))
    settings = {**RECORDED, "method": "text2video-zero", "clips": 1, "then": []}
    check(first, None, complete(without_unused(first, None, recorded_request(settings)[1])))
    for change in ({"back": "same-noise", "inversion_steps": 3}, {"drift_correction": True, "inversion_steps": 3},
                   {"refine_at": []}):  # fmt: skip
        settings = {**RECORDED, "elevation": {**RECORDED["elevation"], "back": "inversion", **change}}
        check(first, second, complete(without_unused(first, second, recorded_request(settings)[1])))


# --- options that nothing reads


@pytest.fixture(scope="module")
def models(image: Model, video: Model, animator: Model) -> dict[str, Model]:  # noqa: F811
    base = sd()
    guided = kg.load(base, controlnet={"seg": seg_controlnet(base.unet)})
    return {
        "image": image,
        "video": video,
        "animator": animator,
        "guided": guided,
        "editor": kg.load(sd(in_channels=8)),
    }


UNUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # models, what is asked for, what does nothing, reason
    ("image", {}, {"window": 4}, "`window` does nothing here, with text2video-zero: it is read by videocrafter"),
    ("image", {}, {"overlap": 1}, "`overlap` does nothing here"),
    ("image", {}, {"motion_strength": 0.0}, "has no temporal layers, and so no motion adapter"),
    ("video", {}, {"motion_strength": 0.0}, "has no motion adapter"),
    ("image", {}, {"then": ["a car"]}, "`then` does nothing here, .* it is read with `clips` above 1"),
    ("image", {}, {"clip_overlap": 1}, "`clip_overlap` .* with `clips` above 1"),
    ("video", {}, {"clip_noise_ratio": 1.0}, "`clip_noise_ratio` .* with `clips` above 1"),
    ("video", {}, {"clip_guidance": 1.0}, "`clip_guidance` .* with `clips` above 1"),
    ("video", {}, {"clip_anchor": 1.0}, "`clip_anchor` .* with `clips` above 1"),
    ("video", {}, {"clip_noise_order": "kept"}, "`clip_noise_order` .* with `clips` above 1"),
    ("video", {"clips": 2, "clip_overlap": 0}, {"clip_guidance": 0.5}, "`clip_guidance` .* `clip_overlap` is 0"),
    ("video", {"clips": 2, "clip_overlap": 0}, {"clip_anchor": 0.5}, "`clip_anchor` .* `clip_overlap` is 0"),
    ("video", {"clips": 2, "clip_guidance": 0.0}, {"clip_anchor": 0.5}, "`clip_anchor` .* `clip_guidance` is 0"),
    ("image", {}, {"foreground_masks": "rembg"}, "`foreground_masks` .* with `smooth_background` above 0"),
    ("image", {}, {"controlnet_conditioning_scale": 0.5}, "`controlnet_conditioning_scale` .* with `control`"),
    ("image", {}, {"control_guidance_start": 0.5}, "`control_guidance_start` .* with `control`"),
    ("image", {}, {"control_guidance_end": 0.5}, "`control_guidance_end` .* with `control`"),
    ("image", {}, {"annotators": {"depth": "net"}}, "`annotators` .* with `control`"),
    ("guided", {"control": {"seg-map": "in.mp4"}, "camera": "pan:4,4"}, {"noise": "independent"}, "camera motion"),
    ("image", {}, {"noise": "independent"}, "`noise` does nothing here: it is read with an input video"),
    ("video", {}, {"noise": "independent"}, "`noise` does nothing here, .* by text2video-zero"),
    ("image", {}, {"video_prompt": "a car"}, "`video_prompt` .* by video-elevator"),
    ("image", {}, {"video_steps": 3}, "`video_steps` .* by video-elevator"),
    ("image", {}, {"refine_at": [0.5]}, "`refine_at` .* by video-elevator"),
    ("video", {}, {"shared_noise": 0.5}, "`shared_noise` .* by video-elevator"),
    ("video", {}, {"drift_correction": True}, "`drift_correction` .* by video-elevator"),
    ("animator", {}, {"image_scale": 0.5}, "`image_scale` .* with `image`, an image to start from"),
    ("animator", {}, {"first_frame": "pinned"}, "there is no image to pin the first frame to"),
    ("video", {"image": "in.png", "first_frame": "pinned"}, {"image_scale": 0.5}, "`image_scale` .* takes no images"),
    ("image", {}, {"image_guidance_scale": 2.0}, "`image_guidance_scale` .* with `video`, a video to edit"),
    ("video", {}, {"camera": "pan:4,4"}, "with videocrafter the motion is that of the prompt"),
    ("video", {}, {"chunk_size": 4}, "`chunk_size` .* by text2video-zero and by video-elevator"),
    ("image video", {}, {"camera": "pan:4,4"}, "with video-elevator the motion is that of the prompt"),
    ("image video", {}, {"noise": "independent"}, "`noise` .* by text2video-zero"),
    ("image video", {"renoise": "same-noise"}, {"inversion_steps": 3}, "`inversion_steps` .* for `renoise` inversion"),
    ("image video", {"drift_correction": True}, {"inversion_steps": 3}, "`inversion_steps` .* without `drift_corr"),
    ("image video", {"refine_at": []}, {"video_steps": 3}, "`video_steps` .* `refine_at` is empty"),
    ("image video", {"refine_at": []}, {"inversion_steps": 3}, "`inversion_steps` .* `refine_at` is empty"),
    ("image video", {"refine_at": []}, {"drift_correction": True}, "`drift_correction` .* `refine_at` is empty"),
    ("image video", {"refine_at": []}, {"window": 3}, "`window` .* `refine_at` is empty"),
    ("image", {"num_frames": 1}, {"camera": "pan:4,4"}, "`camera` does nothing here: a single frame does not move"),
    ("image", {"num_frames": 1, "smooth_background": 0.5}, {"camera": "pan:4,4"}, "`camera` does nothing here"),
    ("video", {"num_frames": 4}, {"overlap": 1}, "`overlap` does nothing here: all 4 frames are in one window"),
    ("video", {}, {"overlap": 1}, "`overlap` does nothing here: all 4 frames are in one window"),
    ("image video", {"num_frames": 3, "window": 3}, {"overlap": 1}, "`overlap` .* all 3 frames are in one window"),
    ("guided", {"control": {"seg-map": "in.mp4"}, "clips": 2}, {"clip_noise_order": "kept"}, "frames have one noise"),
    ("video", {"num_frames": 1, "clips": 2}, {"clip_noise_order": "kept"}, "each clip has one frame"),
    (
        "video",
        {"clips": 2, "clip_overlap": 0, "clip_noise_ratio": 0.0},
        {"clip_noise_order": "kept"},
        "no clip takes noise of another",
    ),
    ("guided", {"control": {"seg-map": "in.mp4"}}, {"controlnet_conditioning_scale": 0.0}, "`control` has no effect"),
]


@pytest.mark.parametrize(("names", "asked", "idle", "reason"), UNUSED, ids=lambda value: str(value)[:40])
def test_an_option_that_nothing_reads_is_refused_unless_it_is_the_default(
    names: str, asked: dict[str, Any], idle: dict[str, Any], reason: str, models: dict[str, Model]
) -> None:
    first, second = ([describe_model(models[name]) for name in names.split()] + [None])[:2]
    assert first is not None
    usual = {name: defaults(kg.GenerateOptions)[name] for name in idle}
    check(first, second, complete({**asked, **usual}))
    with pytest.raises(InputError, match=reason):
        check(first, second, complete({**asked, **idle}))


# --- prompts in batches

FEW = {"num_inference_steps": 4, "seed": 3, "num_frames": 4}
PROMPTS = ["a fish", "a dog", "a red car"]
BATCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "image model": ("image", {"sampler": "euler-ancestral", "camera": "pan:12,5+rotate:2"}),
    "smoothing": ("image", {"smooth_background": 0.6}),
    "control": ("guided", {"control": {"seg-map": "maps"}}),
    "video model": ("video", {"sampler": "euler-ancestral", "window": 3}),
    "clips": ("video", {"clips": 2, "clip_anchor": 0.2, "then": ["a cat"]}),
    "two models": ("image video", {"refine_at": (0.9, 0.4), "video_steps": 2}),
    "fresh noise": ("image video", {"refine_at": (0.9, 0.4), "video_steps": 2, "renoise": "fresh-noise"}),
    "edits": ("editor", {"video": "maps"}),
    "edits without shared noise": ("editor", {"video": "maps", "noise": "independent", "chunk_size": 3}),
    "animations": ("animator", {"image": "image"}),
    "pinned animations": ("animator", {"image": "image", "first_frame": "pinned"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BATCHED)
def test_a_list_of_prompts_equals_one_by_one(
    case: str,
    models: dict[str, Model],
    pictures: tuple[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    names, asked = BATCHED[case]
    pixels = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    maps = Video(pixels, 10).save(tmp_path / "maps")
    inputs = {"control": {"seg-map": maps}, "video": maps, "image": pictures[0]}
    asked = {**FEW, **asked, **{name: path for name, path in inputs.items() if name in asked}}
    model, *second = (models[name] for name in names.split())
    asked["video_model"] = second[0] if second else None

    def final(prompt: list[str] | str, **more: Any) -> tuple[torch.Tensor, list[kg.Video]]:
        steps: dict[int, torch.Tensor] = {}

        def record(progress: Any) -> None:
            if progress.done == progress.total:
                steps[len(steps)] = progress.step.x

        videos = kg.generate(model, prompt, on_step=record, **{**asked, **more})
        return torch.cat(list(steps.values())), videos if isinstance(videos, list) else [videos]

    together, videos = final(PROMPTS)
    parts, _ = final(PROMPTS, batch_size=2)
    assert together.shape[0] == 3
    tolerance = {"rtol": 0.0, "atol": 1e-5 * together.abs().max().item()}  # of float32 sums that are taken in batches
    torch.testing.assert_close(parts, together, **tolerance)
    for number, prompt in enumerate(PROMPTS):
        alone, (one,) = final(prompt, seed=3 + number)
        torch.testing.assert_close(together[number : number + 1], alone, **tolerance)
        assert np.abs(videos[number].frames.astype(int) - one.frames).max() <= 1
        settings = videos[number].settings
        assert (settings["prompt"], settings["seed"]) == (prompt, 3 + number)
        same = {"batch", "frames_sha256"}
        assert {k: v for k, v in settings.items() if k not in same} == {
            k: v for k, v in one.settings.items() if k not in same
        }
