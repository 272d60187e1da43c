"""SDEdit: video to video by strength (Meng et al. 2022, section 3).

The frames of a video are encoded, noised to the sigma that the strength names, and sampled down from there by any model
and method. With strength 1 sampling starts from noise alone, as without a video; with 0 the frames only pass the VAE.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
from typing_extensions import TypedDict

from kineograph.errors import InputError, shown
from kineograph.latents import Latents
from kineograph.models.description import check_size
from kineograph.motion import Motion, parse
from kineograph.options import Number, Text, option
from kineograph.plan import AddOn, Combination, Plan, SamplingRun, encode_footage
from kineograph.samplers import Step

if TYPE_CHECKING:
    from kineograph.media.video import Video

DEFAULT_STRENGTH = 0.6  # of a model that is not for editing


class StrengthOptions(TypedDict, total=False):
    """Options of video to video."""

    strength: Annotated[
        Number | None,
        option(
            None,
            "Share of the steps that are sampled, starting from the frames of the video to edit with noise, as in "
            "diffusers' image to image: 1 starts from noise alone, 0 keeps the frames.",
            group="Edits",
            ge=0,
            le=1,
            shown_default=f"1 for an editing model, {DEFAULT_STRENGTH:g} for others",
        ),
    ]


def chosen_strength(combination: Combination) -> float:
    """Return the strength, or its default for the model; 1 without a video."""
    strength = combination.options["strength"]
    if combination.options["video"] is None:
        return 1.0
    return float(strength if strength is not None else 1.0 if combination.model.edits else DEFAULT_STRENGTH)


def check(combination: Combination) -> None:
    """Raise InputError for a camera motion, which frames of a video do not take."""
    options = combination.options
    moves = options["camera"] is not None and parse(options["camera"]) != Motion()
    if moves and chosen_strength(combination) < 1 and not options["smooth_background"]:
        raise InputError("the frames of `video` have its camera's motion: leave `camera` out")


def bind_start(plan: Plan) -> Plan:
    """Return the plan whose sampling starts from the clip's frames of the video, noised to the first sigma."""
    if not plan.start_footage:
        return plan
    clean = _encode_frames(plan)

    def start_noise(noise: Latents, sigma: float) -> Latents:
        return noise + clean.to(noise) / sigma

    return replace(plan, start_noise=start_noise)


def keep_frames(plan: Plan) -> SamplingRun:
    """Return the run of strength 0: the clip's frames, as the VAE encodes them."""
    clean = _encode_frames(plan)
    return SamplingRun(1, torch.zeros_like(clean), iter([Step(0.0, clean, clean)]))


def _encode_frames(plan: Plan) -> Latents:
    return encode_footage(plan, plan.start_footage[0]).expand(len(plan.prompts), -1, -1, -1, -1)


VIDEO_TO_VIDEO = AddOn(
    (StrengthOptions,),
    used=lambda options: options["video"] is not None,
    when="with `video`, a video to edit",
    check=check,
)


# --- a second pass


class RefinementOptions(TypedDict, total=False):
    """Options of a second pass at a larger size."""

    refine_size: Annotated[
        Text,
        option(
            "",
            "Width and height of a second pass, as 768x768: the video is scaled to them and sampled again from "
            "`refine_strength`.",
            group="Second pass",
        ),
    ]
    refine_strength: Annotated[
        Number,
        option(
            0.4,
            "Share of the steps that the second pass samples; less keeps more of the first.",
            group="Second pass",
            gt=0,
            le=1,
        ),
    ]


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of a text WIDTHxHEIGHT. Raises InputError for another form."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if match is None:
        raise InputError(f"`refine_size` is WIDTHxHEIGHT in pixels, such as 768x768, not {shown(text)}")
    return int(match[2]), int(match[1])


def second_pass(plan: Plan, video: Video, number: int) -> Plan:
    """Return the plan of the second pass over one video of a plan's batch. number: of the video in the batch."""
    from kineograph.media.footage import open_footage

    options = plan.read(RefinementOptions)
    (height, width), strength = parse_size(options["refine_size"]), options["refine_strength"]
    return replace(
        plan.part(number, number + 1),
        height=height,
        width=width,
        latent_shape=(1, *plan.model.latent_shape(height, width)),
        initial_latents=(),
        start_footage=(open_footage(video),) if strength < 1 else (),
        strength=strength,
    )


def check_refinement(combination: Combination) -> None:
    """Raise InputError for a size of the second pass that the model cannot have."""
    size = parse_size(combination.options["refine_size"])
    try:
        check_size(*size, combination.model.vae_scale_factor)
    except InputError as error:
        raise InputError(f"`refine_size`: {error}") from None


SECOND_PASS = AddOn(
    (RefinementOptions,),
    used=lambda options: bool(options["refine_size"]),
    when="with `refine_size`",
    check=check_refinement,
)
