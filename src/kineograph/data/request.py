"""What a video is asked to be: the arguments of `kineograph.generate`, checked before anything is loaded."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from kineograph.errors import InputError

METHODS = ("text2video-zero",)
SOLVERS = ("ddim", "dpmpp-2m", "euler-ancestral", "lcm")
MOST_FRAMES, MOST_STEPS, MOST_SIDE = 4096, 1000, 4096


@dataclass(frozen=True)
class Request:
    """One video's prompt and numbers. `height` and `width` are the model's own, and `seed` is drawn, when None.

    Raises:
        InputError: something is missing, of the wrong type or out of range; the text says what is right.
    """

    prompt: str
    negative_prompt: str = ""
    num_frames: int = 8
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    seed: int | None = None
    motion: str = "pan:12,12"
    fps: float = 4
    solver: str = "ddim"
    chunk_size: int = 8
    method: str = "text2video-zero"

    def __post_init__(self) -> None:
        _text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InputError("the prompt is empty: say in a few words what the video shows")
        _text("negative_prompt", self.negative_prompt)
        _frames(self.num_frames)
        _whole("num_inference_steps", self.num_inference_steps, 1, MOST_STEPS)
        _number("guidance_scale", self.guidance_scale)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                _whole(name, side, 1, MOST_SIDE)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**63 - 1)
        _text("motion", self.motion)
        _number("fps", self.fps)
        if not 0 < self.fps <= 240:
            raise InputError(f"fps, the frames shown per second, is above 0 and at most 240, not {self.fps}")
        _whole("chunk_size", self.chunk_size, 1, MOST_FRAMES)
        _choice("solver", self.solver, SOLVERS)
        _choice("method", self.method, METHODS)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> Request:
        """What a video was asked to be, from the settings that it carries."""
        if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
            raise InputError(f"these settings are not of a video that kineograph.generate made: no {sorted(missing)}")
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    def seeded(self) -> Request:
        """The same with a seed: a number drawn now, if none was asked for."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**31))


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is a text, not {value!r}")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} is a whole number from {least} to {most}, not {value!r}")


def _frames(count: object) -> None:
    if isinstance(count, int) and count > MOST_FRAMES:
        raise InputError(
            f"num_frames is at most {MOST_FRAMES}, and {count} came: frames are kept in memory until the video is "
            f"written ({count * 512 * 512 * 3 / 1e9:,.0f} GB for so many of 512 x 512). Make several videos"
        )
    _whole("num_frames", count, 1, MOST_FRAMES)


def _number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name} is a number, not {value!r}")


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {' or '.join(choices)}, not {value!r}")
