"""Errors and warnings for users, and checks of plain arguments that raise them."""

from __future__ import annotations

import math
from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be used. The message says what was expected, what came and what to do."""


class InputWarning(UserWarning):
    """Input that can be used but may not give the result that was meant."""


MAX_FRAMES = 4096


def check_text(name: str, value: object) -> None:
    """Raise InputError unless the value is a string."""
    if not isinstance(value, str):
        raise InputError(f"{name} is a text, not {value!r}")


def check_integer(name: str, value: object, least: int, most: int) -> None:
    """Raise InputError unless the value is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} is a whole number from {least} to {most}, not {value!r}")


def check_fps(fps: object) -> None:
    """Raise InputError unless this is a frame rate above 0 and at most 240, or None."""
    if fps is None:
        return
    check_number("fps", fps)
    if not isinstance(fps, int | float) or not 0 < fps <= 240:
        raise InputError(f"fps, the frames shown per second, is above 0 and at most 240, not {fps}")


def check_num_frames(count: object) -> None:
    """Raise InputError unless this is a number of frames that a video can have, or None."""
    if count is None:
        return
    if isinstance(count, int) and count > MAX_FRAMES:
        raise InputError(
            f"num_frames is at most {MAX_FRAMES}, and {count} came: frames are kept in memory until the video is "
            f"written ({count * 512 * 512 * 3 / 1e9:,.0f} GB for {count} frames of 512 x 512). Generate several videos"
        )
    check_integer("num_frames", count, 1, MAX_FRAMES)


def check_number(name: str, value: object) -> None:
    """Raise InputError unless the value is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is a number, not {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError unless the value is one of the choices."""
    if value not in choices:
        raise InputError(f"{name} is {' or '.join(choices)}, not {value!r}")
