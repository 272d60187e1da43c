"""The command line `kineograph`, run in this process: its output, its exit status, and the files it leaves behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kineograph.cli import main

FEW = ["--steps", "2", "--device", "cpu"]


class Result(NamedTuple):
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Yield a function that runs `kineograph` with its arguments in an empty folder: the fixture `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["kineograph", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores Ctrl-C
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def files(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, relative to it."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
