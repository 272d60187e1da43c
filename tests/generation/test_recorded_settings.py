"""Settings of files from anyone: `replay` loads nothing that they name unless asked to, and refuses what cannot be."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kineograph as kg
from kineograph.cli import terminal
from kineograph.errors import InputError, parse_json
from kineograph.generation import recorded
from kineograph.media.metadata import read_settings, read_video_metadata
from kineograph.request import SETTINGS_VERSION

BEFORE = Path(__file__).parents[1] / "data" / "made_before"
HASH = "0" * 64
SETTINGS = {
    "settings_version": SETTINGS_VERSION, "prompt": "a red fish", "seed": 7, "num_frames": 2, "num_inference_steps": 2,
    "guidance_scale": 7.5, "height": 64, "width": 64, "fps": 4.0, "method": "text2video-zero", "camera": "pan:20,0",
    "sampler": "ddim", "chunk_size": 8, "read": {}, "frames_sha256": HASH,
    "model": {
        "name": "pocket", "load": {"source": "pocket"}, "device": "cpu", "dtype": "float32", "weights": {"unet": HASH}
    },
    "versions": {"torch": "2.13.0"}, "machine": {"threads": 1},
}  # fmt: skip


def write_label(path: Path, label: object) -> Path:
    """Write a png with a label."""
    info = PngInfo()
    info.add_text("Comment", label if isinstance(label, str) else json.dumps(label))
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return path


def write_settings(path: Path, changes: Mapping[str, Any], load: Mapping[str, Any] | None = None) -> Path:
    """Write a png with changed settings. load: arguments of the model."""
    changed = copy.deepcopy(SETTINGS) | dict(changes)
    if load is not None:
        changed["model"]["load"] = dict(load)
    return write_label(path, {"frames": 1, "height": 16, "width": 16, "fps": 4.0, "settings": changed})


# --- trust

NAMED = [
    pytest.param({}, {"source": "models/sd"}, "models/sd", id="model"),
    pytest.param({}, {"source": "owner/name"}, "owner/name", id="repository"),
    pytest.param({}, {"source": "pocket", "lora": [["style.safetensors", 1.0]]}, "style.safetensors", id="lora"),
    pytest.param({}, {"source": "pocket", "textual_inversion": {"cat": "cat.pt"}}, "cat.pt", id="words"),
    pytest.param({}, {"source": "pocket", "controlnet": {"canny": "nets/canny"}}, "nets/canny", id="controlnet"),
    pytest.param({}, {"source": "pocket-video", "adapter": "my.safetensors"}, "my.safetensors", id="adapter"),
    pytest.param({}, {"source": "pocket", "motion": "old/motion"}, "old/motion", id="renamed"),
    pytest.param({"image": "/home/me/photo.png"}, None, "/home/me/photo.png", id="image"),
    pytest.param({"video": "in.mp4"}, None, "in.mp4", id="video"),
    pytest.param({"video": ["in.png"]}, None, "in.png", id="list-of-images"),
    pytest.param({"control": {"canny": "edges.mp4"}}, None, "edges.mp4", id="control"),
    pytest.param(
        {"control": {"canny-map": "edges.mp4"}, "annotators": {"canny": "owner/net"}}, None, "owner/net", id="annotator"
    ),
    pytest.param({"video_model": {**SETTINGS["model"], "load": {"source": "films"}}}, None, "films", id="second"),
]


@pytest.mark.parametrize(("changes", "load", "named"), NAMED)
def test_replay_lists_what_it_would_load_and_loads_nothing(tmp_path: Path, changes, load, named) -> None:
    path = write_settings(tmp_path / "sly.png", changes, load)
    with pytest.raises(InputError, match="names what replay would load: .*trust=True") as raised:
        kg.replay(path)
    assert named in str(raised.value)
    with pytest.raises(InputError) as raised:  # none of these is there
        kg.replay(path, trust=True)
    assert "trust=True" not in str(raised.value)


def test_built_in_models_are_loaded_without_a_question(tmp_path: Path) -> None:
    with_fox = {"source": "pocket-video", "adapter": "pocket-fox"}
    for load in ({"source": "pocket"}, with_fox, {"source": "pocket", "decoder": "pocket-vidrd"}):
        video = recorded.read_recorded_video(write_settings(tmp_path / "plain.png", {}, load))
        assert recorded.list_named_sources(video) == []


def test_a_given_model_is_used_in_place_of_the_named_one(tmp_path: Path) -> None:
    path = write_settings(tmp_path / "sly.png", {"image": "photo.png"}, {"source": "models/sd"})
    video = recorded.read_recorded_video(path)
    assert recorded.list_named_sources(video) == ["models/sd", "photo.png"]
    assert recorded.list_named_sources(video, ["model"]) == ["photo.png"]


def test_the_command_refuses_without_a_terminal_and_asks_in_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(tmp_path / "sly.png", {}, {"source": "models/sd", "lora": [["\x1b[2Jstyle", 1.0]]})
    refused = run("replay", "sly.png", "-o", "again")
    assert refused.status == 2 and refused.err.count("\n") == 1
    assert "models/sd, \\x1b[2Jstyle" in refused.err and "--yes" in refused.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdin, "readline", lambda *_: "n\n")
    assert "nothing was loaded" in run("replay", "sly.png", "-o", "again").err
    assert "there is no" in run("replay", "sly.png", "-o", "again", "--yes").err


def test_options_that_are_never_recorded_are_not_read(tmp_path: Path) -> None:
    path = write_settings(tmp_path / "sly.png", {"keep_clips": str(tmp_path / "taken"), "batch_size": 3})
    options = recorded.read_recorded_video(path).options
    assert options["keep_clips"] is None and options["batch_size"] is None


# --- limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 10**6}, "num_frames"),
        ({"num_inference_steps": 10**6}, "num_inference_steps"),
        ({"height": 10**5}, "height"),
        ({"width": 10**5}, "width"),
        ({"prompt": "a" * 30_000}, "characters"),
        ({"negative_prompt": "a" * 30_000}, "characters"),
        ({"method": "none"}, "method"),
        ({"model": 3}, "model in these settings"),
        ({"versions": [1]}, "versions in these settings"),
        ({"model": {**SETTINGS["model"], "device": "cuda:99"}}, "device"),
        ({"model": {**SETTINGS["model"], "dtype": "int3"}}, "dtype"),
    ],
)
def test_replay_has_the_limits_of_generate(tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(InputError) as raised:
        recorded.check_recorded_options(recorded.read_recorded_video(write_settings(tmp_path / "wide.png", changes)))
    assert message in str(raised.value) and len(str(raised.value)) < 500


# --- properties

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
few = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in a value, by keys and indices."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, each in inside for deeper in paths_in(each, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a value with another one at a place."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


@pytest.mark.parametrize("old", [SETTINGS, *(read_settings(BEFORE / name) for name in ("text2video_zero", "elevated"))])
@few
@given(data=st.data())
def test_edited_settings_are_read_or_refused(old: dict[str, Any], data: st.DataObject) -> None:
    edited = old
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(paths_in(edited)[1:]))
        edited = replaced(edited, place, data.draw(json_values))
    with suppress(InputError):
        video = recorded.RecordedVideo(Path("edited.png"), edited, *recorded.recorded_request(edited))
        if not recorded.list_named_sources(video):
            recorded.check_recorded_options(video)


@few
@given(value=json_values, field=st.sampled_from(["kind", "video", "scale", "start", "end", "ready", "annotator"]))
def test_any_control_of_version_1_is_read_or_refused(value: Any, field: str) -> None:
    control = {"kind": "canny", "video": "in.mp4", "scale": 1.0, field: value}
    for controls in ([control], [control, {"kind": "depth", "video": "in.mp4"}], value):
        with suppress(InputError):
            recorded.recorded_request({**SETTINGS, "settings_version": 1, "control": controls})


@few
@given(name=st.sampled_from(sorted(SETTINGS)), value=json_values)
def test_any_value_of_a_setting_is_read_or_refused(name: str, value: Any) -> None:
    with suppress(InputError):
        recorded.recorded_request({**SETTINGS, name: value})


@few
@given(value=json_values)
def test_any_label_is_inspected(tmp_path: Path, value: Any) -> None:
    settings = {"a setting": value, "prompt": value}
    fields = {"frames": value, "height": 16, "width": 16, "fps": 4.0, "settings": settings}
    for label in (value, fields, {**fields, "frames": 1}, {**fields, "frames": 1, "fps": value}):
        path = write_label(tmp_path / "label.png", label)
        metadata = read_video_metadata(path)
        assert kg.open_video(path).frames.shape == (1, 16, 16, 3)
        if metadata is not None:
            json.dumps(metadata.settings)
            text = terminal.escape_control(str(metadata.settings))
            assert not terminal.CONTROL.search(text)


@few
@given(text=st.text() | st.binary())
def test_any_text_is_json_or_refused(text: str | bytes) -> None:
    with suppress(InputError):
        parse_json(text, "the text")


@pytest.mark.parametrize("text", ["NaN", "1e999", "[" * 10_000, "9" * 5000, '"\\ud800"', '{"a": -Infinity}'])
def test_json_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_json(text, "x.json")


def test_a_label_that_is_no_metadata_leaves_the_image(tmp_path: Path) -> None:
    label = {"frames": 1, "height": 16, "width": 16, "fps": 1e300, "settings": {}}
    for text in (label, {**label, "fps": 5e-324}, {**label, "fps": True}, "[" * 10_000, {**label, "fps": 10**400}):
        assert np.shape(kg.open_video(write_label(tmp_path / "label.png", text)).frames) == (1, 16, 16, 3)


def test_the_home_of_an_unknown_user_is_a_path_that_is_not_there(run: Run, tmp_path: Path) -> None:
    path = write_settings(tmp_path / "sly.png", {"image": "~no-such-user/photo.png", "first_frame": "pinned"})
    with pytest.raises(InputError, match="there is no image ~no-such-user"):
        kg.replay(path, trust=True)
    result = run("inspect", "~no-such-user/fish.mp4")
    assert result.status == 2 and "there is no file ~no-such-user/fish.mp4" in result.err
