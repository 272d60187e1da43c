"""Images, videos to edit and control videos that are objects in memory, on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from models.conftest import sd
from PIL import Image

import kineograph as kg
from kineograph.errors import InputError

FEW: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
FRAMES = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255
VIDEOS = {
    "Video": kg.Video(FRAMES, 8),
    "images": [Image.fromarray(frame) for frame in FRAMES],
    "arrays": list(FRAMES),
    "array": FRAMES,
    "floats": FRAMES / 255,
    "tensor": TENSOR,
    "batch": TENSOR[None],
}


@pytest.fixture(scope="module")
def editor() -> kg.Model:
    return kg.load(sd(in_channels=8))


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> kg.Model:
    base, folder = sd(), tmp_path_factory.mktemp("guided")
    torch.manual_seed(4)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for name, weight in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.2)
    base.save_pretrained(folder / "sd")
    net.save_pretrained(folder / "net")
    return kg.load(folder / "sd", controlnet={"seg": folder / "net", "canny": folder / "net"}, dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return kg.Video(FRAMES, 8).save(tmp_path / "in")


@pytest.mark.parametrize("kind", VIDEOS)
def test_an_edit_of_frames_in_memory_equals_that_of_a_file(editor: kg.Model, folder: Path, kind: str) -> None:
    from_file = kg.edit(editor, folder, "a cat", **FEW)
    video = kg.edit(editor, VIDEOS[kind], "a cat", **FEW)
    assert np.array_equal(video.frames, from_file.frames) and video.fps == 8
    again = kg.generate(editor, "a cat", video=VIDEOS[kind], num_frames=2, **FEW)
    assert len(again) == 2


@pytest.mark.filterwarnings("ignore:the edit changed")
def test_a_result_is_edited_further(editor: kg.Model) -> None:
    first = kg.edit(editor, kg.Video(FRAMES, 5), "a cat", **FEW)
    second = kg.edit(editor, first, "a dog", **FEW)
    assert (first.fps, second.fps) == (5, 5)
    assert kg.edit(editor, FRAMES, "a cat", fps=3, **FEW).fps == 3
    digest = first.settings["frames_sha256"]
    label = f"video in memory (4 frames of 16 x 16, sha256 {digest[:16]})"
    assert second.settings["video"] == label and second.settings["read"] == {label: digest}


@pytest.mark.parametrize("kind", ["Video", "images", "array", "tensor"])
def test_control_videos_may_be_in_memory(guided: kg.Model, folder: Path, kind: str) -> None:
    from_file = kg.generate(guided, "a fish", control={"seg-map": folder}, **FEW)
    video = kg.generate(guided, "a fish", control={"seg-map": VIDEOS[kind]}, **FEW)
    assert np.array_equal(video.frames, from_file.frames)
    assert from_file.settings["control"] == {"seg-map": str(folder)}
    assert video.settings["control"]["seg-map"].startswith("video in memory (4 frames of 16 x 16, sha256 ")


@pytest.mark.parametrize("image", [Image.fromarray(FRAMES[0]), FRAMES[0], FRAMES[0] / 255, TENSOR[0], TENSOR[:1]])
def test_an_image_in_memory_equals_its_file(guided: kg.Model, tmp_path: Path, image: Any) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "fish.png")
    pinned: dict[str, Any] = {"first_frame": "pinned", "num_frames": 2, **FEW}
    from_file = kg.animate(guided, tmp_path / "fish.png", "a fish", **pinned)
    video = kg.animate(guided, image, "a fish", **pinned)
    assert np.array_equal(video.frames, from_file.frames)
    assert np.array_equal(kg.generate(guided, "a fish", image=image, **pinned).frames, video.frames)
    assert video.settings["image"].startswith("image in memory (16 x 16, sha256 ")


def test_the_settings_are_json_and_replay_says_what_was_in_memory(
    editor: kg.Model, guided: kg.Model, tmp_path: Path
) -> None:
    edited = kg.edit(editor, FRAMES, "a cat", **FEW).save(tmp_path / "edited.mp4")
    assert json.loads(json.dumps(kg.open_video(edited).settings)) == kg.open_video(edited).settings
    with pytest.raises(InputError, match=r"`video`, video in memory \(4 frames .* generate it again from Python"):
        kg.replay(edited, model=editor)
    both = kg.generate(
        guided, "a cat", control={"seg-map": FRAMES}, image=FRAMES[0], first_frame="pinned", num_frames=2, **FEW
    )
    with pytest.raises(InputError, match=r"`image`, image in memory .* and `control seg-map`, video in memory"):
        kg.replay(both.save(tmp_path / "both.mp4"), model=guided)


def test_clips_of_a_video_in_memory_are_kept(editor: kg.Model, tmp_path: Path) -> None:
    kept: dict[str, Any] = {"clips": 2, "clip_overlap": 0, "num_frames": 2, "keep_clips": tmp_path / "kept", **FEW}
    first = kg.edit(editor, FRAMES, "a cat", **kept)
    assert np.array_equal(kg.edit(editor, list(FRAMES), "a cat", **kept).frames, first.frames)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 2


CANNOT: list[tuple[Callable[..., Any], str]] = [
    (lambda model: kg.edit(model, [], "a cat"), "`video` holds no frames"),
    (lambda model: kg.generate(model, "a cat", video=5), "`video` is a path, .*, not an object of type int"),
    (lambda model: kg.edit(model, FRAMES[0], "a cat"), r"`video` is a path, .*, not an array \[16 16 3\] of uint8"),
    (lambda model: kg.edit(model, FRAMES / 1.0, "a cat"), "the values of `video` are uint8 .* from 0 to 254"),
    (lambda model: kg.edit(model, "make it snow", "a.mp4"), "there is no file make it snow"),
    (lambda model: kg.edit(model, kg.Video(FRAMES), "a cat", num_frames=9), "has 4 frames, and 9 are asked for"),
    (lambda model: kg.generate(model, "a cat", video=FRAMES, control={"canny": FRAMES[:3]}), "not equally long"),
    (lambda model: kg.generate(model, "a cat", control="x.mp4"), r"`control` is \{kind: video\}, .*, not 'x.mp4'"),
    (lambda model: kg.generate(model, "a cat", control=kg.Video(FRAMES)), r"\{kind: video\}, .*, not an object of"),
    (lambda model: kg.generate(model, "a cat", control={"canny": 3}), "`control` is a path, .* of type int"),
    (lambda model: kg.generate(model, "a cat", image=3), "`image` is a path, .*, not an object of type int"),
    (lambda model: kg.animate(model, FRAMES, "a cat"), r"`image` is a path, .*, not an array \[4 16 16 3\] of uint8"),
]


@pytest.mark.parametrize(("call", "message"), CANNOT)
def test_other_objects_are_refused_in_one_line(editor: kg.Model, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call(editor)
    assert "\n" not in str(error.value)
