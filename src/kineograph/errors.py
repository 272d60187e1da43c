"""Errors and warnings for users, checks of plain values and of JSON that raise them, and names of inputs in memory."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

LONG_WORD = re.compile(r"(\S{100})\S{900,}")  # no path and no value that a reader would want in a message


class InputError(ValueError):
    """Input that cannot be used. The message says what was expected, what came and what to do.

    Of words of a thousand characters, which damaged files have, the message has the beginning.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(LONG_WORD.sub(r"\1...", str(message)))


class InputWarning(UserWarning):
    """Input that can be used but may not give the result that was meant."""


MAX_FRAMES = 4096
MEMORY_LABEL = re.compile(r"(image|video|tensor) in memory \(.*, sha256 [0-9a-f]{16}\)")
MAX_PATH = 300  # characters of a path in a message
SHOWN_LENGTH = 100  # characters of a value in a message
SHOWN_ERROR = 240  # characters of another library's error, or of a problem in a list
MAX_JSON_BYTES = 64 << 20  # of a file; the largest index of a sharded checkpoint has a few
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_INTEGER = 2**63 - 1
# what torch, its allocators, oneDNN and cuBLAS say; torch.OutOfMemoryError has a class of its own
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|bad_alloc|[Cc]an(not|'t) allocate memory|out of memory|[Nn]ot enough memory|"
    r"STATUS_ALLOC_FAILED|could not create a (memory object|primitive)$|can't start new thread"
)
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # characters that no file name and no UTF-8 can have


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for the errors by which Python, torch and the libraries below it say that memory is lacking."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError | ImportError):
        return type(error).__name__ == "OutOfMemoryError" or NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def shown(value: object) -> str:
    """Return a value for a message: as Python writes it if that is a short line, else its beginning or its type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN_LENGTH else f"{value[:SHOWN_LENGTH]!r}..."
    if isinstance(value, int | float | list | tuple | dict | None):
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # an integer of thousands of digits, or hundreds of lists in one another
            return f"a very long {type(value).__name__}"
        if len(text) <= SHOWN_LENGTH and "\n" not in text:
            return text
    return f"an object of type {type(value).__name__}"


def expand_user(path: str | Path) -> Path:
    """Return a path with ~ expanded; as it is where ~ is followed by a user whom this machine does not have."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises RuntimeError


def is_present(path: Path) -> bool:
    """Return True if something is at this path; False for a text that can be no path, such as too long a one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def shown_path(path: object) -> str:
    """Return a path for a message; the beginning of a very long one, since texts that are no path may be long."""
    text = str(path)
    return text if len(text) <= MAX_PATH else f"{text[:SHOWN_LENGTH]}..."


def in_one_line(error: object) -> str:
    """Return the beginning of a text of several lines or any length, such as an error of another library."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN_ERROR else f"{text[:SHOWN_ERROR]}..."


def check_text(name: str, value: object) -> None:
    """Raise InputError unless the value is a string."""
    if not isinstance(value, str):
        raise InputError(f"{name} is a text, not {shown(value)}")


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Raise InputError unless the value is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} is a whole number from {least} to {most}, not {shown(value)}")


def check_number(name: str, value: object) -> None:
    """Raise InputError unless the value is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is a number, not {shown(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless the value is one of the choices."""
    if value not in choices:
        raise InputError(f"{name} is {' or '.join(choices)}, not {shown(value)}")


def load_json(path: Path) -> Any:
    """Return the value in a JSON file, within the limits of `parse_json`. Raises InputError, and OSError."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes: JSON of at most {MAX_JSON_BYTES:,} is read")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, what: str) -> Any:
    """Return the value of a JSON text. what: its name for messages.

    Raises InputError for other text, for what `check_plain_value` refuses, and for numbers that are not finite.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except ValueError as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    except RecursionError:
        raise InputError(f"{what} is not used: it has more than {MAX_DEPTH} lists in one another") from None
    check_plain_value(value, what)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:SHOWN_LENGTH]} is too large")
    return number


def check_plain_value(value: object, what: str) -> None:
    """Raise InputError for values of JSON or YAML that are nested too deeply, too large, or no text that can be used.

    what: the name of their source, for messages.
    """
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if depth >= MAX_DEPTH and isinstance(each, Mapping | list | tuple):
            raise InputError(f"{what} is not used: it has more than {MAX_DEPTH} lists in one another")
        if isinstance(each, Mapping):
            waiting += [(part, depth + 1) for pair in each.items() for part in pair]
        elif isinstance(each, list | tuple):
            waiting += [(part, depth + 1) for part in each]
        elif isinstance(each, int) and abs(each) > MAX_INTEGER:
            raise InputError(f"{what} is not used: it has a whole number of more than 64 bits")
        elif isinstance(each, str) and UNUSABLE.search(each):
            raise InputError(f"{what} is not used: it has a null character or a lone surrogate in {shown(each)}")


def memory_label(kind: str, size: str, digest: str) -> str:
    """Return the name of an input in memory, for settings and messages. kind: "image", "video" or "tensor"."""
    return f"{kind} in memory ({size}, sha256 {digest[:16]})"


def is_memory_label(text: object) -> bool:
    """Return True for what `memory_label` returns."""
    return isinstance(text, str) and MEMORY_LABEL.fullmatch(text) is not None
