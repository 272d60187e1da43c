"""Odd machines: locales, consoles, pipes, paths, and folders that cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from cases import tiny_models
from cases.program import SMALL, SPAWN, run, spawn
from cases.small_media import movie, moving_square
from cases.tiny_models import ldm_vae
from safetensors.torch import save_file

import kineograph as kg
from kineograph.cli import OutputStream

CHINESE = "一.mp4"
SOAK = pytest.mark.soak  # seconds for a new process, in a way that resembles another


@pytest.fixture
def desk(work, sd_folder, monkeypatch) -> Path:
    """The current folder, which holds a model, m, and a video."""
    monkeypatch.chdir(work)
    (work / "m").symlink_to(sd_folder)
    settings = {"prompt": "一条鱼 🐟", "seed": 1}
    kg.Video(np.zeros((2, 16, 16, 3), np.uint8), fps=4, settings=settings).save(work / CHINESE)
    return work


def generation(output: str) -> list[object]:
    return ["generate", "a cat", "--model", "m", *SMALL, "-o", output]


# --- paths and widths


@pytest.mark.slow
@pytest.mark.parametrize("output", ["my folder/a b ü.mp4", r"C:\videos\x.mp4"])
def test_output_path_may_have_spaces_and_backslashes(desk, output) -> None:
    """Case 54."""
    said = run(*generation(output))
    assert said.status == 0 and not said.crashed


def test_lora_that_is_not_there_is_refused_though_its_name_has_an_equals_sign(desk) -> None:
    """Case 54."""
    said = run(*generation("x.mp4"), "--lora", "my=lora.safetensors")
    assert said.status == 2 and not said.crashed


def test_output_that_is_a_dangling_symlink_is_refused(desk) -> None:
    """Case 54."""
    (desk / "x.mp4").symlink_to("nowhere.mp4")
    said = run(*generation("x.mp4"))
    assert said.status == 2 and not said.crashed


def test_model_may_be_a_symlink(desk) -> None:
    """Case 54."""
    assert (desk / "m").is_symlink()
    assert run(*generation("x.mp4")).status == 0


@pytest.mark.parametrize(("command", "columns"), [(["inspect", CHINESE], "20"), (["generate", "--help"], "1")])
def test_terminal_may_be_narrow(desk, command, columns) -> None:
    """Case 54 (rich#3400)."""
    said = run(*command, env={"COLUMNS": columns})
    assert said.status == 0 and not said.crashed


# --- environment variables

C_LOCALE = {"LC_ALL": "C", "LANG": "C"}
ASCII_FILE_NAMES = C_LOCALE | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "env", "without"),
    [
        pytest.param(
            ["generate", "一条鱼 🐟", "--model", "m", *SMALL, "-o", "鱼.mp4"],
            C_LOCALE,
            "PYTHONUTF8",
            id="generate in C",
        ),
        pytest.param(["inspect", CHINESE], ASCII_FILE_NAMES, "", id="inspect in C"),
        pytest.param(["inspect", CHINESE], {"PYTHONIOENCODING": "cp1252"}, "", id="inspect in cp1252"),
        pytest.param(["inspect", CHINESE], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, "", id="no colour"),
        pytest.param(["models"], {"NO_COLOR": "1", "TERM": "dumb"}, "", id="dumb terminal"),
        pytest.param(["doctor"], {"TERM": "dumb"}, "", id="doctor, dumb terminal", marks=SOAK),
        pytest.param(generation("x.mp4"), {"TMPDIR": "/nonexistent"}, "HOME", id="no TMPDIR, no HOME"),
        pytest.param(generation("x.mp4"), {}, "HOME", id="no HOME", marks=SOAK),
    ],
)
def test_environment_may_be_odd(desk, command, env, without) -> None:
    """Case 54 (rich#212, B2#1071, rich#3400)."""
    said = spawn(*command, cwd=desk, env=env, without=without)
    assert said.status == 0 and not said.crashed


