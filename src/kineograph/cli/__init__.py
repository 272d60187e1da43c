"""Command line of Kineograph.

`commands.py` has the commands, `options.py` makes parameters from the declared options, `run.py` has the steps of
commands that generate a video, `output.py` those of its file, `terminal.py` messages, progress and errors. Here only
quick modules of the standard library are imported at the top: until `main` runs, Ctrl-C shows a traceback.
`quick_imports` shortens the imports of torch, diffusers and transformers, the longest part of a command's start.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec, module_from_spec
from typing import Any

STOPPED = 130  # exit status
# modules that diffusers and transformers import and that generating a video does not use -> the functions of them that
# they import by name
DEFERRED: Mapping[str, tuple[str, ...]] = {
    "scipy.integrate": (), "scipy.optimize": ("linear_sum_assignment",), "scipy.stats": (),
}  # fmt: skip


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


@contextmanager
def quick_imports() -> Iterator[None]:
    """Defer modules that are imported and not used, and pause the garbage collector.

    Imports leave objects that live as long as the process, among which it would search again and again: a fifth of
    their time. It does not search them later either.
    """
    for name, functions in DEFERRED.items():
        if name not in sys.modules and find_spec(name.partition(".")[0]):
            defer_import(name, functions)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def defer_import(name: str, functions: Sequence[str] = ()) -> None:
    """Import a module of an installed package, of which nothing is loaded until one of its names is read.

    functions: may be imported by name before that; the module is loaded when one of them is called.
    """
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None, name
    module, loader = module_from_spec(spec), spec.loader

    def load() -> None:
        if module.__dict__.pop("__getattr__", None):
            loader.exec_module(module)  # which replaces the functions too

    def read(attribute: str) -> Any:
        if attribute.startswith("__"):  # import statements and `inspect` look for some
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        load()
        return getattr(module, attribute)

    def call(function: str, *values: Any, **options: Any) -> Any:
        load()
        return getattr(module, function)(*values, **options)

    module.__dict__.update({each: partial(call, each) for each in functions}, __getattr__=read)
    sys.modules[name] = module


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
