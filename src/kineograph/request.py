"""A request for a video: the arguments of `kineograph.generate`, checked before anything is loaded."""

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
NUM_FRAMES, IMAGE_MODEL_FPS, MOTION = 8, 4.0, "pan:12,12"  # defaults without a control video
NOISES = ("shared", "independent")
MASKS = ("attention", "rembg")
SAMPLERS = ("ddim", "dpmpp-2m", "euler-ancestral", "lcm")
MAX_STEPS, MAX_SIDE = 1000, 4096
ELEVATOR_DEFAULTS = ElevatorOptions()
CLIP_DEFAULTS = ClipOptions()


@dataclass(frozen=True)
class Request:
    """Settings of one video. The model, the control videos and the method decide what is None.

    control: inputs of ControlNets. video: the video to edit, for "instruct-pix2pix" alone. image: path of the image
    that a video model animates; first_frame: "shown" for a condition of the model, "pinned" to be the first frame too.
    window, overlap: number of frames that a video model samples together, and of those that the next window shares.
    motion_scale: of a video model's motion adapter: 0 for its own motion, 1 for none, below 0 for more.
    clips: number of clips, each of num_frames; then: prompts of the second and later clips, the last of which stays;
    reuse: options of VidRD, for how a clip continues the previous one.
    elevation: options of VideoElevator, for how an image model and a video model sample together.

    Raises:
        InputError: something is missing, of the wrong type or out of range; the message says what is expected.
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
    sampler: str | None = None
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
            raise InputError("the prompt is empty: describe the video in a few words")
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
        for name, value, choices in (("sampler", self.sampler, SAMPLERS), ("method", self.method, METHODS)):
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
        _check_combination(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Request:
        """Return the request of a saved video, from its settings, of this version or an older one."""
        settings = migrate_settings(settings)
        if missing := {"prompt", "seed", "frames_sha256", "model"} - set(settings):
            raise InputError(
                f"these settings are not of a video that kineograph.generate made: missing {sorted(missing)}"
            )
        given = {field.name: settings[field.name] for field in fields(cls) if field.name in settings}
        nested: dict[str, Any] = {"control": tuple(Control(**each) for each in given.get("control", ()))}
        nested["then"] = tuple(given.get("then", ()))
        nested["elevation"], nested["reuse"] = (
            kind.from_settings(given.get(name, {}))
            for name, kind in (("elevation", ElevatorOptions), ("reuse", ClipOptions))
        )
        return cls(**{**given, **nested})

    def with_seed(self) -> Request:
        """Return the request with a seed: a random one, if it has none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**31))


SETTINGS_VERSION = 1


def migrate_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a saved video in the fields of this version.

    Version 0, which records no version, named the sampler `solver`.
    Raises InputError for settings of a later version.
    """
    settings = dict(settings)
    version = settings.get("settings_version", 0)
    errors.check_integer("settings_version", version, 0, SETTINGS_VERSION)
    if version == 0 and "solver" in settings:
        settings["sampler"] = settings.pop("solver")
    return settings


def _check_combination(request: Request) -> None:
    edits = request.method == "instruct-pix2pix"
    if edits and request.video is None:
        raise InputError("there is no video to edit: give one, as in kineograph edit in.mp4 'make it snow'")
    if edits and request.control:
        raise InputError("an edit follows the video that it edits: leave the controls out")
    if request.video is not None and not edits:
        raise InputError(
            f"{request.method} generates from a prompt and does not use {request.video}: see kineograph edit"
        )
    if request.image is not None and request.method not in (None, "videocrafter"):
        raise InputError(f"{request.method} does not use the image {request.image}: a video model does")
    if request.first_frame == "pinned" and request.image is None:
        raise InputError("there is no image to pin the first frame to: give one, as in kineograph animate fish.png")
    if request.then and request.clips <= len(request.then):
        raise InputError(
            f"there are prompts for {len(request.then)} clips after the first, and {request.clips} clips: ask for more"
        )
    if request.clips > 1 and (edits or request.control):
        raise InputError("a video of several clips cannot follow another video: leave the controls or the editing out")
    if request.smooth_background and (edits or request.control):
        raise InputError(
            "smooth_background smooths what a camera passes by, so it needs a camera motion, and no control videos or "
            "editing: leave one of them out"
        )


@dataclass(frozen=True)
class Control:
    """Input of one ControlNet: a video, and the strength and range of its guidance.

    kind: the ControlNet's name in the model, such as "canny".
    video: path of the video that the maps are made from, or, when `ready`, of a video of maps.
    annotator: folder or repository of a network that makes such maps, in place of the default one.
    scale: factor on the residuals. start, end: range in parts of the timesteps, 0 at pure noise, 1 at the clean video.
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
                "control_guidance_start and control_guidance_end are parts of the timesteps, from 0 to 1, the start "
                f"before the end; got {self.start:g} and {self.end:g}"
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
    """Return controls from {kind: video}; a kind that ends in "-map", as "depth-map", has a video of ready maps.

    Raises InputError for an annotator of a kind that no control needs one for.
    """
    chosen = {kind: str(model) for kind, model in (annotators or {}).items()}
    if idle := set(chosen) - set(videos):
        raise InputError(f"there is an annotator for {', '.join(sorted(idle))}, and no control video for it")
    return tuple(
        Control(
            name.removesuffix(MAP_SUFFIX), str(video), name.endswith(MAP_SUFFIX), scale, start, end, chosen.get(name)
        )
        for name, video in videos.items()
    )
