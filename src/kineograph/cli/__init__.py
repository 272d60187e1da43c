"""Command line of Kineograph.

`commands.py` has the commands, `options.py` makes parameters from the declared options, `run.py` has the steps of
commands that generate a video, `output.py` those of its file, `terminal.py` messages, progress and errors. Here only
quick modules of the standard library are imported at the top: until `main` runs, Ctrl-C shows a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOPPED = 130  # exit status


def main() -> None:
    """Run the program `kineograph`."""
    with _exit_at_ctrl_c():
        open_streams()
        from kineograph.cli import terminal
        from kineograph.cli.commands import app
    terminal.exit_on_sigterm()
    terminal.quiet_libraries()
    terminal.escape_unknown_characters()
    try:
        with terminal.errors_as_messages():
            app(prog_name="kineograph")
    finally:
        if lost := lost_output():
            terminal.exit_with_error(f"stdout cannot be written ({lost.strerror}): files that were asked for are whole")


@contextmanager
def _exit_at_ctrl_c() -> Iterator[None]:
    """End the program at once at Ctrl-C, while nothing has been written: an exception would show half-done imports."""

    def end(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(2, b"stopped\n")
        os._exit(STOPPED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class OutputStream(io.TextIOWrapper):
    """A standard stream that is lost without an exception: a reader that leaves does not end a generation.

    lost: the error, if there was one; what is printed after it goes nowhere.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_streams() -> None:
    """Open the standard streams that are closed, whose numbers other files would get, and let output be lost."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    sys.stdout = _open_stream(sys.stdout, sys.__stdout__)
    sys.stderr = _open_stream(sys.stderr, sys.__stderr__)


def _open_stream(stream: Any, original: Any) -> Any:
    if stream is None:
        return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):  # a test's or a notebook's
        return stream
    return OutputStream(
        stream.buffer, stream.encoding, "backslashreplace",
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def lost_output() -> OSError | None:
    """Flush the standard streams; return the error of stdout, unless its reader has left."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, OutputStream) else None
    return None if lost is None or lost.errno == errno.EPIPE else lost
