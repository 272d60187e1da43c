"""Atomic writes: leftovers of killed processes, modes, and the errors of libraries that cannot write."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kineograph.media.files import append_text, remove_leftovers, replace_atomically, write_new

WRITE_AND_WAIT = """
import sys
from pathlib import Path
from kineograph.media.files import replace_atomically
with replace_atomically(Path(sys.argv[1])) as part:
    part.write_text("half of")
    print("begun", flush=True)
    sys.stdin.read()
    part.write_text("all")
"""


def begin_to_write(path: Path) -> subprocess.Popen[str]:
    """Start a process that has written half of a file, and ends it when its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit of 20 kB a file, in place of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_next_write_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    others = [".notes.part", "film.part", ".0123456789ab.part.mp4"]
    for name in others:
        (tmp_path / name).touch()
    killed, living = begin_to_write(tmp_path / "a"), begin_to_write(tmp_path / "b")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(names(tmp_path)) == len(others) + 2
    with write_new(tmp_path / "c") as part:
        part.touch()
    assert len(names(tmp_path)) == len(others) + 2
    living.communicate()
    assert (tmp_path / "b").read_text() == "all"
    assert names(tmp_path) == sorted([*others, "b", "c"])


def test_folder_that_a_killed_process_was_replacing_is_put_back(tmp_path: Path) -> None:
    leftover = tmp_path / ".0123456789ab.part"
    (leftover / ".replaced" / "model").mkdir(parents=True)
    (leftover / ".replaced" / "model" / "weights").write_text("whole")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "whole"


def test_leftover_that_is_a_link_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / ".0123456789ab.part").symlink_to(tmp_path / "folder")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".0123456789ab.part", "folder"]


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    with replace_atomically(tmp_path / "folder") as part:
        part.mkdir()
        save_file({"x": torch.zeros(2)}, part / "x.safetensors")
    os.umask(before)
    assert (tmp_path / "folder" / "x.safetensors").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["x.safetensors"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file({"x": torch.zeros(10_000)}, path),
        lambda path: torch.save({"x": torch.zeros(10_000)}, path),
        lambda path: path.write_bytes(bytes(30_000)),
    ],
    ids=["safetensors", "torch", "bytes"],
)
def test_file_that_finds_no_room_is_named(tmp_path: Path, small_files: None, write: Callable[[Path], None]) -> None:
    with pytest.raises(OSError, match=r"big\.file") as error, replace_atomically(tmp_path / "big.file") as part:
        write(part)
    assert error.value.filename == str(tmp_path / "big.file") and error.value.errno
    assert names(tmp_path) == []


def test_text_is_appended_whole_or_not_at_all(tmp_path: Path, small_files: None) -> None:
    log = tmp_path / "log.jsonl"
    append_text(log, "first\n")
    with pytest.raises(OSError, match=r"log\.jsonl"):
        append_text(log, "x" * 30_000)
    assert log.read_text() == "first\n"
    append_text(log, "second\n")
    assert log.read_text() == "first\nsecond\n"


def test_program_errors_inside_a_write_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"), write_new(tmp_path / "a"):
        raise RuntimeError("a fault of ours")
    assert names(tmp_path) == []
