"""`kineograph customise`: what it says where, what it leaves, going on, and what it refuses."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
from pathlib import Path

import pytest
import torch
from command import Run
from models.conftest import sd
from tiny_video_customising import pictures, save_waves

import kineograph as kg
from kineograph.training import latest_checkpoint
from kineograph.training.customise import PhaseProgress

command = importlib.import_module("kineograph.cli.customise")  # the package has a function of that name

FEW = [
    "image.prior_pictures=2", "image.training.max_train_steps=2", "image.drawing.num_inference_steps=2", "stills=2",
    "natural_videos=2", "num_frames=3", "drawing.num_inference_steps=2", "training.max_train_steps=2",
    "motion_training.max_train_steps=2", "image.training.train_batch_size=1", "training.train_batch_size=1",
    "motion_training.train_batch_size=1",
]  # fmt: skip
SET = [word for each in FEW for word in ("--set", each)]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_waves(kg.load(sd(), device="cpu", dtype="float32"), tmp_path_factory.mktemp("models") / "waves")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sea"
    sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("few"))


def asked(model: Path, photos: Path, *more: object) -> list[object]:
    torch.set_num_threads(1)
    return ["customise", photos, "--model", model, "--device", "cpu", "--dtype", "float32", *SET, *more]


@pytest.mark.slow
def test_one_file_is_written_and_its_use_is_printed(run: Run, waves: Path, photos: Path, tmp_path: Path) -> None:
    result = run(*asked(waves, photos, "--subject", "sks dog", "-o", "dog.safetensors"))
    assert (result.status, result.out) == (0, "dog.safetensors\n"), result.err
    lines = [line for line in result.err.splitlines() if line.startswith("kineograph generate")]
    assert len(lines) == 1 and lines[0].endswith(f"--model {waves} --adapter dog.safetensors")
    assert "--motion-adapter dog/motion_adapter.safetensors" in result.err
    for what in command.PHASES.values():
        assert what in result.err
    assert {file.suffix for file in (tmp_path / "dog" / "previews").iterdir()} == {".png", ".mp4"}
    drawn = run(*shlex.split(lines[0])[1:], "--steps", 2, "-n", 2, "--device", "cpu", "-o", "dog.gif")
    assert (drawn.status, drawn.out) == (0, "dog.gif\n"), drawn.err
    again = run(*asked(waves, photos, "--subject", "sks dog", "-o", "dog.safetensors", "--json"))
    summary = json.loads(again.out)
    assert summary["path"] == "dog.safetensors" and summary["bytes"] == (tmp_path / "dog.safetensors").stat().st_size
    assert "step" not in again.err, "nothing is done twice"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_dry_run_prints_the_phases_and_writes_nothing(
    run: Run,
    image: Path,
    waves: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    more = ["--motion-module", waves, "--style", "ripples", "--dry-run"]
    result = run(*asked(image, photos, *more))
    assert result.status == 0, result.err
    assert "the image network learns 'ripples style' from 3 images, 2 steps of 2" in result.err
    assert "generates 2 videos of 3 frames" in result.err and ", 2 steps of 1 videos" in result.err
    assert (
        "in all, on this machine" in result.err
        and "prior: generates 2 images such as 'a picture moving to the left'" in result.err
    )
    summary = json.loads(run(*asked(image, photos, *more, "--json")).out)
    phases = ["prior", "training", "stills", "natural", "motion_adapter", "spatial_adapter"]
    assert [each["phase"] for each in summary["phases"]] == phases
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_motion_adapter_only(run: Run, waves: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    few = ["customise", "--motion-adapter-only", "--model", waves, "--device", "cpu", *SET, "-o", "still.safetensors"]
    summary = run(*few, "--dry-run")
    assert summary.status == 0 and "spatial_adapter" not in summary.err and not list(tmp_path.iterdir())
    result = run(*few)
    assert (result.status, result.out) == (0, "still.safetensors\n"), result.err
    assert f"use it by --model {waves} --motion-adapter still.safetensors" in result.err
    assert kg.load(waves, motion_adapter=tmp_path / "still.safetensors").net.motion_adapter is not None


def test_ctrl_c_stops_after_a_step_and_leaves_no_file(
    run: Run, waves: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = command._print_progress

    def interrupted(reached: PhaseProgress) -> None:
        show(reached)
        if (reached.phase, reached.done) == ("training", 1):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "_print_progress", interrupted)
    result = run(*asked(waves, photos, "--subject", "sks dog", "-o", "dog.safetensors"))
    assert result.status == 130 and "the same command resumes from here" in result.err
    assert not (tmp_path / "dog.safetensors").exists()
    assert latest_checkpoint(tmp_path / "dog" / "image" / "training") is not None


@pytest.mark.slow
def test_invalid_options_are_refused_in_one_line(
    run: Run, waves: Path, image: Path, photos: Path, tmp_path: Path
) -> None:
    def refused(*words: object) -> str:
        result = run(*words)
        assert result.status == 2 and result.out == ""
        return result.err

    (tmp_path / "none").mkdir()
    subject = ["--subject", "sks dog"]
    assert "give either a folder of images or --motion-adapter-only" in refused("customise", "--model", waves)
    assert "has to be a .safetensors file: name it dog.safetensors" in refused(
        *asked(waves, photos, *subject, "-o", "dog.pt")
    )
    assert "there is no folder" in refused("customise", tmp_path / "nowhere", "--model", "no model either", *subject)
    assert ", and 3 at least are needed" in refused(*asked(waves, tmp_path / "none", *subject))
    assert "expected a subject or a style, got neither" in refused(*asked(waves, photos))
    assert "load it with motion modules (--motion-module)" in refused(*asked(image, photos, *subject))
    assert "spatial: without it" in refused(*asked(waves, photos, *subject, "--set", "spatial=null"))
    assert "did you mean stills?" in refused(*asked(waves, photos, *subject, "--set", "still=3"))
    assert "the preview does not contain 'sks dog'" in refused(*asked(waves, photos, *subject, "--preview", "a dog"))
    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    assert "exists already" in refused(*asked(waves, photos, *subject, "-o", "mine.safetensors"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.safetensors", "none"]
