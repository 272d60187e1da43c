"""Options of the command line: they follow from the declarations, and a run's file may hold them."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from command import FEW, Run
from models.conftest import sd_folder  # noqa: F401
from typing_extensions import TypedDict

from kineograph import plugins
from kineograph.cli import run as run_module
from kineograph.cli import terminal
from kineograph.cli.commands import COMMANDS, build_command
from kineograph.cli.options import PANELS, WITHOUT_FLAG, load_options, with_options
from kineograph.errors import InputError
from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.methods import text2video_zero
from kineograph.models.loading.options import LoadOptions
from kineograph.options import Integer, Number, Text, declared, option
from kineograph.plan import Method

FRONT_DOORS = {"generate": GenerateOptions, "animate": AnimateOptions, "edit": EditOptions}
LOADING = ("config", "prediction_type", "revision", "variant", "clip_skip")


def given_to(kind: type, *words: str) -> dict[str, Any]:
    """Return what a command with these declared options receives for these words."""
    import typer

    received: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)
    app.command()(with_options(lambda **given: received.update(given), declared(kind)))
    typer.main.get_command(app).main([*words], standalone_mode=False)
    return received


class Forms(TypedDict, total=False):
    """An option of each form."""

    text: Annotated[Text | None, option(None, "Text.")]
    count: Annotated[Integer, option(3, "Count.")]
    rate: Annotated[Number | None, option(None, "Rate.")]
    on: Annotated[bool, option(False, "Switch.")]
    texts: Annotated[tuple[Text, ...], option((), "Texts.")]
    numbers: Annotated[tuple[Number, ...], option((0.5,), "Numbers.")]


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        (Forms, [], {}),
        (Forms, ["--text", "8"], {"text": "8"}),
        (Forms, ["--count", "3", "--rate", "2"], {"count": 3, "rate": 2.0}),
        (Forms, ["--on"], {"on": True}),
        (Forms, ["--texts", "a", "--texts", "b, c"], {"texts": ["a", "b, c"]}),
        (Forms, ["--numbers", "0.9,.5"], {"numbers": (0.9, 0.5)}),
        (Forms, ["--numbers", ""], {"numbers": ()}),
        (GenerateOptions, ["--control", "canny=a=b.mp4"], {"control": {"canny": "a=b.mp4"}}),
        (GenerateOptions, ["--steps", "4", "-n", "2"], {"num_inference_steps": 4, "num_frames": 2}),
        (GenerateOptions, ["--keep-clips", "here", "--noise", "shared"], {"keep_clips": "here", "noise": "shared"}),
        (GenerateOptions, ["--prompt-at", "24=a = b", "--prompt-at", "8=c"], {"prompt_at": {"24": "a = b", "8": "c"}}),
        (LoadOptions, ["--lora", "a=0.5", "--lora", "b"], {"lora": [("a", 0.5), ("b", 1.0)]}),
        (LoadOptions, ["--textual-inversion", "a"], {"textual_inversion": ["a"]}),
        (LoadOptions, ["--controlnet", "pose=x/y"], {"controlnet": {"pose": "x/y"}}),
        (LoadOptions, ["--device", "cpu", "--vae", "x"], {"device": "cpu", "vae": "x"}),
    ],
)
def test_values_are_parsed_as_the_types_say(kind: type, words: list[str], expected: dict[str, Any]) -> None:
    assert given_to(kind, *words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-at", "a cat"], "given as FRAME=TEXT, such as 24='a blue fish', not 'a cat'"),
        (["--prompt-at", "8=a", "--prompt-at", "8=b"], "given twice for 8: one for each frame"),
        (["--control", "canny"], "given as KIND=VALUE, such as canny=..., not 'canny'"),
    ],
)
def test_values_by_name_have_a_name_and_a_value(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given_to(GenerateOptions, *words)


@pytest.mark.parametrize("verb", FRONT_DOORS)
def test_each_declared_option_has_a_flag_and_a_help_text(verb: str) -> None:
    params = {each.name: each for each in build_command(verb).params}
    for name, each in {**declared(FRONT_DOORS[verb]), **load_options()}.items():
        assert params[name].default is None
        assert params[name].rich_help_panel == ("File" if name == "config" else each.group)
        assert name == "config" or "`" in each.help or params[name].help.startswith(each.help.replace("[", r"\["))
    assert not set(WITHOUT_FLAG) & set(params)
    panels = list(dict.fromkeys(each.rich_help_panel for each in params.values() if hasattr(each, "is_flag")))
    assert panels == [each for each in PANELS if each in panels]


def test_each_command_that_loads_a_model_has_the_same_options() -> None:
    for verb in ("generate", "animate", "edit", "customise", "replay", "convert"):
        assert {*LOADING} <= {each.name for each in build_command(verb).params}
    assert "video_clip_skip" in {each.name for each in build_command("generate").params}


def test_no_option_is_declared_twice() -> None:
    """Help texts of declared options stand in no file of the command line."""
    source = "".join(re.sub(r'"\n\s*"', "", file.read_text()) for file in Path(run_module.__file__).parent.glob("*.py"))
    for each in declared(GenerateOptions, LoadOptions).values():
        assert each.help not in source


class Stamp(TypedDict, total=False):
    """Options of a method of another package."""

    stamp_size: Annotated[Integer, option(4, "Size of the stamp.", group="Stamps", ge=1)]


METHOD = Method(text2video_zero.run, (Stamp,), lambda combination: None)


def test_options_of_a_method_of_another_package_are_in_help_and_schema(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = metadata.EntryPoint("stamp", f"{__name__}:METHOD", "kineograph.methods")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: METHOD)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "kineograph.methods" else [])
    assert "--stamp-size" in run("generate", "--help").out
    assert json.loads(run("schema").out)["properties"]["stamp_size"]["readers"] == ["stamp"]
    assert "--stamp-size is a whole number at least 1, not 0" in run("generate", "a fish", "--stamp-size", 0).err


# --- the options of a run in a file


@pytest.fixture
def settings(sd_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    file = tmp_path / "run.yaml"
    file.write_text(
        f"prompt: a fish\nmodel: {sd_folder}\nnum_frames: 2\nnum_inference_steps: 2\nseed: 3\nguidance_scale: 2.5\n"
        "device: cpu\noutput: fish.gif\n"
    )
    return file


@pytest.mark.slow
def test_a_file_holds_the_options_of_a_run(run: Run, settings: Path, tmp_path: Path) -> None:
    result = run("generate", "--config", settings)
    assert (result.status, result.out) == (0, "fish.gif\n"), result.err
    made = read_settings(tmp_path / "fish.gif")
    assert (made["prompt"], made["seed"], made["guidance_scale"], made["num_frames"]) == ("a fish", 3, 2.5, 2)
    words = ("a cat", "--seed", 4, "--set", "guidance_scale=3.5", "-o", "cat.gif")
    assert run("generate", *words, "--config", settings).status == 0
    made = read_settings(tmp_path / "cat.gif")
    assert (made["prompt"], made["seed"], made["guidance_scale"], made["num_frames"]) == ("a cat", 4, 3.5, 2)


@pytest.mark.slow
def test_a_list_of_prompts_in_a_file_makes_a_video_each(run: Run, settings: Path) -> None:
    result = run("generate", "--config", settings, "--set", "prompt=[a fish, a cat]", "--set", "output=")
    assert result.out.split() == ["outputs/a-fish_3.mp4", "outputs/a-cat_4.mp4"], result.err
    refused = run("generate", "--config", settings, "--set", "prompt=[a fish, a cat]")
    assert "2 videos cannot be written to one file, fish.gif: give no --output" in refused.err


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("num_frame: 2", [], "there is no option 'num_frame': did you mean 'num_frames'?"),
        ("num_frames: two", [], "--num-frames is a whole number from 1 to 4096, not 'two'"),
        ("control: {canny: nowhere.mp4}", [], "there is no file nowhere.mp4"),
        ("", ["--set", "control.canny=nowhere.mp4"], "there is no file nowhere.mp4"),
        ("", ["--set", "num_frames"], "'num_frames' overrides nothing"),
        ("", ["--config", "other.yaml", "--config", "third.yaml"], "--config is one file of options"),
        ("", ["--config", "other.yaml"], "other.yaml cannot be read"),
        ("- 1", [], "expected settings"),
        ("model: 3", [], "model is a text, not 3"),
        ("controls: 3", [], "did you mean 'control'?"),
        (
            "video_lora: a.safetensors",
            [],
            "--video-lora: expected the video model that they belong to, by --video-model",
        ),
    ],
)
def test_invalid_files_are_one_clear_line(run: Run, tmp_path: Path, line: str, words: list[str], message: str) -> None:
    (tmp_path / "run.yaml").write_text(line)
    configs = words if "--config" in words else ["--config", "run.yaml", *words]
    result = run("generate", "a fish", *configs)
    assert result.status == 2 and message in result.err and "Traceback" not in result.err


def test_config_is_the_models_too(run: Run, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def resolve(sources: list[run_module.Source], prompts: list[str], options: dict[str, Any]) -> None:
        seen.update(sources[0].options, second=sources[1].options, seed=options["seed"])
        raise InputError("enough")

    monkeypatch.setattr(run_module, "_resolve", resolve)
    words = ("--video-model", "pocket-video", "--video-lora", "a=2", "--video-motion-module", "b")
    run("generate", "--config", settings, "--config", "some/folder", *words, "--motion-module", "c", "--clip-skip", 1)
    assert seen.pop("second") == {"device": "cpu", "lora": [("a", 2.0)], "motion_module": "b"}
    assert seen == {"device": "cpu", "config": "some/folder", "motion_module": "c", "clip_skip": 1, "seed": 3}


# --- names in messages


def test_messages_name_flags(run: Run) -> None:
    with pytest.raises(InputError) as error, terminal.flags_in_messages({"motion_module": "--motion-module"}):
        raise InputError("`motion_module` and `prompt`")
    assert str(error.value) == "--motion-module and `prompt`"
    assert terminal.without_backticks(str(error.value)) == "--motion-module and prompt"
    assert "`" not in "".join(run(verb, "--help").out for verb in COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--motion-module", "nowhere/at/all"], "there is no nowhere/at/all"),
        (["--dtype", "int3"], "int3"),
        (["--window", "9"], "--window does nothing here"),
        (["--motion-strength", "0"], "a --motion-strength other than 1 needs one: load it with --motion-adapter"),
        (["--method", "video-elevator"], "--video-model"),
    ],
)
def test_errors_name_flags(run: Run, sd_folder: Path, words: list[str], message: str) -> None:  # noqa: F811
    result = run("generate", "a fish", "--model", sd_folder, *FEW, *words)
    assert result.status == 2 and message in result.err and "`" not in result.err


def test_replay_takes_the_options_of_another_model_only_with_one(run: Run, tmp_path: Path) -> None:
    Video(np.zeros((2, 16, 16, 3), np.uint8)).save(tmp_path / "fish.mp4")
    assert "--lora: expected the model that they belong to, by --model" in run("replay", "fish.mp4", "--lora", "x").err


def test_schema_prints_json(run: Run) -> None:
    for function in ("generate", "animate", "edit", "load"):
        result = run("schema", function)
        assert result.status == 0 and json.loads(result.out)["title"] == function
    assert "the function is generate or animate or edit or load, not 'draw'" in run("schema", "draw").err
