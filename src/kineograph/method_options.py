"""Options of single methods: VideoElevator's and VidRD's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kineograph import errors
from kineograph.errors import InputError

RENOISE_METHODS = ("inversion", "same-noise", "fresh-noise")
MAX_STEPS = 1000


@dataclass(frozen=True)
class ElevatorOptions:
    """Options of VideoElevator; the defaults are its authors' unless stated.

    refine_at: steps at which the video model refines the image model's estimate, as parts of the steps that remain: 1
        is the first step. Without any, this is an image model whose frames attend to the first.
    video_steps: steps of the video model per refinement.
    low_pass: width of the filter over frames, in units of the Nyquist frequency; None for no filter.
    low_pass_space: the same over rows and columns; the paper's has none, its released code 1.0.
    shared_noise: parts of the noise that all frames share to one part of a frame's own.
    back: return to the image model's noise level: by "inversion", with the initial noise ("same-noise"), or with
        "fresh-noise".
    inversion_steps: most steps of an inversion; None for all that lie below, as the authors take.
    drift_correction: correct what an inversion loses in later steps, as in the released code; the inversion then takes
        all steps.
    video_guidance_scale: guidance scale of the video model; the image model's unless given.
    video_prompt: prompt of the video model, if it does not know the image model's words; the same unless given.
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


MAX_CLIPS = 1024
NOISE_ORDERS = ("reversed", "kept")


@dataclass(frozen=True)
class ClipOptions:
    """Options of VidRD, for how a clip continues the previous one. The anchor is not in the paper.

    The defaults are the paper's, except keep and guidance, which are 4 and 0.4 there
    (docs/decisions/0011-seams-that-do-not-jump.md).

    keep: number of frames that continue the previous clip, at most all but one.
    noise_ratio: parts of the previous clip's noise to one part of fresh noise in the other frames.
    guidance: share of the steps for which the first of the kept frames follows the previous clip, and the others less;
        1 gives an exact seam.
    anchor: how strongly the mean over a clip's frames moves towards the first clip's, from 0 (not) to 1, while the kept
        frames are guided: against drift over many clips.
    order: of the previous clip's noise: "reversed", so that a clip starts where the last one ended, or "kept" as it
        was, which is the paper's ablation.
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
