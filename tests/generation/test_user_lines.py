"""Lines of code and commands as users write them, right and wrong, with what they are to give: issue 24, section 1.

Other files have the rest of it: inputs in memory (test_inputs_from_memory.py), the notebook, callbacks, generators and
forms of results (test_faces.py), models that move, LoRAs after `load`, quiet loading (models/test_model_handling.py),
webm and `save(fps=...)` (media/test_video.py), the line of the default camera (cli/test_cli.py).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Run
from generation.test_two_models import image, video  # noqa: F401
from models.conftest import sd, sd_folder  # noqa: F401
from safetensors.torch import save_file
from tiny_videos import adapter

import kineograph as kg
from kineograph.cli.commands import COMMANDS
from kineograph.errors import InputError, InputWarning, shown
from kineograph.generation.recorded import recorded_request
from kineograph.generation.run import is_unchanged
from kineograph.media.footage import open_footage
from kineograph.media.images import import_opencv
from kineograph.models.model import Model

FEW: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
FRAMES = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
CLIP = kg.Video(FRAMES, 8)


@pytest.fixture(scope="module")
def model() -> Model:
    return kg.load(sd())


# --- arguments


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("generate", ["a red fish", "MODEL"], "not an object of type Model: the order is kineograph.generate.model, "),
        ("generate", ["a red fish", "pocket"], "the prompt is 'pocket', which is a model, and there is no 'a red"),
        ("generate", [CLIP, "a red fish"], "a model is one that kineograph.load returned, .* not an object of type"),
        ("generate", ["MODEL", CLIP], "`prompt` is .*, not an object of type Video"),
        ("generate", ["MODEL", FRAMES], "`prompt` is .*, not an object of type ndarray"),
        ("generate", ["MODEL", None], "there is no `prompt`"),
        ("generate", ["pocket-vide", "a fish"], "there is no pocket-vide.*did you mean pocket-video, which is "),
        ("generate", ["someone/nothing", "a fish"], "someone/nothing is neither a path here nor .* the Hub is not rea"),
        ("edit", ["MODEL", "make it snow", CLIP], "not an object of type Video: the order is kineograph.edit.model"),
        ("edit", ["MODEL", "make it snow", "FILE"], "the prompt is '.*film', which is a file, and there is no 'make"),
        ("edit", [CLIP, "MODEL", "make it snow"], "the video is .*, which is a model: the order is kineograph.edit"),
        ("edit", ["FILE", "pocket-edit", "make it snow"], "the video is 'pocket-edit', which is a model"),
        ("animate", ["MODEL", "a fish swims", FRAMES[0]], "not an object of type ndarray: the order is .*animate"),
        ("animate", ["MODEL", "a fish swims", "FILE"], "which is a file, and there is no 'a fish swims': the order is"),
    ],
)  # fmt: skip
def test_arguments_in_another_order_are_named(
    function: str, arguments: list[Any], message: str, model: Model, tmp_path: Path
) -> None:
    places = {"MODEL": model, "FILE": str(CLIP.save(tmp_path / "film"))}
    given = [places.get(each, each) if isinstance(each, str) else each for each in arguments]
    with pytest.raises(InputError, match=message) as refused:
        inspect.unwrap(getattr(kg, function))(*given, **FEW)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_commands_name_arguments_in_another_order(run: Run, tmp_path: Path) -> None:
    CLIP.save(tmp_path / "in.mp4")
    for command, order in (("edit", "kineograph edit in.mp4"), ("animate", "kineograph animate fish.png")):
        result = run(command, "make it snow", "in.mp4")
        assert result.status == 2 and result.err.count("\n") == 1
        assert (
            f"the prompt is 'in.mp4', which is a file, and there is no 'make it snow': the order is {order}"
            in result.err
        )


@pytest.mark.parametrize("wrong", [3, CLIP, FRAMES, ["pocket"]])
def test_what_cannot_be_loaded_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="a model is a name, a path or a pipeline of diffusers, not "):
        inspect.unwrap(kg.load)(wrong)


@pytest.mark.parametrize("control", ["x.mp4", CLIP, ["x.mp4"], FRAMES])
def test_a_control_without_its_kind_is_refused(control: Any, model: Model) -> None:
    with pytest.raises(InputError, match=r"`control` is \{kind: video\}, as in \{\"canny\": \"in.mp4\"\}, not "):
        inspect.unwrap(kg.generate)(model, "a fish", control=control, **FEW)


def test_options_of_load_are_said_to_be_such(model: Model) -> None:
    with pytest.raises(InputError, match="`lora` is an option of the model: give it to `load`"):
        inspect.unwrap(kg.generate)(model, "a fish", lora="style.safetensors")


def test_values_are_shown_in_one_short_line() -> None:
    for value in (FRAMES, CLIP, [FRAMES], torch.zeros(3), "x" * 1000, list(range(1000)), object()):
        assert "\n" not in shown(value) and len(shown(value)) < 120
    assert [shown(each) for each in ("a", 3, None, [1, 2], {"a": 1})] == ["'a'", "3", "None", "[1, 2]", "{'a': 1}"]
    assert repr(CLIP) == "Video of 4 frames, 16 x 16, 8 a second"


# --- files of one kind given as another


ZEROS = torch.zeros
FILES: Mapping[str, Mapping[str, torch.Tensor]] = {  # option -> names in a file for it
    "lora": {"lora_unet_x.lora_down.weight": ZEROS(1, 8), "lora_unet_x.lora_up.weight": ZEROS(8, 1)},
    "adapter": {"spatial_adapter.x.lora_A.weight": ZEROS(2, 8), "unet.x.lora_A.weight": ZEROS(2, 8)},
    "motion_adapter": {"motion_adapter.x.lora_A.weight": ZEROS(2, 8), "motion_adapter.x.lora_B.weight": ZEROS(8, 2)},
    "textual_inversion": {"<cat>": ZEROS(1, 32)},
    "controlnet": {"control_model.input_blocks.0.0.weight": ZEROS(8, 4, 3, 3), "control_model.x": ZEROS(8)},
    "ip_adapter": {"image_proj.proj.weight": ZEROS(8, 4), "ip_adapter.1.to_k_ip.weight": ZEROS(4, 8)},
    "vae": {"decoder.conv_in.weight": ZEROS(8, 4, 3, 3), "encoder.conv_in.weight": ZEROS(8, 3, 3, 3)},
    "motion_module": {"down_blocks.0.motion_modules.0.x.weight": ZEROS(8), "up_blocks.0.motion_modules.0.x": ZEROS(8)},
}
PAIRS = [(kind, option) for kind in FILES for option in (*FILES, "decoder") if option != kind]


def load_with(option: str, file: Path) -> Model:
    """Load a tiny model with a file as this option."""
    options: dict[str, Any] = {option: file}
    return kg.load(sd(), **options)


@pytest.mark.parametrize(
    ("kind", "given_as"),
    [
        pair if pair in (("lora", "adapter"), ("controlnet", "vae")) else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in PAIRS
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_option(kind: str, given_as: str, tmp_path: Path) -> None:
    save_file(dict(FILES[kind]), tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=f"file.safetensors .*pass this as `{kind}`"):
        load_with(given_as, tmp_path / "file.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_model_is_refused_with_its_option(kind: str, tmp_path: Path) -> None:
    save_file(dict(FILES[kind]), tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=f"file.safetensors is not a checkpoint .*pass this as `{kind}`"):
        kg.load(tmp_path / "file.safetensors")


@pytest.mark.slow
def test_torch_files_with_sections_are_known_too(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": ZEROS(1, 32)}, "name": "cat"}, tmp_path / "cat.pt")
    torch.save({"image_proj": {"proj.weight": ZEROS(8, 4)}, "ip_adapter": {"1.x": ZEROS(4)}}, tmp_path / "ip.bin")
    for given_as in ("lora", "adapter", "vae"):
        with pytest.raises(InputError, match="pass this as `textual_inversion`"):
            load_with(given_as, tmp_path / "cat.pt")
        with pytest.raises(InputError, match="pass this as `ip_adapter`"):
            load_with(given_as, tmp_path / "ip.bin")


@pytest.mark.slow
def test_the_command_names_the_flag(run: Run, sd_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    save_file(dict(FILES["lora"]), tmp_path / "style.safetensors")
    result = run("generate", "a fish", "--model", sd_folder, "--adapter", "style.safetensors", "--device", "cpu")
    assert result.status == 2
    assert "style.safetensors is no adapter that Kineograph wrote. It looks like a LoRA" in result.err
    assert "pass this as --lora." in result.err


@pytest.mark.slow
def test_the_folder_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    for part in ("vae", "unet", "text_encoder"):
        getattr(sd(), part).save_pretrained(tmp_path / part)
    for option, part, said in (
        ("motion_module", "text_encoder", "text_encoder holds a 'CLIPTextModel', where temporal layers are expected"),
        ("decoder", "text_encoder", "text_encoder holds a 'CLIPTextModel', where temporal layers are expected"),
        ("vae", "unet", "is of the kind UNet2DConditionModel: expected AutoencoderKL"),
        ("controlnet", "vae", "found AutoencoderKL"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            load_with(option, tmp_path / part)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("pocket-fox", {}, "pocket-fox, which is built in, is not for `model`: give it as `adapter`"),
        ("pocket", {"lora": [("pocket-fox", 0.5)]}, "is not for `lora`: give it as `adapter`"),
        ("pocket", {"adapter": "pocket-video"}, "is not for `adapter`: give it as `model` or `motion_module`"),
        ("pocket", {"vae": "pocket-vidrd"}, "is not for `vae`: give it as `model` or `motion_module` or `decoder`"),
        ("pocket", {"controlnet": {"canny": "pocket"}}, "is not for `controlnet`: give it as `model`"),
    ],
)
def test_built_in_names_are_refused_where_they_do_not_belong(source: str, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kg.load(source, **options)


@pytest.mark.slow
def test_a_built_in_video_model_is_a_motion_module_as_the_help_says() -> None:
    moving = kg.load("pocket", motion_module="pocket-video")
    assert moving.temporal == kg.load("pocket-video").temporal


# --- options


def test_an_existing_file_is_replaced_by_the_option_that_the_message_names(tmp_path: Path) -> None:
    path = CLIP.save(tmp_path / "in.mp4")
    with pytest.raises(FileExistsError, match=r"choose another name, or replace it \(--overwrite; .* overwrite=True\)"):
        CLIP.save(path)
    other = kg.Video(255 - FRAMES, 8)
    other.save(path, overwrite=True)
    assert path.read_bytes() == other.save(tmp_path / "other.mp4").read_bytes()


def test_prompts_of_clips_need_clips(model: Model) -> None:
    with pytest.raises(InputError, match="`then` does nothing here, .* it is read with `clips` above 1. Give that too"):
        kg.generate(model, "a fish", then=["a cat"], **FEW)


def test_generate_with_an_editing_model_says_to_use_edit() -> None:
    with pytest.raises(
        InputError, match=r"is an editing model.* use kineograph edit in.mp4 .*kineograph.edit\(model, 'in"
    ):
        kg.generate(kg.load(sd(in_channels=8)), "make it snow", **FEW)


@pytest.mark.slow
def test_sizes_far_from_the_models_own_are_warned_about(model: Model) -> None:
    def warned(height: int, width: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kg.generate(model, "a fish", num_frames=1, height=height, width=width, num_inference_steps=1, seed=1)
        return [str(each.message) for each in caught if each.category is InputWarning]

    for height, width in ((4, 8), (32, 32), (16, 64)):
        (said,) = warned(height, width)
        assert f"was trained at 16 x 16 pixels, and {width} x {height} is far from that" in said
    assert warned(8, 8) == warned(24, 24) == warned(16, 32) == []


@pytest.mark.parametrize(
    ("camera", "frames", "line"),
    [
        ("pan:12,12", 8, None),
        ("pan:100,0", 5, r"with `camera` pan:100,0 7\d% of the last frame lies outside of the first"),
        ("rotate:3", 8, None),
        ("rotate:20", 4, "`camera` rotate:20 turns by 60 degrees in 4 frames: .* tilted by more than 45"),
    ],
)
def test_a_camera_that_moves_too_far_is_warned_of(model: Model, camera: str, frames: int, line: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kg.generate(model, "a fish", camera=camera, num_frames=frames, num_inference_steps=1, seed=1)
    said = [str(each.message) for each in caught if "`camera`" in str(each.message)]
    assert (len(said) == 1 and re.search(line, said[0])) if line else not said


def test_an_edit_that_changed_nothing_is_known() -> None:
    frames = np.full((3, 64, 64, 3), 100, np.uint8)
    frames[:, 16:40, 16:40] = (200, 30, 30)
    noise = np.random.default_rng(0).integers(-6, 7, frames.shape)  # about what a VAE changes
    same, edited = (frames + noise).astype(np.uint8), frames.copy()
    edited[2, 16:40, 16:40] = (30, 30, 200)  # one of the frames alone
    source = open_footage(kg.Video(frames, 8))
    assert is_unchanged(kg.Video(same, 8), source)
    assert not is_unchanged(kg.Video(edited, 8), source)


@pytest.mark.slow
def test_a_real_edit_with_hardly_any_strength_is_warned_about() -> None:
    pocket = kg.load()
    before = kg.generate(pocket, "a red fish swimming over the sea", num_frames=2, num_inference_steps=10, seed=3)
    with pytest.warns(InputWarning, match="changed next to nothing of .*: try a higher `strength`"):
        kg.edit(pocket, before, "a red fish swimming over the sea", strength=0.1, num_inference_steps=10, seed=1)
    kg.edit(pocket, before, "a blue cat", strength=0.6, num_inference_steps=10, seed=1)  # no warning


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pocket", "pocket-animate"])
def test_words_of_the_built_in_models_are_known_to_all_of_them(name: str) -> None:
    pocket = kg.load(name)
    for text in ("a red fish rising", "a kite sinking to the left", "a ball growing, shrinking", "make it snow"):
        assert pocket.unknown_words(text) == []
    assert pocket.unknown_words("a red zebra") == ["zebra"]


@pytest.mark.slow
def test_doctor_and_commands_agree_on_opencv(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    findings = {each["what"]: each for each in json.loads(run("doctor", "--json").out)["findings"]}
    with pytest.raises(InputError, match="pip install 'kineograph.control.'"):
        import_opencv("edge detection")
    assert findings["OpenCV"]["to_do"] == "pip install 'kineograph[control]'"
    for use in ("--control canny", "kineograph evaluate", "kineograph curate"):
        assert use in findings["OpenCV"]["found"]


# --- methods


@pytest.mark.slow
def test_animatediff_has_its_name(sd_folder: Path, tmp_path: Path, model: Model, video: Model) -> None:  # noqa: F811
    adapter().save_pretrained(tmp_path / "motion")
    moving = kg.load(sd_folder, motion_module=tmp_path / "motion", dtype="float32")
    made = kg.generate(moving, "a fish", num_frames=4, **FEW)
    assert made.settings["method"] == "animatediff"
    for method in ("animatediff", "videocrafter"):
        again = kg.generate(moving, "a fish", num_frames=4, method=method, **FEW)
        assert again.settings["method"] == method and np.array_equal(again.frames, made.frames)
    for other in (model, video):
        with pytest.raises(InputError, match="has no motion module of AnimateDiff: load an image model with one"):
            kg.generate(other, "a fish", method="animatediff", **FEW)


# --- recorded and shown


@pytest.mark.parametrize(
    ("asked", "absent", "present"),
    [
        ({}, {"noise", "strength", "image_guidance_scale"}, {"camera": "pan:12,12", "method": "text2video-zero"}),
        ({"num_frames": 1}, {"noise"}, {"camera": "none"}),
        pytest.param(
            {"video": CLIP, "strength": 0.5},
            {"image_guidance_scale"},
            {"camera": "none", "noise": "shared"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"clips": 2, "clip_overlap": 0},
            {"clip_guidance", "clip_anchor"},
            {"clip_overlap": 0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_settings_are_those_that_were_read(asked: Any, absent: set[str], present: Any, model: Model) -> None:
    made = kg.generate(model, "a fish", **{"num_frames": 2, **FEW, **asked})
    assert not absent & {*made.settings}
    assert {name: made.settings[name] for name in present} == present


@pytest.mark.slow
def test_settings_of_two_models_are_those_that_were_read(image: Model, video: Model) -> None:  # noqa: F811
    asked: dict[str, Any] = {"num_frames": 2, "num_inference_steps": 4, "seed": 1}
    made = kg.generate(image, "a fish", video_model=video, refine_at=(), **asked)
    idle = {"video_steps", "low_pass", "renoise", "inversion_steps", "window", "overlap", "motion_strength"}
    assert not idle & {*made.settings} and made.settings["refine_at"] == []
    assert recorded_request(json.loads(json.dumps(made.settings)))[1]["refine_at"] == ()  # and so replayed
    moving = kg.generate(video, "a fish", **asked)
    assert not {"motion_strength", "overlap"} & {*moving.settings}  # no motion adapter, and one window
    long = kg.generate(video, "a fish", method="videocrafter", **{**asked, "num_frames": 6})
    assert (long.settings["window"], long.settings["overlap"]) == (4, 1)


@pytest.mark.slow
def test_inspect_shows_the_settings_that_were_read(run: Run, model: Model, tmp_path: Path) -> None:
    kg.generate(model, "a fish", num_frames=2, **FEW).save(tmp_path / "fish.mp4")
    shown_settings = dict(line.strip().split(maxsplit=1) for line in run("inspect", "fish.mp4").err.splitlines()[1:])
    assert shown_settings["camera"] == "pan:12,12" and shown_settings["seed"] == "1"
    assert not {"noise", "image_guidance_scale", "clips", "foreground_masks"} & {*shown_settings}


# --- help


OLD_NAMES = ("--motion ", "--motion-scale", "--solver", "--keep ", "--back ", "--beside", "--across", "--masks")
OWN_WORDS = ("pocket world", "motion_scale", "shards", "`", "elevation", "ladder", "solver")


@pytest.mark.parametrize("command", [pytest.param(each, marks=pytest.mark.slow) for each in COMMANDS])
def test_help_has_the_fields_words_and_flags_for_options(command: str, run: Run) -> None:
    text = " ".join(run(command, "--help").out.split())
    for word in (*OLD_NAMES, *OWN_WORDS):
        assert word not in text, word
