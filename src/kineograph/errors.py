"""Errors and warnings for users, checks of plain arguments that raise them, and names of inputs in memory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be used. The message says what was expected, what came and what to do."""


class InputWarning(UserWarning):
    """Input that can be used but may not give the result that was meant."""


MAX_FRAMES = 4096
MEMORY_LABEL = re.compile(r"(image|video|tensor) in memory \(.*, sha256 [0-9a-f]{16}\)")
SHOWN_LENGTH = 100  # characters of a value in a message


def shown(value: object) -> str:
    """Return a value for a message: as Python writes it if that is a short line, else its beginning or its type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN_LENGTH else f"{value[:SHOWN_LENGTH]!r}..."
    if isinstance(value, int | float | list | tuple | dict | None):
        text = repr(value)
        if len(text) <= SHOWN_LENGTH and "\n" not in text:
            return text
    return f"an object of type {type(value).__name__}"


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


def memory_label(kind: str, size: str, digest: str) -> str:
    """Return the name of an input in memory, for settings and messages. kind: "image", "video" or "tensor"."""
    return f"{kind} in memory ({size}, sha256 {digest[:16]})"


def is_memory_label(text: object) -> bool:
    """Return True for what `memory_label` returns."""
    return isinstance(text, str) and MEMORY_LABEL.fullmatch(text) is not None
