"""What commands that take long have in common: how they are stopped, and how they say how long it will be."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kineograph.cli import speaking


@contextmanager
def stoppable() -> Iterator[Callable[[], int]]:
    """Lends a function that says with which status to end, once Ctrl-C or SIGTERM has come, and 0 until then.

    A second one ends the program where it is.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        speaking.say("stopping after this step, with a checkpoint; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def duration(seconds: float) -> str:
    """In words, such as "12.5 min"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
