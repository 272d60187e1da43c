"""What a video is asked to be: the arguments of `kineograph.generate`, checked before anything is loaded."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kineograph.errors import InputError

METHODS = ("text2video-zero", "instruct-pix2pix", "videocrafter")
FIRST_FRAMES = ("shown", "pinned")
NUM_FRAMES, FPS, MOTION = 8, 4.0, "pan:12,12"  # where nothing is asked, and no video is given to go by
NOISES = ("shared", "independent")
MASKS = ("attention", "rembg")
SOLVERS = ("ddim", "dpmpp-2m", "euler-ancestral", "lcm")
MOST_FRAMES, MOST_STEPS, MOST_SIDE = 4096, 1000, 4096


@dataclass(frozen=True)
class Control:
    """What one ControlNet is shown: a video, and how strongly and from where to where on the way down it counts.

    kind: the ControlNet's name in the model, such as "canny".
    video: the path of a video, of which the maps are made, or which is one of maps when `ready`.
    annotator: the folder or repository of a network that makes such maps, in place of the usual one.
    scale: what the residuals are multiplied by. start, end: parts of the way, 0 at pure noise, 1 at the clean video.
    """

    kind: str
    video: str
    ready: bool = False
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    annotator: str | None = None

    def __post_init__(self) -> None:
        _text("the kind of a control", self.kind)
        _text("the video of a control", self.video)
        if self.annotator is not None:
            _text("an annotator", self.annotator)
        _number("controlnet_conditioning_scale", self.scale)
        for name, value in (("control_guidance_start", self.start), ("control_guidance_end", self.end)):
            _number(name, value)
        if not 0 <= self.start < self.end <= 1:
            raise InputError(
                "control_guidance_start and control_guidance_end are parts of the way, from 0 to 1, the start before "
                f"the end; got {self.start:g} and {self.end:g}"
            )


@dataclass(frozen=True)
class Request:
    """One video's prompt and numbers. What is None is left to the model, the control videos and the method.

    control: what ControlNets are shown. video: what is edited, by "instruct-pix2pix" alone. image: the path of a
    picture that a video model is to set in motion; first_frame: whether it is shown to the model, or the first frame
    besides. window, overlap: how many frames a video model sees together, and how many of them the next window shares.

    Raises:
        InputError: something is missing, of the wrong type or out of range; the text says what is right.
    """

    prompt: str
    negative_prompt: str = ""
    num_frames: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    seed: int | None = None
    motion: str | None = None
    fps: float | None = None
    solver: str | None = None
    chunk_size: int = 8
    method: str | None = None
    control: tuple[Control, ...] = ()
    smooth_background: float = 0.0
    masks: str = "attention"
    video: str | None = None
    image_guidance_scale: float = 1.5
    noise: str = "shared"
    image: str | None = None
    first_frame: str = "shown"
    image_scale: float = 1.0
    window: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        _text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InputError("the prompt is empty: say in a few words what the video shows")
        _text("negative_prompt", self.negative_prompt)
        _frames(self.num_frames)
        _whole("num_inference_steps", self.num_inference_steps, 1, MOST_STEPS)
        _number("guidance_scale", self.guidance_scale)
        _number("image_guidance_scale", self.image_guidance_scale)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                _whole(name, side, 1, MOST_SIDE)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**63 - 1)
        if self.motion is not None:
            _text("motion", self.motion)
        _rate(self.fps)
        _whole("chunk_size", self.chunk_size, 1, MOST_FRAMES)
        for name, value, choices in (("solver", self.solver, SOLVERS), ("method", self.method, METHODS)):
            if value is not None:
                _choice(name, value, choices)
        _choice("first_frame", self.first_frame, FIRST_FRAMES)
        _number("image_scale", self.image_scale)
        if self.window is not None:
            _whole("window", self.window, 2, MOST_FRAMES)
        if self.overlap is not None:
            _whole("overlap", self.overlap, 0, MOST_FRAMES)
        _choice("noise", self.noise, NOISES)
        _choice("masks", self.masks, MASKS)
        _number("smooth_background", self.smooth_background)
        if not 0 <= self.smooth_background <= 1:
            raise InputError(f"smooth_background is a share from 0 (off) to 1, not {self.smooth_background:g}")
        _belong_together(self)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> Request:
        """What a video was asked to be, from the settings that it carries."""
        if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
            raise InputError(f"these settings are not of a video that kineograph.generate made: no {sorted(missing)}")
        given = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        return cls(**{**given, "control": tuple(Control(**each) for each in given.get("control", ()))})

    def seeded(self) -> Request:
        """The same with a seed: a number drawn now, if none was asked for."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**31))


READY = "-map"


def controls(
    videos: Mapping[str, str | Path],
    annotators: Mapping[str, str | Path] | None = None,
    *,
    scale: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
) -> tuple[Control, ...]:
    """Controls from {kind: video}; a kind that ends in "-map", as "depth-map", has a video of ready maps.

    Raises InputError for an annotator of a kind that no control needs one for.
    """
    chosen = {kind: str(model) for kind, model in (annotators or {}).items()}
    if idle := set(chosen) - set(videos):
        raise InputError(f"there is an annotator for {', '.join(sorted(idle))}, and no control video for it to look at")
    return tuple(
        Control(name.removesuffix(READY), str(video), name.endswith(READY), scale, start, end, chosen.get(name))
        for name, video in videos.items()
    )


def _belong_together(asked: Request) -> None:
    edits = asked.method == "instruct-pix2pix"
    if edits and asked.video is None:
        raise InputError("there is no video to edit: give one, as in kineograph edit in.mp4 'make it snow'")
    if edits and asked.control:
        raise InputError("an edit follows the video that it edits: leave the controls out")
    if asked.video is not None and not edits:
        raise InputError(f"{asked.method} draws from a prompt and would not look at {asked.video}: see kineograph edit")
    if asked.image is not None and asked.method not in (None, "videocrafter"):
        raise InputError(f"{asked.method} would not look at the picture {asked.image}: a video model does")
    if asked.first_frame == "pinned" and asked.image is None:
        raise InputError("there is no picture to pin the first frame to: give one, as in kineograph animate fish.png")
    if asked.smooth_background and (edits or asked.control):
        raise InputError(
            "smooth_background steadies what a camera passes by, so it goes with a motion and without control videos "
            "or editing: leave one of them out"
        )


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} is a text, not {value!r}")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{name} is a whole number from {least} to {most}, not {value!r}")


def _rate(fps: object) -> None:
    if fps is None:
        return
    _number("fps", fps)
    if not isinstance(fps, int | float) or not 0 < fps <= 240:
        raise InputError(f"fps, the frames shown per second, is above 0 and at most 240, not {fps}")


def _frames(count: object) -> None:
    if count is None:
        return
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
