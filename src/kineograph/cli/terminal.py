"""What the command line says: to people on stderr, to programs on stdout."""

from __future__ import annotations

import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kineograph.errors import InputWarning

INVALID_INPUT, STOPPED, TERMINATED = 2, 130, 143
FINAL_MESSAGES = {
    STOPPED: "stopped: no half-written file is left",
    TERMINATED: "terminated: no half-written file is left",
}
OUT_OF_MEMORY = "out of memory: compute fewer frames at once (--chunk-size 2), fewer in all, or a smaller size"


def console() -> Console:
    """The terminal of people, who may have sent stdout elsewhere."""
    return Console(stderr=True, highlight=False)


def print_message(text: str) -> None:
    """A line for people; the text is taken as it is."""
    console().print(escape(text), soft_wrap=True)


def print_json(result: Mapping[str, Any]) -> None:
    """The one JSON object that a program reads."""
    print(json.dumps(result))


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, moved by what it lends: a function of (how many are done, of how many)."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    terminal = console()
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns what can go wrong into one line and an exit status; what cannot go wrong keeps its traceback."""
    try:
        with _own_warnings_only():
            yield
    except ValueError as error:
        if not _from_here(error):
            raise
        exit_with_error(str(error))
    except OSError as error:
        exit_with_error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except MemoryError:
        exit_with_error(OUT_OF_MEMORY)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not even be imported
            raise
        exit_with_error(OUT_OF_MEMORY)
    except SystemExit as end:  # typer has made 130 of Ctrl-C by now
        if end.code in FINAL_MESSAGES:
            print_message(FINAL_MESSAGES[end.code])
        raise


def _from_here(error: Exception) -> bool:
    """Whether this library raised it: then its text is meant for people, and says what to do."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return str(last[0].f_globals.get("__name__")).startswith("kineograph")


def exit_with_error(text: str) -> NoReturn:
    """Ends the program with one clear line."""
    console().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    raise SystemExit(INVALID_INPUT)


def exit_on_sigterm() -> None:
    """SIGTERM unwinds the program as Ctrl-C does, so that nothing half-written stays behind."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)


def quiet_libraries() -> None:
    """Asks the libraries to keep to errors; to be called before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # their bars would stand between ours


def hide_loading_bars() -> None:
    """Takes away the bars that flash by while weights are read; those of downloads, which take minutes, stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disabled = are_progress_bars_disabled()
    disable_progress_bar()  # the Hub's too
    if not disabled:
        enable_progress_bars()


@contextmanager
def _own_warnings_only() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str, category: type, filename: str, lineno: int, file: object = None, line: object = None
) -> None:
    console().print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Lends a function that says with which status to end, once Ctrl-C or SIGTERM has come, and 0 until then.

    A second one ends the program where it is.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print_message("stopping after this step, with a checkpoint; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def format_duration(seconds: float) -> str:
    """In words, such as "12.5 min"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
