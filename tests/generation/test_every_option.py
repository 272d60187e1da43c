"""Every option in every combination of the built-in models changes the recorded settings, or is refused.

No video is sampled: requests are resolved. By hand (`-m soak`) they are, and the frames change too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.generation import options
from kineograph.generation.check import complete
from kineograph.generation.options import METHODS, GenerateOptions
from kineograph.generation.resolve import open_inputs, recorded_options, resolve
from kineograph.generation.run import run_all
from kineograph.options import declared

PROMPT = "a red fish swimming over the (sea:1.3)"
FOOTAGE = (np.linspace(0, 255, 4 * 128 * 128 * 3).reshape(4, 128, 128, 3) % 251).astype(np.uint8)
SMALL = {"num_frames": 4, "num_inference_steps": 5, "height": 64, "width": 64, "seed": 1}
TRAVEL = {"prompt_at": {2: "a blue fish"}}


class Combination(NamedTuple):
    """Built-in models, and the options with which the others are tried one by one."""

    model: str = "pocket"
    video_model: str | None = None
    options: Mapping[str, Any] = {}


COMBINATIONS = {
    "image model": Combination(),
    "image model, one frame": Combination(options={"num_frames": 1}),
    "image model without motion": Combination(options={"camera": "none"}),
    "image model without guidance": Combination(options={"guidance_scale": 1.0}),
    "background smoothing": Combination(options={"smooth_background": 0.5}),
    "control": Combination(options={"control": {"canny": FOOTAGE}}),
    "control and camera": Combination(options={"control": {"canny-map": FOOTAGE}, "camera": "pan:9,0"}),
    "pinned image": Combination(options={"image": FOOTAGE[0], "first_frame": "pinned"}),
    "video to video": Combination(options={"video": FOOTAGE}),
    "video to video from noise": Combination(options={"video": FOOTAGE, "strength": 1.0}),
    "second pass": Combination(options={"refine_size": "128x64"}),
    "clips": Combination(options={"clips": 2}),
    "prompts of later frames": Combination(options=TRAVEL),
    "leading spacing": Combination(options={"spacing": "leading"}),
    "editing model": Combination("pocket-edit", options={"video": FOOTAGE}),
    "editing model and clips": Combination("pocket-edit", options={"video": FOOTAGE, "num_frames": 2, "clips": 2}),
    "video model": Combination("pocket-video"),
    "video model in windows": Combination("pocket-video", options={"num_frames": 6, "window": 4}),
    "video model and clips": Combination("pocket-video", options={"clips": 2, "clip_overlap": 1}),
    "clips that continue nothing": Combination("pocket-video", options={"clips": 2, "clip_overlap": 0}),
    "clips without guidance": Combination("pocket-video", options={"clips": 2, "clip_guidance": 0.0}),
    "image-to-video model": Combination("pocket-animate", options={"image": FOOTAGE[0]}),
    "image-to-video model without an image": Combination("pocket-animate"),
    "FreeNoise": Combination("pocket-video", options={"method": "freenoise", "num_frames": 6, "window": 4}),
    "FreeNoise in one window": Combination("pocket-video", options={"method": "freenoise"}),
    "FreeNoise and prompts": Combination(
        "pocket-video", options={"method": "freenoise", "num_frames": 6, "window": 4, **TRAVEL}
    ),
    "VideoElevator": Combination("pocket", "pocket-video"),
    "VideoElevator with fresh noise": Combination("pocket", "pocket-video", {"renoise": "fresh-noise"}),
    "VideoElevator with drift correction": Combination("pocket", "pocket-video", {"drift_correction": True}),
    "VideoElevator without refinement": Combination("pocket", "pocket-video", {"refine_at": ()}),
    "VideoElevator with an image": Combination("pocket", "pocket-animate", {"image": FOOTAGE[0]}),
}
# another value than the default and than those above; the recorded options that are declared, and no others
VALUES: Mapping[str, Any] = {
    "image": FOOTAGE[1], "video": FOOTAGE[::-1], "negative_prompt": "a crab", "prompt_at": {1: "a green fish"},
    "prompt_weights": "off", "num_frames": 3, "num_inference_steps": 4, "guidance_scale": 3.0, "height": 128,
    "width": 128, "seed": 2, "fps": 5.0, "sampler": "heun", "spacing": "trailing", "steps_offset": 0,
    "method": "freenoise", "chunk_size": 3, "window": 3, "motion_strength": 0.5, "overlap": 2, "camera": "zoom:1.2",
    "smooth_background": 0.9, "foreground_masks": "rembg", "noise": "independent", "insert_warp_sigmas": True,
    "control": {"canny": FOOTAGE[::-1]}, "annotators": {"depth": "folder"}, "controlnet_conditioning_scale": 0.5,
    "control_guidance_start": 0.5, "control_guidance_end": 0.8, "image_scale": 0.5, "first_frame": "pinned",
    "strength": 0.8, "refine_size": "64x128", "refine_strength": 0.7, "image_guidance_scale": 2.0, "clips": 3,
    "then": ("a green fish",), "clip_overlap": 3, "clip_noise_ratio": 1.0, "clip_guidance": 0.4, "clip_anchor": 0.5,
    "clip_order": "forward", "clip_noise_order": "kept", "video_prompt": "a green fish", "refine_at": (0.5,),
    "video_steps": 2, "low_pass": 0.2,
    "low_pass_space": 0.5, "shared_noise": 0.3, "renoise": "same-noise", "inversion_steps": 1,
    "drift_correction": True, "guidance_start": 0.3, "guidance_end": 0.6, "deepcache_interval": 2,
    "deepcache_branch": 1, "video_guidance_scale": 3.0, "window_stride": 2, "window_weights": "flat",
    "injection_start": 0.2, "injection_end": 0.6, "vae_tiling": True, "engine": "openvino",
}  # fmt: skip
QUICK = ("image model", "VideoElevator")
# the number of frames in memory, the rate of models without one as a condition, FreeNoise in one window, and tiles that
# are larger than the frames
SAME_FRAMES = {"chunk_size", "fps", "method", "vae_tiling"}


@cache
def model(name: str) -> kg.Model:
    return kg.load(name, dtype="float32", device="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Look for plugins once, and ignore advice: small sizes, unknown words, edits that change little."""
    monkeypatch.setattr(options, "find_plugins", cache(options.find_plugins))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        yield


