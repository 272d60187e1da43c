"""Every pair of what composes: it works and changes the frames, or is refused with a reason (docs/composing.md).

The table in the document is read here, so that it stays true.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from peft import LoraConfig
from safetensors.torch import save_file

import kineograph as kg

DOCUMENT = Path(__file__).parents[2] / "docs" / "composing.md"
FEATURES = (
    "clips", "control", "second model", "adapter", "LoRA", "edit", "animate", "smoothing", "camera motion", "window",
    "temporal decoder", "motion strength", "sampler", "strength", "prompt travel", "guidance interval", "DeepCache",
    "prompt list",
)  # fmt: skip
OF_VIDEO_MODELS = {"adapter", "window", "motion strength"}
PROMPTS = ["a sks cat rising", "a blue boat"]
FEW: dict[str, Any] = {
    "num_frames": 3, "num_inference_steps": 3, "seed": 3, "height": 64, "width": 64, "guidance_scale": 1.0,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "clips": {"clips": 2},
    "smoothing": {"smooth_background": 0.6},
    "camera motion": {"camera": "pan:60,0"},
    "window": {"window": 2},
    "motion strength": {"motion_strength": 0.5},
    "strength": {"strength": 0.7},  # two of three steps
    "prompt travel": {"prompt_at": {2: "a green fish"}},
    "guidance interval": {"guidance_scale": 5.0, "guidance_start": 0.5},
    "DeepCache": {"deepcache_interval": 2},
    "second model": {"refine_at": (0.7,), "video_steps": 2},
}
GREY_LEVELS = 1  # a batch rounds differently

Features = frozenset[str]
GENERATED: dict[str, list[np.ndarray]] = {}  # frames by all that they were generated from


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video, an image and a LoRA of the pocket model."""
    folder = tmp_path_factory.mktemp("inputs")
    model = kg.load(dtype="float32")
    video = kg.generate(model, "a red fish", num_frames=8, num_inference_steps=3, height=64, width=64, seed=1)
    video.save(folder / "in.mp4")
    video.pil[0].save(folder / "in.png")
    unet, generator = model.net.image_unet, torch.Generator().manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    lora = {
        f"unet.{name.replace('.default', '')}": 0.2 * torch.randn(each.shape, generator=generator)
        for name, each in unet.state_dict().items()
        if "lora_" in name
    }
    save_file(lora, folder / "lora.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Ignore warnings of unknown words, of the motion module's schedule and of weights that the adapter is not for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def load(name: str, **options: str) -> kg.Model:
    return kg.load(name, dtype="float32", device="cpu", **options)  # type: ignore[arg-type]


def generate(features: Features, pair: Features, folder: Path) -> list[np.ndarray]:
    """Return the frames with these features, on the models that the whole pair needs."""
    video = {"image": {"image": folder / "in.png"}, "edit": {"video": folder / "in.mp4"}}
    given = FEW | {name: value for each in features for name, value in OPTIONS.get(each, {}).items()}
    models = {
        **({"adapter": "pocket-fox"} if "adapter" in features else {}),
        **({"lora": str(folder / "lora.safetensors")} if "LoRA" in features else {}),
        **({"decoder": "pocket-vidrd"} if "temporal decoder" in features else {}),
    }
    second = None
    if "second model" in features:
        of_second = {"adapter": models.pop("adapter")} if "adapter" in models else {}
        second = load("pocket-animate" if "animate" in pair else "pocket-video", **of_second)
    alone = "second model" not in features
    on_video_model = bool(OF_VIDEO_MODELS & pair) and alone
    pinned = "animate" in pair and bool({"camera motion", "edit"} & pair) and alone
    if "edit" in pair:
        name = "pocket-edit" if "edit" in features else "pocket"
        models |= {"motion_module": "pocket-video"} if on_video_model or pinned else {}
    elif "animate" in pair and not pinned and alone:
        name = "pocket-animate"
    else:
        name = "pocket-video" if on_video_model and pair != {"adapter", "camera motion"} else "pocket"
    if "sampler" in features:  # another than the model's own
        given["sampler"] = "ddim" if "edit" in features else "euler-ancestral"
    if "control" in features:
        given["control"] = {"canny": folder / "in.mp4"}
    if {"edit", "strength"} & features:
        given |= video["edit"]
    if "animate" in features:
        given |= video["image"] | ({"first_frame": "pinned"} if pinned else {})
    prompts = PROMPTS if "prompt list" in features else PROMPTS[:1]
    # what does not depend on the pair is generated once
    made = repr((name, models, second and second.settings, prompts, {key: given[key] for key in sorted(given)}))
    if made not in GENERATED:
        videos = kg.generate(load(name, **models), prompts, video_model=second, **given)
        GENERATED[made] = [each.frames for each in videos]
    return GENERATED[made]


def table() -> dict[Features, str]:
    """Return the document's cells by pair: "" for one that works, else the number of the reason."""
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    (_, *columns), _, *rest = ([cell.strip() for cell in row] for row in rows)
    cells: dict[Features, str] = {}
    for name, *values in rest:
        for column, value in zip(columns, values, strict=True):
            if value:
                cells[frozenset((name, column))] = "" if value == "✓" else value
    return cells


def reasons() -> dict[str, str]:
    """Return the refusals' messages by number, from the document's list."""
    return dict(re.findall(r"^(\d)\. .*?Message: `([^`]*)`$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))


def test_the_document_has_every_pair() -> None:
    assert set(table()) == set(map(frozenset, combinations(FEATURES, 2)))


def pairs() -> Iterator[ParameterSet]:
    """Yield all pairs of features; of those that work, half are left to runs by hand (`-m soak`)."""
    for (place, one), (other_place, other) in combinations(enumerate(FEATURES), 2):
        left_out = (place + other_place) % 2 and not table()[frozenset((one, other))]
        is_soak = left_out and not {"strength", "prompt travel"} & {one, other}
        yield pytest.param((one, other), id=f"{one} and {other}", marks=pytest.mark.soak if is_soak else ())


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*pairs()])
def test_pair_works_or_is_refused_as_the_document_says(pair: tuple[str, str], inputs: Path) -> None:
    both = frozenset(pair)
    if refused := table()[both]:
        with pytest.raises(kg.InputError, match=re.escape(reasons()[refused])):
            generate(both, both, inputs)
        return
    frames = generate(both, both, inputs)
    for name in pair:
        others = both - {name}
        if name == "prompt list":
            (first,) = generate(others, both, inputs)
            assert np.abs(frames[0].astype(int) - first).max() <= GREY_LEVELS
            assert not np.array_equal(frames[0], frames[1])
        else:
            assert not any(map(np.array_equal, frames, generate(others, both, inputs))), f"{name} changes nothing"


@pytest.mark.slow
def test_two_models_take_everything_at_once(inputs: Path) -> None:
    """An image, clips, smoothing, a subject of the video model, a ControlNet of the image model, a list of prompts."""
    model, second = load("pocket", decoder="pocket-vidrd"), load("pocket-animate", adapter="pocket-fox")
    options: dict[str, Any] = {
        **FEW, **OPTIONS["second model"], "clips": 2, "image": inputs / "in.png", "first_frame": "pinned",
        "control": {"canny": inputs / "in.mp4"}, "smooth_background": 0.6, "camera": "pan:20,0", "window": 2,
        "sampler": "euler-ancestral", "then": ["a green boat"],
    }  # fmt: skip
    whole = [each.frames for each in kg.generate(model, PROMPTS, video_model=second, **options)]
    assert [len(frames) for frames in whole] == [6, 6]
    (first,) = kg.generate(model, PROMPTS[:1], video_model=second, **{**options, "clips": 1, "then": ()})
    assert np.abs(whole[0][:3].astype(int) - first.frames).max() <= GREY_LEVELS
    unset: list[dict[str, Any]] = [
        {"then": ()}, {"smooth_background": 0.0, "camera": None}, {"control": {}}, {"window": None},
        {"first_frame": "shown"}, {"sampler": None},
    ]  # fmt: skip
    for without in unset:
        (other,) = kg.generate(model, PROMPTS[:1], video_model=second, **{**options, **without})
        assert not np.array_equal(other.frames, whole[0]), f"{[*without]} changes nothing"
