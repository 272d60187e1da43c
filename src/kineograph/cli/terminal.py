"""Terminal output: messages and progress on stderr, results on stdout, errors and signals as exit statuses."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kineograph.errors import InputError, InputWarning, is_out_of_memory

INVALID_INPUT, STOPPED, TERMINATED = 2, 130, 143  # exit statuses
FINAL_MESSAGES = {
    STOPPED: "stopped: no half-written file is left",
    TERMINATED: "terminated: no half-written file is left",
}
# characters that move the cursor, begin a sequence that the terminal obeys, or reorder the text around them
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
OUT_OF_MEMORY = (
    "out of memory: compute fewer frames at once (--chunk-size 2), fewer in all, or a smaller size; in a training, a "
    "smaller train_batch_size or size"
)
TO_DO: Mapping[int, str] = {
    errno.ENOSPC: ": make room on the disk, or write to another one; what was finished before is whole",
    errno.EDQUOT: ": make room within your quota, or write to another disk; what was finished before is whole",
    errno.EFBIG: ": write to a file system, or within a limit (ulimit -f), that allows larger files",
    errno.EACCES: ": choose a file or folder that this user may use",
    errno.EPERM: ": choose a file or folder that this user may use",
    errno.EROFS: ": choose a folder on a disk that can be written",
    errno.ENAMETOOLONG: ": choose a shorter name",
    errno.EMFILE: ": allow more open files (ulimit -n)",
}


def console() -> Console:
    """Return a console on stderr, since stdout may be redirected to a file or a program."""
    return Console(stderr=True, highlight=False)


def escape_control(text: object) -> str:
    """Return a text in which control characters are escapes, such as \\x1b: no text of a file controls the terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(text: str) -> Text:
    """Return a text in one line, with its control characters as escapes, and without markup or emoji codes."""
    return Text(escape_control(" ".join(text.splitlines())))


def print_message(text: str) -> None:
    """Print a line on stderr."""
    console().print(one_line(text), soft_wrap=True)


def print_path(path: Path) -> None:
    """Print a path on stdout, with control characters as escapes; `--json` has the path as it is."""
    print(escape_control(path))


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, for programs."""
    print(json.dumps(result).replace("\x7f", "\\u007f"))  # the one control character that JSON does not escape


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left; yields its update function of (steps done, all steps)."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    stderr = console()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn invalid input, file errors, lack of memory and signals into one line and an exit status.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        with _show_own_warnings_only():
            yield
    except InputError as error:
        exit_with_error(str(error))
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            exit_with_error(OUT_OF_MEMORY)
        if not isinstance(error, OSError):
            raise
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        exit_with_error(text + TO_DO.get(error.errno or 0, ""))
    except KeyboardInterrupt:
        print_message(FINAL_MESSAGES[STOPPED])
        raise SystemExit(STOPPED) from None
    except SystemExit as end:  # typer turns Ctrl-C into status 130
        if end.code in FINAL_MESSAGES:
            print_message(FINAL_MESSAGES[end.code])
        raise


def exit_with_error(text: str) -> NoReturn:
    """Print an error as one line and end the program with status 2."""
    console().print(Text.assemble(("error:", "bold red"), " ", one_line(without_backticks(text))), soft_wrap=True)
    raise SystemExit(INVALID_INPUT)


def exit_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that half-written files are removed as after Ctrl-C."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)


def quiet_libraries() -> None:
    """Set other libraries' logging to errors. Call it before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # their progress bars would break ours


def escape_unknown_characters() -> None:
    """Let stdout and stderr print characters that their encoding lacks as escapes, such as \\u9c7c."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def hide_loading_bars() -> None:
    """Hide the progress bars of reading weights, and keep those of downloads, which take minutes."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disabled = are_progress_bars_disabled()
    disable_progress_bar()  # disables the Hub's too
    if not disabled:
        enable_progress_bars()


@contextmanager
def _show_own_warnings_only() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(
    message: Warning | str, category: type, filename: str, lineno: int, file: object = None, line: object = None
) -> None:
    text = one_line(without_backticks(str(message)))
    console().print(Text.assemble(("warning:", "bold yellow"), " ", text), soft_wrap=True)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Replace the names of options, which are in backticks, by their flags."""
    return re.sub(r"`([^`]+)`", lambda found: flags.get(found[1], found[0]), text)


def without_backticks(text: str) -> str:
    """Remove the backticks around names that have no flag here."""
    return re.sub(r"`([^`]+)`", r"\1", text)


@contextmanager
def flags_in_messages(flags: Mapping[str, str]) -> Iterator[None]:
    """Put flags in the place of options' names in the errors and warnings of the `with` block."""
    show = warnings.showwarning
    warnings.showwarning = lambda message, *place: show(with_flags(str(message), flags), *place)
    try:
        yield
    except InputError as error:
        raise InputError(with_flags(str(error), flags)) from error
    finally:
        warnings.showwarning = show


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Defer Ctrl-C and SIGTERM to the end of a training step.

    Yields a function that returns the exit status once a signal has come, and 0 until then. A second signal ends the
    program at once.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print_message("stopping after this step, with a checkpoint; press again to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def join_first(texts: Iterable[str]) -> str:
    """Join the first few texts, and say how many more there are."""
    listed, count = list(texts), 5
    return "; ".join(listed[:count]) + (f"; and {len(listed) - count} more" if len(listed) > count else "")


def format_duration(seconds: float) -> str:
    """Format a duration, such as "12.5 min"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
