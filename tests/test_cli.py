"""The command line, as a person meets it: what it prints where, its exit status, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from models.conftest import sd_folder  # noqa: F401

from kineograph.cli import main, terminal
from kineograph.media import codecs
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video, open_video
from kineograph_lab.studies.report import Claim, Part, Report

FEW = ["--num-frames", "2", "--steps", "2", "--device", "cpu"]


class Said(NamedTuple):
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `kineograph` with these arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kineograph", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Said(int(end.value.code or 0), *capsys.readouterr())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores Ctrl-C
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def model(sd_folder: Path) -> list[object]:  # noqa: F811
    return ["--model", sd_folder, *FEW]


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def clip(path: Path) -> Path:
    return Video(np.full((3, 16, 16, 3), 90, np.uint8), fps=4, settings={"prompt": "a fish", "seed": 1}).save(path)


def test_help_and_version_need_no_torch() -> None:
    program = """
import sys
from kineograph.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "huggingface_hub"} & set(sys.modules)
    print(end.code, sorted(heavy), file=sys.stderr)
"""
    for arguments in (["--help"], ["generate", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "0 []"
        assert "kineograph" in done.stdout


def test_generate_prints_the_path_and_the_seed(run: Run, model: list, tmp_path: Path) -> None:
    said = run("generate", "a red fish", *model, "--fps", "3")
    assert said.status == 0, said.err
    (path,) = files(tmp_path)
    assert said.out == f"{path}\n"
    settings = read_settings(tmp_path / path)
    assert path == f"outputs/a-red-fish_{settings['seed']}.mp4"
    assert f"seed {settings['seed']}\n" in said.err
    assert "2 frames of 16 x 16" in said.err
    assert said.err.count("\n") == 3  # and nothing from the libraries
    assert settings["fps"] == 3


def test_json_is_one_object_and_replay_is_identical(run: Run, model: list, tmp_path: Path) -> None:
    first = run("generate", "a red fish", *model, "-o", "fish.gif", "--seed", 7, "--json")
    told = json.loads(first.out)
    assert (first.status, told["path"], told["seed"]) == (0, "fish.gif", 7)
    again = run("replay", "fish.gif", "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out)["identical"] is True
    assert json.loads(again.out)["frames_sha256"] == told["frames_sha256"]
    assert files(tmp_path) == ["fish.gif", "outputs/a-red-fish_7.mp4"]


def test_replay_with_another_model_says_what_differs(run: Run, model: list, sd_folder: Path) -> None:  # noqa: F811
    import torch
    from diffusers import StableDiffusionPipeline

    run("generate", "a red fish", *model, "-o", "fish.webp")
    other = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None, local_files_only=True)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.1)
    other.save_pretrained("other")
    said = run("replay", "fish.webp", "--model", "other", "--device", "cpu")
    assert said.status == 1
    assert "not identical" in said.err
    assert "the hash of unet was" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "prompt is empty"),
        (["a fish", "--num-frames", "0"], "num_frames"),
        (["a fish", "--num-frames", "1000000"], "786 GB"),
        (["a fish", "--height", "9"], "multiples of 2"),
        (["a fish", "--sampler", "heun"], "ddim or"),
        (["a fish", "--motion", "up"], "pan:X,Y"),
        (["a fish", "--lora", "style=much"], "FILE=SCALE"),
        (["a fish", "--lora", "missing.safetensors"], "missing.safetensors"),
        (["a fish", "--device", "tpu"], "tpu"),
        (["a fish", "--dtype", "int3"], "int3"),
        (["a fish", "-o", "fish.avi"], ".mp4, .gif or .webp"),
        (["a fish", "-o", "fish.png"], "folder of pngs"),
        (["a fish", "-o", "taken.mp4"], "taken.mp4 exists already"),
        (["a fish", "-o", "taken.mp4/fish.mp4"], "taken.mp4"),
        (["a fish", "-o", "."], "folder with files in it"),
        (["a fish", "-o", "/proc/fish.mp4"], "/proc/fish.mp4"),
    ],
)
def test_what_cannot_be_is_one_clear_line(run: Run, model: list, tmp_path: Path, arguments: list, said: str) -> None:
    kept = clip(tmp_path / "taken.mp4").read_bytes()
    told = run("generate", *model, *arguments)
    assert (told.status, told.out) == (2, "")
    *_, line = told.err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "Traceback" not in told.err
    assert (tmp_path / "taken.mp4").read_bytes() == kept
    assert files(tmp_path) == ["taken.mp4"]


def test_a_missing_or_foreign_model_is_one_clear_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(b"not a checkpoint")
    for name in ("nowhere/model.safetensors", "foreign.safetensors", "."):
        told = run("generate", "a fish", "--model", name)
        assert told.status == 2
        assert told.err.strip().splitlines()[-1].startswith("error: ")


def test_overwrite_asks_for_it(run: Run, model: list, tmp_path: Path) -> None:
    clip(tmp_path / "taken.mp4")
    assert run("generate", "a red fish", *model, "-o", "taken.mp4", "--overwrite").status == 0
    assert len(open_video(tmp_path / "taken.mp4")) == 2
    assert files(tmp_path) == ["taken.mp4"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_half_way_leaves_nothing(
    run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    @contextmanager
    def counted(_: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: os.kill(os.getpid(), number) if done == total // 2 else None

    monkeypatch.setattr(terminal, "progress_bar", counted)
    said = run("generate", "a fish", *model, "-o", "fish.mp4")
    assert (said.status, said.out) == (status, "")
    assert "no half-written file is left" in said.err
    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_writing_leaves_nothing(
    run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = codecs.exact_rate

    def interrupted(fps: float) -> object:
        os.kill(os.getpid(), number)
        return whole(fps)

    monkeypatch.setattr(codecs, "exact_rate", interrupted)
    assert run("generate", "a fish", *model, "-o", "fish.mp4").status > 128
    assert files(tmp_path) == []


def test_a_full_disk_is_one_clear_line(run: Run, model: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    told = run("generate", "a fish", *model, "-o", "fish.gif")
    assert (told.status, told.out) == (2, "")
    assert "error: fish.gif: No space left on device" in told.err
    assert files(tmp_path) == []


def test_inspect_shows_settings_and_writes_a_sheet(run: Run, tmp_path: Path) -> None:
    clip(tmp_path / "fish.mp4")
    said = run("inspect", "fish.mp4", "--sheet", "sheet.png")
    assert said.status == 0
    assert "3 frames of 16 x 16, 4 a second" in said.err
    assert "a fish" in said.err
    assert read_settings(tmp_path / "sheet.png") == {"prompt": "a fish", "seed": 1}
    assert json.loads(run("inspect", "fish.mp4", "--json").out)["settings"]["prompt"] == "a fish"
    assert run("inspect", "fish.mp4", "--sheet", "sheet.png").status == 2


def test_inspect_shows_foreign_videos_and_drives_no_terminal(run: Run, tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    Video(frames).save(tmp_path / "plain.mp4")
    assert "no settings" in run("inspect", "plain.mp4").err
    Video(frames, settings={"prompt": "\x1b[2J[red]"}).save(tmp_path / "sly.mp4")
    said = run("inspect", "sly.mp4")
    assert "\x1b" not in said.err
    assert "[red]" in said.err


@pytest.mark.parametrize("verb", ["inspect", "replay"])
def test_a_file_that_is_none_is_one_clear_line(run: Run, tmp_path: Path, verb: str) -> None:
    (tmp_path / "words.mp4").write_text("words")
    for name, word in (("nothing.mp4", "no file"), ("words.mp4", "damaged")):
        told = run(verb, name)
        assert told.status == 2
        assert word in told.err
        assert told.err.startswith("error: ")


def test_replay_without_settings(run: Run, tmp_path: Path) -> None:
    clip(tmp_path / "fish.mp4")
    assert "not of a video" in run("replay", "fish.mp4").err


def test_models_and_doctor_answer_programs(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert isinstance(json.loads(run("models", "--json").out)["models"], list)
    told = run("doctor", "--json")
    found = {each["what"]: each for each in json.loads(told.out)["findings"]}
    assert {"torch", "device", "mp4", "pocket model", "output"} <= set(found)
    assert found["mp4"]["to_do"] == ""
    assert told.status == (0 if json.loads(told.out)["well"] else 1)
    for verb in ("models", "doctor"):
        assert run(verb).out == ""


def test_reproduce_states_each_claim(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [Claim("identity", 0.97, 0.01, 10, ">= 0.95", True), Claim("motion", 0.5, 0.1, 10, "<= 0.15", False)]
    asked: dict = {}

    def measured(
        paper: str, *_: object, cases: int, steps: int | None, out: Path, on_video: Callable[[int, int], None]
    ) -> Report:
        asked.update(paper=paper, cases=cases, out=out)
        on_video(4, 4)
        return Report(paper, {}, [Part("all", claims, {}, {})])

    monkeypatch.setattr("kineograph.models.loading.load.load", lambda model: None)
    monkeypatch.setattr("kineograph_lab.studies.judges.pocket_witnesses", lambda: None)
    monkeypatch.setattr("kineograph_lab.studies.reproduce.reproduce", measured)
    said = run("reproduce", "text2video-zero", "--quick", "--out", "results")
    assert (said.status, said.out) == (0, "results/text2video-zero.md\n")
    assert asked == {"paper": "text2video-zero", "cases": 10, "out": Path("results")}
    assert "holds  identity: 0.970 ± 0.010 (n = 10, >= 0.95)" in said.err
    assert "FAILS  motion" in said.err
    assert json.loads(run("reproduce", "text2video-zero", "--json").out)["claims"][0]["holds"] is True


def test_bench_refuses_what_it_cannot_compare(run: Run) -> None:
    assert "expected pocket or sd15" in run("bench", "flux").err
    assert run("bench", "--steps", "1").status == 2


def test_an_error_of_ours_keeps_its_traceback(run: Run, model: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(np, "stack", broken)  # raised here, not by the library
    monkeypatch.setattr(Video, "save", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("generate", "a fish", *model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--control", "canny"], "a control is given as KIND=VIDEO"),
        (["--control", "canny=a.mp4", "--control", "canny=b.mp4"], "a control is given twice for canny"),
        (["--control", "canny=nowhere.mp4"], "there is no file nowhere.mp4"),
        (["--control", "canny=film", "--num-frames", "9"], "film has 3 frames, and 9 are asked for"),
        (["--control", "canny=film", "--smooth-background", "0.6"], "leave one of them out"),
        (["--control", "canny-map=film"], "no ControlNet for 'canny': load it with one"),
        (["--control", "canny-map=film", "--controlnet", "canny=nowhere/net"], "nowhere/net is neither a path here"),
        (["--controlnet", "folder"], "a ControlNet is given as KIND=FOLDER"),
    ],
)
def test_what_cannot_guide_is_one_clear_line(run: Run, model: list, tmp_path: Path, arguments: list, said: str) -> None:
    clip(tmp_path / "film")
    got = run("generate", "a fish", "--model", model[1], "--steps", "2", *arguments)
    assert got.status == 2
    assert said in got.err and "Traceback" not in got.err
    assert not [file for file in files(tmp_path) if file.startswith("outputs")]


def test_edit_takes_a_video_and_a_model_that_edits(run: Run, model: list, tmp_path: Path) -> None:
    from models.conftest import sd

    clip(tmp_path / "film")
    sd(in_channels=8).save_pretrained(tmp_path / "editor")
    said = run("edit", "film", "make it snow", "--model", "editor", "--steps", "2", "-o", "snow.gif")
    assert (said.status, said.out) == (0, "snow.gif\n"), said.err
    assert read_settings(tmp_path / "snow.gif")["video"] == "film"
    assert run("replay", "snow.gif").status == 0
    wrong = run("edit", "film", "make it snow", "--model", model[1], "--steps", "2")
    assert wrong.status == 2 and "generates from text alone" in wrong.err
    assert run("edit", "nowhere.mp4", "make it snow").status == 2
    alone = run("edit", "make it snow")
    assert alone.status == 2 and "give a video and what to change in it" in alone.err
