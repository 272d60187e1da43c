"""The command line `kineograph`, run in this process or in another."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from kineograph.cli import main

SMALL = ("-n", 2, "--steps", 2, "--height", 16, "--width", 16)
SPAWN = (sys.executable, "-m", "kineograph")


class Said(NamedTuple):
    """An exit status, and what was printed on stdout and stderr, in order."""

    status: int
    text: str

    @property
    def crashed(self) -> bool:
        return "Traceback" in self.text


def run(*arguments: object, encoding: str = "utf-8", env: Mapping[str, str] | None = None) -> Said:
    """Run `kineograph` in this process; an error that it does not handle becomes a traceback and status 1.

    encoding: of the console, as PYTHONIOENCODING sets it.
    """
    printed = io.BytesIO()
    out, err = (
        io.TextIOWrapper(printed, encoding, errors, write_through=True) for errors in ("strict", "backslashreplace")
    )
    status = 0
    with (
        mock.patch.object(sys, "argv", ["kineograph", *map(str, arguments)]),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
        mock.patch.dict(os.environ, {"COLUMNS": "200", **(env or {})}),
        _signals_restored(),
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            status = 1
    return Said(status, printed.getvalue().decode(encoding, "replace"))


def spawn(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None, without: str = "") -> Said:
    """Run `kineograph` in another process, with these environment variables and without one."""
    inherited = {name: value for name, value in os.environ.items() if name != without}
    ended = subprocess.run(
        [*SPAWN, *map(str, arguments)], cwd=cwd, env=inherited | dict(env or {}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return Said(ended.returncode, ended.stdout.decode(errors="replace"))


@contextmanager
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
