"""One short video of every method and every input on the device, compared with the CPU's."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gpu.comparing import FEW, grey_levels

import kineograph as kg
from kineograph.generation.options import METHODS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")]

MAX_DIFFERENCE = 2.0  # grey levels; different kernels round differently


def film(frames: int = 3) -> kg.Video:
    """Return a video of a square that moves over a slope of grey."""
    pixels = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, None, :, None], (frames, 64, 1, 3))
    for number, frame in enumerate(pixels):
        frame[20:40, 10 + 8 * number : 30 + 8 * number] = (200, 30, 30)
    return kg.Video(pixels, 4)


@cache
def load(device: torch.device, name: str, **options: str) -> kg.Model:
    return kg.load(name, device=device, dtype="float32", **options)


def generate(device: torch.device, name: str, given: dict[str, Any], **parts: str) -> kg.Video:
    given = FEW | given
    if "video_model" in given:
        given["video_model"] = load(device, given["video_model"])
    return kg.generate(load(device, name, **parts), "a red fish", **given)


VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "text2video-zero": ("pocket", {"method": "text2video-zero", "camera": "pan:60,0"}),
    "background smoothing": ("pocket", {"smooth_background": 0.6, "camera": "pan:60,0", "num_inference_steps": 3}),
    "ancestral noise": ("pocket", {"sampler": "euler-ancestral"}),
    "chunks of frames": ("pocket", {"chunk_size": 2, "num_frames": 5}),
    "videocrafter": ("pocket-video", {"method": "videocrafter"}),
    "windows": ("pocket-video", {"num_frames": 6, "window": 4}),
    "clips of VidRD": ("pocket-vidrd", {"clips": 2}),
    "freenoise": ("pocket-video", {"method": "freenoise", "num_frames": 6, "window": 4, "window_stride": 2}),
    "video-elevator": ("pocket", {"method": "video-elevator", "video_model": "pocket-video", "video_steps": 1}),
    "motion adapter of Still-Moving": ("pocket-video", {"motion_strength": 0.5}),
    "video to video": ("pocket", {"video": film(), "strength": 0.7}),
    "video to video with a video model": ("pocket-video", {"video": film(), "strength": 0.7}),
    "InstructPix2Pix": ("pocket-edit", {"video": film()}),
    "ControlNet": ("pocket", {"control": {"canny-map": film()}}),
    "ControlNet with a video model": ("pocket-video", {"control": {"canny-map": film()}}),
    "image to video": ("pocket-animate", {"image": film().frames[0]}),
    "first frame pinned": ("pocket", {"image": film().frames[0], "first_frame": "pinned", "camera": "pan:30,0"}),
    "prompts by frame": ("pocket", {"prompt_at": {2: "a green fish"}}),
    "second pass": ("pocket", {"refine_size": "96x96"}),
}


def test_every_method_is_here() -> None:
    """But animatediff, which is videocrafter with AnimateDiff's motion module; see `test_devices`."""
    assert {*METHODS} - {"animatediff"} <= {*VIDEOS}


@pytest.mark.parametrize("name", VIDEOS)
def test_video_is_close_to_that_of_the_cpu(device: torch.device, name: str) -> None:
    model, given = VIDEOS[name]
    wanted = generate(torch.device("cpu"), model, given)
    assert grey_levels(generate(device, model, given), wanted) < MAX_DIFFERENCE
    assert wanted.frames.std() > 1, "something is in it"


def test_customised_model_is_close_to_that_of_the_cpu(device: torch.device) -> None:
    videos = [generate(each, "pocket-video", {}, adapter="pocket-fox") for each in (device, torch.device("cpu"))]
    assert grey_levels(*videos) < MAX_DIFFERENCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["pocket", "pocket-video", "pocket-vidrd", "pocket-animate"])
def test_video_in_half_precision_is_finite_and_alike(device: torch.device, name: str, dtype: str) -> None:
    given = {"image": film().frames[0]} if name == "pocket-animate" else {}
    half = kg.load(name, device=device, dtype=dtype)
    video = kg.generate(half, "a red fish", **FEW, **given)
    assert grey_levels(video, generate(torch.device("cpu"), name, given)) < 20


def test_list_of_prompts_is_computed_in_batches(device: torch.device) -> None:
    model = load(device, "pocket")
    both = kg.generate(model, ["a red fish", "a blue boat"], **FEW)
    alone = kg.generate(model, "a red fish", **FEW)
    assert grey_levels(both[0], alone) < MAX_DIFFERENCE
