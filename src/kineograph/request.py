"""A request for a video: the arguments of `kineograph.generate`, checked before anything is loaded."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kineograph import errors
from kineograph.errors import MAX_FRAMES, InputError

METHODS = ("text2video-zero", "instruct-pix2pix", "videocrafter", "video-elevator")
FIRST_FRAMES = ("shown", "pinned")
NUM_FRAMES, IMAGE_MODEL_FPS, MOTION = 8, 4.0, "pan:12,12"  # defaults without a control video
NOISES = ("shared", "independent")
MASKS = ("attention", "rembg")
SAMPLERS = ("ddim", "dpmpp-2m", "euler-ancestral", "lcm")
MAX_STEPS, MAX_SIDE = 1000, 4096
RENOISE_METHODS = ("inversion", "same-noise", "fresh-noise")
MAX_CLIPS = 1024
NOISE_ORDERS = ("reversed", "kept")


@dataclass(frozen=True)
class ElevatorOptions:
    """Options of VideoElevator; the defaults are its authors' unless stated.

    refine_at: steps at which the video model refines the image model's estimate, each as the fraction of the steps that
        remain: 1 is the first step. Empty: the image model alone, with attention to the first frame.
    video_steps: steps of the video model per refinement.
    low_pass: width of the filter over frames, in units of the Nyquist frequency; None for no filter.
    low_pass_space: the same over rows and columns; the paper's has none, its released code 1.0.
    shared_noise: ratio of the noise that all frames share to a frame's own; see `noise.mix`.
    back: return to the image model's noise level: by "inversion", with the initial noise ("same-noise"), or with
        "fresh-noise".
    inversion_steps: maximum number of steps of an inversion; None for all sigmas below the current one, as the authors.
    drift_correction: correct later steps by the inversion's error, as in the released code; the inversion then takes
        all steps.
    video_guidance_scale: guidance scale of the video model; the image model's unless given.
    video_prompt: prompt of the video model, for words that only the image model knows; the same unless given.
    """

    refine_at: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3)
    video_steps: int = 8
    low_pass: float | None = 0.5
    low_pass_space: float | None = None
    shared_noise: float = 1.0
    back: str = "inversion"
    inversion_steps: int | None = 12
    drift_correction: bool = False
    video_guidance_scale: float | None = None
    video_prompt: str | None = None

    def __post_init__(self) -> None:
        for part in self.refine_at:
            errors.check_number("refine_at", part)
            if not 0 < part <= 1:
                raise InputError(f"refine_at holds parts of the steps that remain, above 0 and at most 1, not {part:g}")
        errors.check_integer("video_steps", self.video_steps, 1, MAX_STEPS)
        for name, width in (("low_pass", self.low_pass), ("low_pass_space", self.low_pass_space)):
            if width is not None:
                errors.check_number(name, width)
                if width <= 0:
                    raise InputError(f"{name} is a width above 0, or none; not {width:g}")
        errors.check_number("shared_noise", self.shared_noise)
        if self.shared_noise < 0:
            raise InputError(f"shared_noise is at least 0, not {self.shared_noise:g}")
        errors.check_choice("back", self.back, RENOISE_METHODS)
        if self.inversion_steps is not None:
            errors.check_integer("inversion_steps", self.inversion_steps, 1, MAX_STEPS)
        if self.drift_correction and self.back != "inversion":
            raise InputError(f"drift_correction corrects an inversion, and back is {self.back}")
        if self.video_guidance_scale is not None:
            errors.check_number("video_guidance_scale", self.video_guidance_scale)
        if self.video_prompt is not None:
            errors.check_text("video_prompt", self.video_prompt)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ElevatorOptions:
        """Return the options in a saved video's settings, where lists stand for tuples."""
        return cls(**{**settings, "refine_at": tuple(settings.get("refine_at", cls.refine_at))})


@dataclass(frozen=True)
class ClipOptions:
    """Options of VidRD, for how a clip continues the previous one.

    The defaults are the paper's, except keep and guidance, which are 4 and 0.4 there
    (docs/decisions/0011-seams-that-do-not-jump.md).

    keep: number of frames that continue the previous clip, less than all.
    noise_ratio: ratio of the previous clip's noise to fresh noise in the other frames.
    guidance: fraction of the steps for which the first kept frame follows the previous clip's latents; later ones
        follow for fewer steps. 1: the first frame equals the previous clip's last.
    anchor: strength, from 0 (off) to 1, that pulls the mean over a clip's frames to the first clip's while the kept
        frames are guided, against drift over many clips; not in the paper.
    order: order of the previous clip's noise: "reversed", so that a clip starts where the previous one ended, or
        "kept", the paper's ablation.
    """

    keep: int = 2
    noise_ratio: float = 4.0
    guidance: float = 0.7
    anchor: float = 0.0
    order: str = "reversed"

    def __post_init__(self) -> None:
        errors.check_integer("keep", self.keep, 0, errors.MAX_FRAMES)
        for name in ("noise_ratio", "guidance", "anchor"):
            errors.check_number(name, getattr(self, name))
        errors.check_choice("order", self.order, NOISE_ORDERS)
        if self.noise_ratio < 0:
            raise InputError(f"noise_ratio is at least 0, not {self.noise_ratio:g}")
        for name in ("guidance", "anchor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name):g}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ClipOptions:
        """Return the options in a saved video's settings."""
        return cls(**settings)


ELEVATOR_DEFAULTS = ElevatorOptions()
CLIP_DEFAULTS = ClipOptions()


@dataclass(frozen=True)
class Request:
    """Settings of one video. Fields that are None are decided by the model, the control videos and the method.

    control: inputs of ControlNets. video: path of the video to edit, for "instruct-pix2pix" alone. image: path of the
    image that a video model animates; first_frame: "shown", it is a condition only; "pinned", also the first frame.
    window, overlap: number of frames that a video model samples together, and of those that the next window shares.
    motion_scale: scale of a video model's motion adapter: 0 for its own motion, 1 for none, below 0 for more.
    clips: number of clips, each of num_frames; then: prompts of the second and later clips, the last of them for all
    further ones; reuse: options of VidRD. elevation: options of VideoElevator.

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
    scale: factor on the residuals. start, end: range, as fractions of the timesteps: 0 is noise, 1 is clean.
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

    Raises InputError for an annotator whose kind has no control.
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
