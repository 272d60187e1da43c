"""The command line as a user meets it: output, exit status, and the files it leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command import FEW, Run, files
from models.conftest import sd_folder  # noqa: F401

from kineograph.cli import terminal
from kineograph.media import codecs
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video, open_video

HELP = """
import sys
from kineograph.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, *sorted(sys.modules), file=sys.stderr)
"""
LIBRARIES = {"diffusers", "transformers", "huggingface_hub", "peft", "accelerate", "cv2", "av"}
DECLARATIONS = {"torch", "numpy", "PIL", "pydantic", "kineograph.request", "kineograph.options", "kineograph.methods"}


@pytest.mark.parametrize(
    ("arguments", "absent", "limit"),
    [
        (["--help"], LIBRARIES | DECLARATIONS, 1.5),  # seconds of CPU; 0.3 on an idle machine
        (["--version"], LIBRARIES | DECLARATIONS, 1.5),
        (["generate", "--help"], LIBRARIES, 6),  # 1.9, of which torch takes 1.5
    ],
    ids=["help", "version", "generate"],
)
def test_help_and_version_are_fast(arguments: list[str], absent: set[str], limit: float) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, *modules = done.stderr.split()
    assert (status, absent & set(modules)) == ("0", set())
    assert "kineograph" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < limit


# The library alone: no laboratory, no OpenCV, no scipy.
ALONE = """
import sys
from importlib import metadata
for name in ("cv2", "scipy", "kineograph_lab"):
    sys.modules[name] = None