@pytest.mark.slow
def test_vae_file_loads_without_a_temporary_folder(desk) -> None:
    """Case 55: TMPDIR on a full or read-only disk, where a VAE's configuration was written."""
    save_file(ldm_vae(tiny_models.sd().vae), desk / "vae.safetensors")
    said = spawn(*generation("x.mp4"), "--vae", "vae.safetensors", cwd=desk, env={"TMPDIR": "/proc"})
    assert said.status in (0, 2) and not said.crashed


# --- pipes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "read"),
    [
        pytest.param(command, read, id=f"{' '.join(command)}-{said}", marks=marks)
        for command, usual in (
            (["models", "--json"], (1,)),
            (["inspect", CHINESE], (1, 0)),
            (["generate", "--help"], (0,)),
            (["doctor"], ()),
        )
        for read, said in ((1, "after a byte"), (0, "at once"))
        for marks in [() if read in usual else SOAK]
    ],
)
def test_reader_of_a_pipe_may_leave(desk, command, read) -> None:
    """Case 54 (B2#1071): `kineograph models --json | head -c 1`."""
    with subprocess.Popen([*SPAWN, *command], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.read(read)
        program.stdout.close()
        errors = program.stderr.read().decode()
    assert not [word for word in ("Traceback", "BrokenPipe", "Exception ignored") if word in errors]


@pytest.mark.slow
def test_stdout_may_be_closed(desk) -> None:
    """Case 54: a service that starts the program without one."""
    closed = ["sh", "-c", 'exec "$@" 2>&1 >&-', "sh", *SPAWN, *map(str, generation("x.mp4"))]
    ended = subprocess.run(closed, cwd=desk, capture_output=True, check=False)
    assert ended.returncode == 0 and b"Traceback" not in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "status"),
    [
        pytest.param('"$@" 2>&1 | head -c 0; exit ${PIPESTATUS[0]}', 0, id="nobody reads"),
        pytest.param('PYTHONUNBUFFERED=1 "$@" | head -c 0; exit ${PIPESTATUS[0]}', 0, id="unbuffered", marks=SOAK),
        pytest.param('"$@" 2>/dev/full', 0, id="messages cannot be written", marks=SOAK),
        pytest.param('"$@" >/dev/full', 2, id="the path cannot be written"),
        pytest.param('"$@" <&- >&- 2>&-', 0, id="all are closed", marks=SOAK),
    ],
)
def test_video_is_there_whatever_becomes_of_the_output(desk, streams, status) -> None:
    """A relative of case 54."""
    command = ["bash", "-c", streams, "bash", *SPAWN, *map(str, generation("x.mp4"))]
    ended = subprocess.run(command, cwd=desk, capture_output=True, check=False)
    assert ended.returncode == status and b"Traceback" not in ended.stderr
    assert len(kg.open_video(desk / "x.mp4")) == 2


def test_what_is_printed_to_a_reader_that_left_goes_nowhere() -> None:
    """A relative of case 54, without a command."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as raw:
        stream = OutputStream(raw, "utf-8", line_buffering=True)
        assert stream.write("a line\n") == 7 and stream.lost.errno == errno.EPIPE
        stream.write("another\n")
        stream.flush()


# --- temporary folders


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc", *(pytest.param(each, marks=SOAK) for each in ("/nonexistent", "a file"))])
def test_curation_needs_no_temporary_folder(desk, folder) -> None:
    """A relative of case 55."""
    (desk / "a file").touch()
    (desk / "s").mkdir()
    movie(desk / "s" / "a.mp4", moving_square(60))
    settings = {"sources": ["s"], "output": "out", "run": "alone", "shorter_side": 64, "cuts": {"shortest": 0.2}}
    (desk / "d.yaml").write_text(yaml.safe_dump(settings))
    said = spawn("curate", "d.yaml", cwd=desk, env={"TMPDIR": folder})
    assert said.status == 0 and not said.crashed, said.text
