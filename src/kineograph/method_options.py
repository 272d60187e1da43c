"""How an image model and a video model draw together: the settings of VideoElevator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kineograph import errors
from kineograph.errors import InputError

RETURNS = ("inversion", "same-noise", "fresh-noise")
MAX_STEPS = 1000


@dataclass(frozen=True)
class ElevatorOptions:
    """The method's choices; as they are, those of its authors but where that is said.

    refine_at: where the video model moves what the image model draws, as parts of the way that is left: 1 at the first
        step. None at all leaves an image model whose frames look at the first.
    video_steps: how many steps of the video model each time.
    low_pass: the width of the filter along time, in units of the Nyquist frequency; None for no filter.
    low_pass_space: the same along rows and columns; the paper's has none, its released code 1.0.
    shared_noise: parts of the noise that all frames share to one of a frame's own.
    back: how the image model takes over again: by "inversion", with the "same-noise" that the video began with, or with
        "fresh-noise".
    inversion_steps: at most how many steps an inversion takes; None for all that lie below, as the authors take.
    drift_correction: whether what an inversion loses is made up for on the way down, as in the released code; then it
        takes all steps.
    video_guidance_scale: how much the prompt counts for the video model; as for the image model unless given.
    video_prompt: what the video model is told, where it does not know the image model's words; the same unless given.
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
                raise InputError(f"refine_at holds parts of the way that is left, above 0 and at most 1, not {part:g}")
        errors.check_integer("video_steps", self.video_steps, 1, MAX_STEPS)
        for name, width in (("low_pass", self.low_pass), ("low_pass_space", self.low_pass_space)):
            if width is not None:
                errors.check_number(name, width)
                if width <= 0:
                    raise InputError(f"{name} is a width above 0, or none; not {width:g}")
        errors.check_number("shared_noise", self.shared_noise)
        if self.shared_noise < 0:
            raise InputError(f"shared_noise is at least 0, not {self.shared_noise:g}")
        errors.check_choice("back", self.back, RETURNS)
        if self.inversion_steps is not None:
            errors.check_integer("inversion_steps", self.inversion_steps, 1, MAX_STEPS)
        if self.drift_correction and self.back != "inversion":
            raise InputError(f"drift_correction makes up for what an inversion loses, and back is {self.back}")
        if self.video_guidance_scale is not None:
            errors.check_number("video_guidance_scale", self.video_guidance_scale)
        if self.video_prompt is not None:
            errors.check_text("video_prompt", self.video_prompt)

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> ElevatorOptions:
        """From the settings that a video carries, where lists stand for tuples."""
        return cls(**{**settings, "refine_at": tuple(settings.get("refine_at", cls.refine_at))})


MAX_CLIPS = 1024
NOISE_ORDERS = ("reversed", "kept")


@dataclass(frozen=True)
class ClipOptions:
    """As they are, the paper's choices but for keep and guidance, which are 4 and 0.4 there
    (docs/decisions/0011-seams-that-do-not-jump.md). The anchor is not in the paper.

    keep: how many frames tie a clip to the one before, at most all but one.
    noise_ratio: parts of the past's noise to one of fresh noise in the other frames.
    guidance: the share of all steps for which the first of the kept frames follows the past, and the others less; 1 is
        an exact seam.
    anchor: how strongly what all frames of a clip have in common is drawn to the first clip's, from 0 (not) to 1, while
        the kept frames are guided: against drift over many clips.
    order: of the past's noise: "reversed", so that a clip begins where the last one ended, or "kept" as it was, which
        is the paper's ablation.
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
    def recorded(cls, settings: Mapping[str, Any]) -> ClipOptions:
        """From the settings that a video carries."""
        return cls(**settings)