from kineograph import plugins
plugins.entry_points = lambda group: [
    each for each in metadata.entry_points(group=group) if not each.value.startswith("kineograph_lab")
]
from kineograph.cli import main
main()
"""


def run_alone(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_first_video_without_laboratory_and_opencv(tmp_path: Path) -> None:
    result = run_alone(tmp_path, "generate", "a red fish swimming over the sea", "-n", "2", *FEW, "-o", "fish.mp4")
    assert (result.returncode, result.stdout) == (0, "fish.mp4\n"), result.stderr
    assert len(open_video(tmp_path / "fish.mp4")) == 2


def test_commands_of_the_laboratory_say_what_to_install(tmp_path: Path) -> None:
    result = run_alone(tmp_path, "reproduce", "vidrd")
    assert result.returncode == 2 and result.stderr == (
        "error: 'reproduce' comes with Kineograph's laboratory, which is not installed: "
        "pip install kineograph-lab (in a clone: pip install -e lab)\n"
    )


@pytest.fixture
def model(sd_folder: Path) -> list[object]:  # noqa: F811
    return ["--model", sd_folder, "--num-frames", "2", *FEW]


def clip(path: Path) -> Path:
    return Video(np.full((3, 16, 16, 3), 90, np.uint8), fps=4, settings={"prompt": "a fish", "seed": 1}).save(path)


def test_generate_prints_the_path_and_the_seed(run: Run, model: list, tmp_path: Path) -> None:
    result = run("generate", "a red fish", *model, "--fps", "3")
    assert result.status == 0, result.err
    (path,) = files(tmp_path)
    assert result.out == f"{path}\n"
    settings = read_settings(tmp_path / path)
    assert path == f"outputs/a-red-fish_{settings['seed']}.mp4"
    assert f"seed {settings['seed']}\n" in result.err
    assert "2 frames of 16 x 16" in result.err
    assert result.err.count("\n") == 4  # with the camera motion, and nothing from the libraries
    assert settings["fps"] == 3


def test_json_output_and_identical_replay(run: Run, model: list, tmp_path: Path) -> None:
    first = run("generate", "a red fish", *model, "-o", "fish.gif", "--seed", 7, "--json")
    settings = json.loads(first.out)
    assert (first.status, settings["path"], settings["seed"]) == (0, "fish.gif", 7)
    again = run("replay", "fish.gif", "--yes", "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out)["identical"] is True
    assert json.loads(again.out)["frames_sha256"] == settings["frames_sha256"]
    assert files(tmp_path) == ["fish.gif", "outputs/a-red-fish_7.mp4"]


@pytest.mark.slow
def test_replay_with_another_model_names_the_differences(run: Run, model: list, sd_folder: Path) -> None:  # noqa: F811
    import torch
    from diffusers import StableDiffusionPipeline

    run("generate", "a red fish", *model, "-o", "fish.webp")
    other = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None, local_files_only=True)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.1)
    other.save_pretrained("other")
    result = run("replay", "fish.webp", "--model", "other", "--device", "cpu")
    assert result.status == 1
    assert "not identical" in result.err
    assert "the hash of unet was" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "prompt is empty"),
        (["a fish", "--num-frames", "0"], "--num-frames is"),
        (["a fish", "--num-frames", "1000000"], "--num-frames is a whole number from 1 to 4096, not 1000000"),
        (["a fish", "--height", "9"], "multiples of 2"),
        (["a fish", "--sampler", "huen"], "ddim or"),
        (["a fish", "--camera", "up"], "pan:X,Y"),
        (["a fish", "--lora", "style=much"], "FILE=SCALE"),
        (["a fish", "--lora", "missing.safetensors"], "missing.safetensors"),
        (["a fish", "--device", "tpu"], "tpu"),
        (["a fish", "--dtype", "int3"], "int3"),
        (["a fish", "-o", "fish.avi"], ".mp4, .webm, .gif or .webp"),
        (["a fish", "-o", "fish.png"], "folder of pngs"),
        (["a fish", "-o", "taken.mp4"], "taken.mp4 exists already"),
        (["a fish", "-o", "taken.mp4/fish.mp4"], "taken.mp4"),
        (["a fish", "-o", "."], "folder with files in it"),
        (["a fish", "-o", "/proc/fish.mp4"], "/proc/fish.mp4"),
    ],
)
def test_invalid_options_are_one_clear_line(
    run: Run, model: list, tmp_path: Path, arguments: list, message: str
) -> None:
    kept = clip(tmp_path / "taken.mp4").read_bytes()
    result = run("generate", *model, *arguments)
    assert (result.status, result.out) == (2, "")
    *_, line = result.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in result.err
    assert (tmp_path / "taken.mp4").read_bytes() == kept
    assert files(tmp_path) == ["taken.mp4"]


def test_missing_or_damaged_models_are_one_clear_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(b"not a checkpoint")
    for name in ("nowhere/model.safetensors", "foreign.safetensors", "."):
        result = run("generate", "a fish", "--model", name)
        assert result.status == 2
        assert result.err.strip().splitlines()[-1].startswith("error: ")


def test_overwrite_replaces_a_file(run: Run, model: list, tmp_path: Path) -> None:
    clip(tmp_path / "taken.mp4")
    assert run("generate", "a red fish", *model, "-o", "taken.mp4", "--overwrite").status == 0
    assert len(open_video(tmp_path / "taken.mp4")) == 2
    assert files(tmp_path) == ["taken.mp4"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_sampling_leaves_no_file(
    run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    @contextmanager
    def progress_bar(_: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: os.kill(os.getpid(), number) if done == total // 2 else None

    monkeypatch.setattr(terminal, "progress_bar", progress_bar)
    result = run("generate", "a fish", *model, "-o", "fish.mp4")
    assert (result.status, result.out) == (status, "")
    assert "no half-written file is left" in result.err
    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_writing_leaves_no_file(
    run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = codecs.frame_rate_fraction

    def interrupted(fps: float) -> object:
        os.kill(os.getpid(), number)
        return whole(fps)

    monkeypatch.setattr(codecs, "frame_rate_fraction", interrupted)
    assert run("generate", "a fish", *model, "-o", "fish.mp4").status > 128
    assert files(tmp_path) == []


def test_a_full_disk_is_one_clear_line(run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("generate", "a fish", *model, "-o", "fish.gif")
    assert (result.status, result.out) == (2, "")
    assert "error: fish.gif: No space left on device" in result.err
    assert files(tmp_path) == []


def test_inspect_shows_settings_and_writes_a_sheet(run: Run, tmp_path: Path) -> None:
    clip(tmp_path / "fish.mp4")
    result = run("inspect", "fish.mp4", "--sheet", "sheet.png")
    assert result.status == 0
    assert "3 frames of 16 x 16, 4 a second" in result.err
    assert "a fish" in result.err
    assert read_settings(tmp_path / "sheet.png") == {"prompt": "a fish", "seed": 1}
    assert json.loads(run("inspect", "fish.mp4", "--json").out)["settings"]["prompt"] == "a fish"
    assert run("inspect", "fish.mp4", "--sheet", "sheet.png").status == 2


def test_inspect_escapes_control_characters(run: Run, tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    Video(frames).save(tmp_path / "plain.mp4")
    assert "no settings" in run("inspect", "plain.mp4").err
    Video(frames, settings={"prompt": "\x1b[2J[red]"}).save(tmp_path / "sly.mp4")
    result = run("inspect", "sly.mp4")
    assert "\x1b" not in result.err
    assert "[red]" in result.err


@pytest.mark.parametrize("verb", ["inspect", "replay"])
def test_unreadable_files_are_one_clear_line(run: Run, tmp_path: Path, verb: str) -> None:
    (tmp_path / "words.mp4").write_text("words")
    for name, word in (("nothing.mp4", "no file"), ("words.mp4", "damaged")):
        result = run(verb, name)
        assert result.status == 2
        assert word in result.err
        assert result.err.startswith("error: ")


def test_replay_needs_settings(run: Run, tmp_path: Path) -> None:
    clip(tmp_path / "fish.mp4")
    assert "not of a video" in run("replay", "fish.mp4").err


def test_models_and_doctor_print_json(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    listed = {each["name"]: each["family"] for each in json.loads(run("models", "--json").out)["models"]}
    assert listed["pocket-edit"] == "InstructPix2Pix, small" and "pocket" in listed and "pocket-fox" in listed
    assert listed["pocket-space-time"] == "Lumiere's space-time U-Net, small"  # the laboratory's, by an entry point
    result = run("doctor", "--json")
    found = {each["what"]: each for each in json.loads(result.out)["findings"]}
    assert {"torch", "device", "mp4", "pocket model", "laboratory", "output"} <= set(found)
    assert found["mp4"]["to_do"] == ""
    assert result.status == (0 if json.loads(result.out)["well"] else 1)
    for verb in ("models", "doctor"):
        assert run(verb).out == ""


def test_models_lists_the_words_that_a_model_was_trained_on(run: Run, tmp_path: Path) -> None:
    words = json.loads(run("models", "pocket-animate", "--words", "--json").out)["words"]
    assert {"red", "rising"} <= {word for phrases in words.values() for phrase in phrases for word in phrase.split()}
    assert json.loads(run("models", "--words", "--json").out)["words"] == words, "the built-in models share them"
    assert "kineograph models lists the built-in ones" in run("models", "pokcet", "--words").err
    assert f"{tmp_path} comes with no list of words" in run("models", str(tmp_path), "--words").err
    assert "kineograph models pocket --words" in run("models", "pocket").err
    (tmp_path / "vocabulary.json").write_text(json.dumps({"subjects": ["a panda"], "motions": ["surfing"]}))
    assert "a panda" in run("models", str(tmp_path), "--words").err


def test_a_bug_keeps_its_traceback(run: Run, model: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(np, "stack", broken)  # raised here, not by the library
    monkeypatch.setattr(Video, "save", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("generate", "a fish", *model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "canny"], "--control is given as KIND=VALUE"),
        (["--control", "canny=a.mp4", "--control", "canny=b.mp4"], "--control is given twice for canny"),
        (["--control", "canny=nowhere.mp4"], "there is no file nowhere.mp4"),
        (["--control", "canny=film", "--num-frames", "9"], "film has 3 frames, and 9 are asked for"),
        (["--control", "canny-map=film"], "no ControlNet for 'canny': load it with one"),
        (["--control", "canny-map=film", "--controlnet", "canny=nowhere/net"], "nowhere/net is neither a path here"),
        (["--controlnet", "folder"], "--controlnet is given as KIND=VALUE"),
    ],
)
def test_invalid_controls_are_one_clear_line(
    run: Run, model: list, tmp_path: Path, arguments: list, message: str
) -> None:
    clip(tmp_path / "film")
    result = run("generate", "a fish", "--model", model[1], "--steps", "2", *arguments)
    assert result.status == 2
    assert message in result.err and "Traceback" not in result.err
    assert not [file for file in files(tmp_path) if file.startswith("outputs")]


@pytest.mark.slow
def test_edit_takes_a_video_and_any_model(run: Run, model: list, tmp_path: Path) -> None:
    from models.conftest import sd

    clip(tmp_path / "film")
    sd(in_channels=8).save_pretrained(tmp_path / "editor")
    result = run("edit", "film", "make it snow", "--model", "editor", "--steps", "2", "-o", "snow.gif")
    assert (result.status, result.out) == (0, "snow.gif\n"), result.err
    assert read_settings(tmp_path / "snow.gif")["video"] == "film"
    assert run("replay", "snow.gif", "--yes").status == 0
    other = run("edit", "film", "a cat", "--model", model[1], "--steps", "2", "-o", "cat.gif")  # video to video
    assert other.status == 0 and read_settings(tmp_path / "cat.gif")["strength"] == 0.6
    assert run("edit", "nowhere.mp4", "make it snow").status == 2
    alone = run("edit", "make it snow")
    assert alone.status == 2 and "give a video and what to change in it" in alone.err


@pytest.mark.slow
def test_the_default_camera_motion_is_named(run: Run, model: list) -> None:
    few = ("a fish", *model, "--steps", 2, "-n", 2)
    named = run("generate", *few, "-o", "a.gif")
    assert "camera motion pan:12,12" in named.err and "--camera none turns it off" in named.err
    assert "turns it off" not in run("generate", *few, "--camera", "none", "-o", "b.gif").err