def resolved(combination: Combination, **more: Any) -> Any:
    """Return the plan of a combination and more options."""
    asked = complete({**SMALL, **combination.options, **more})
    video_model = None if combination.video_model is None else model(combination.video_model)
    return resolve(model(combination.model), [PROMPT], asked, open_inputs(asked), video_model)


def settings(plan: Any) -> dict[str, Any]:
    """Return the settings that are recorded, with those of one video."""
    return recorded_options(plan) | {"seed": plan.seeds, "negative_prompt": plan.negative_prompts}


def test_every_recorded_option_is_tried() -> None:
    recorded = {name for name, each in declared(GenerateOptions).items() if each.recorded}
    assert set(VALUES) == recorded
    assert {each.options.get("method", "") for each in COMBINATIONS.values()} >= {"freenoise"} and METHODS


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in COMBINATIONS]
)
def test_an_option_changes_the_recorded_settings_or_is_refused(name: str) -> None:
    combination = COMBINATIONS[name]
    plain, inert = settings(resolved(combination)), []
    for option, value in VALUES.items():
        if combination.options.get(option, None) is value:
            continue
        try:
            changed = settings(resolved(combination, **{option: value}))
        except InputError:
            continue
        if changed.get(option) == plain.get(option):
            inert.append(option)
    assert not inert


@pytest.mark.soak
@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_option_changes_the_frames_or_is_refused(name: str) -> None:
    combination, inert = COMBINATIONS[name], []
    plain = run_all(resolved(combination))[0]
    for option, value in VALUES.items():
        if option in SAME_FRAMES or combination.options.get(option, None) is value:
            continue
        try:
            plan = resolved(combination, **{option: value})
        except InputError:
            continue
        frames = run_all(plan)[0].frames
        if np.array_equal(frames, plain.frames):
            inert.append(option)
    assert not inert
