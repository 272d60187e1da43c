"""What a video is asked to be: the arguments of `kineograph.generate`, checked before anything is loaded."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kineograph import errors
from kineograph.errors import MAX_FRAMES, InputError
from kineograph.method_options import MAX_CLIPS, ClipOptions, ElevatorOptions

METHODS = ("text2video-zero", "instruct-pix2pix", "videocrafter", "video-elevator")
FIRST_FRAMES = ("shown", "pinned")
NUM_FRAMES, IMAGE_MODEL_FPS, MOTION = 8, 4.0, "pan:12,12"  # where nothing is asked, and no video is given to go by
NOISES = ("shared", "independent")
MASKS = ("attention", "rembg")
SAMPLERS = ("ddim", "dpmpp-2m", "euler-ancestral", "lcm")
MAX_STEPS, MAX_SIDE = 1000, 4096
ELEVATOR_DEFAULTS = ElevatorOptions()
CLIP_DEFAULTS = ClipOptions()


@dataclass(frozen=True)
class Request:
    """One video's prompt and numbers. What is None is left to the model, the control videos and the method.

    control: what ControlNets are shown. video: what is edited, by "instruct-pix2pix" alone. image: the path of a
    picture that a video model is to set in motion; first_frame: whether it is shown to the model, or the first frame
    besides. window, overlap: how many frames a video model sees together, and how many of them the next window shares.
    motion_scale: of a video model's motion adapter: 0 for its own motion, 1 for none, below 0 for more.
    clips: how many clips of that many frames there are; then: the prompts of the second and later ones, of which
    the last stays; reuse: how a clip follows from the one before.
    elevation: how an image model and a video model draw together, by "video-elevator".

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
    motion_scale: float = 0.0
    elevation: ElevatorOptions = ELEVATOR_DEFAULTS
    clips: int = 1
    then: tuple[str, ...] = ()
    reuse: ClipOptions = CLIP_DEFAULTS

    def __post_init__(self) -> None:
        errors.check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise InputError("the prompt is empty: say in a few words what the video shows")
        errors.check_text("negative_prompt", self.negative_prompt)
        errors.check_num_frames(self.num_frames)
        errors.check_integer("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        errors.check_number("guidance_scale", self.guidance_scale)
        errors.check_number("image_guidance_scale", self.image_guidance_scale)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                errors.check_integer(name, side, 1, MAX_SIDE)
        if self.seed is not None:
            errors.check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.motion is not None:
            errors.check_text("motion", self.motion)
        errors.check_fps(self.fps)
        errors.check_integer("chunk_size", self.chunk_size, 1, MAX_FRAMES)
        for name, value, choices in (("solver", self.solver, SAMPLERS), ("method", self.method, METHODS)):
            if value is not None:
                errors.check_choice(name, value, choices)
        errors.check_choice("first_frame", self.first_frame, FIRST_FRAMES)
        errors.check_number("image_scale", self.image_scale)
        errors.check_number("motion_scale", self.motion_scale)
        if self.window is not None:
            errors.check_integer("window", self.window, 2, MAX_FRAMES)
        if self.overlap is not None:
            errors.check_integer("overlap", self.overlap, 0, MAX_FRAMES)
        errors.check_choice("noise", self.noise, NOISES)
        errors.check_choice("masks", self.masks, MASKS)
        errors.check_number("smooth_background", self.smooth_background)
        if not 0 <= self.smooth_background <= 1:
            raise InputError(f"smooth_background is a share from 0 (off) to 1, not {self.smooth_background:g}")
        errors.check_integer("clips", self.clips, 1, MAX_CLIPS)
        for each in self.then:
            errors.check_text("then", each)
        _belong_together(self)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> Request:
        """What a video was asked to be, from the settings that it carries."""
        if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
            raise InputError(f"these settings are not of a video that kineograph.generate made: no {sorted(missing)}")
        given = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        told: dict[str, Any] = {"control": tuple(Control(**each) for each in given.get("control", ()))}
        told["then"] = tuple(given.get("then", ()))
        told["elevation"], told["reuse"] = (
            kind.recorded(given.get(name, {}))
            for name, kind in (("elevation", ElevatorOptions), ("reuse", ClipOptions))
        )
        return cls(**{**given, **told})

    def seeded(self) -> Request:
        """The same with a seed: a number drawn now, if none was asked for."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**31))


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
    if asked.then and asked.clips <= len(asked.then):
        raise InputError(
            f"there are prompts for {len(asked.then)} clips after the first, and {asked.clips} clips: ask for more"
        )
    if asked.clips > 1 and (edits or asked.control):
        raise InputError("a video of several clips follows no other video: leave the controls or the editing out")
    if asked.smooth_background and (edits or asked.control):
        raise InputError(
            "smooth_background steadies what a camera passes by, so it goes with a motion and without control videos "
            "or editing: leave one of them out"
        )


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
        errors.check_text("the kind of a control", self.kind)
        errors.check_text("the video of a control", self.video)
        if self.annotator is not None:
            errors.check_text("an annotator", self.annotator)
        errors.check_number("controlnet_conditioning_scale", self.scale)
        for name, value in (("control_guidance_start", self.start), ("control_guidance_end", self.end)):
            errors.check_number(name, value)
        if not 0 <= self.start < self.end <= 1:
            raise InputError(
                "control_guidance_start and control_guidance_end are parts of the way, from 0 to 1, the start before "
                f"the end; got {self.start:g} and {self.end:g}"
            )


MAP_SUFFIX = "-map"


def make_controls(
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
        Control(
            name.removesuffix(MAP_SUFFIX), str(video), name.endswith(MAP_SUFFIX), scale, start, end, chosen.get(name)
        )
        for name, video in videos.items()
    )
