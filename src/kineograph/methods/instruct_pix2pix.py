"""Video Instruct-Pix2Pix: an editing model changes every frame of a video by an instruction.

Each frame is conditioned on its own frame of the input, with guidance by text and by image (Brooks et al. 2023), and
attends to the first frame (Text2Video-Zero, section 3.5). The frames to edit enter through the condition, so any method
samples an edit.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import torch
from typing_extensions import TypedDict

from kineograph.denoise import Denoise, text_and_image_guidance
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.options import Number, option
from kineograph.plan import AddOn, BindCondition, Combination, Plan

if TYPE_CHECKING:
    from kineograph.models.conditioning.condition import Condition

DEFAULT_SAMPLER = "euler-ancestral"


class InstructPix2PixOptions(TypedDict, total=False):
    """Options of edits."""

    image_guidance_scale: Annotated[
        Number, option(1.5, "Weight of the frames to edit; 1 is a third faster.", group="Edits")
    ]


def bind_input(plan: Plan) -> Plan:
    """Return the plan of an edit with the clip's frames to edit in its conditions, and guidance by them."""
    frames = encode_input(plan).expand(len(plan.prompts), -1, -1, -1, -1)
    scale, image_scale = plan.guidance_scale, plan.read(InstructPix2PixOptions)["image_guidance_scale"]

    def add_frames(condition: Condition) -> Condition:
        return replace(plan.add_conditions(condition), channels=frames)

    def guide(bind: BindCondition, cond: Condition, uncond: Condition) -> Denoise:
        neither = replace(uncond, channels=torch.zeros_like(frames))
        return text_and_image_guidance(bind(cond), bind(uncond), bind(neither), scale, image_scale)

    return replace(plan, add_conditions=add_frames, guide=guide)


def encode_input(plan: Plan) -> Latents:
    """Encode the clip's frames to edit as the editing model reads them: without the latents' scaling factor."""
    from kineograph.media.footage import stack_in_chunks

    (footage,), model = plan.edit_footage, plan.model
    frames = islice(footage.frames(plan.height, plan.width), plan.frames.start, plan.frames.stop)
    encoded = [
        model.encode(torch.from_numpy(chunk).permute(0, 3, 1, 2)[None].float() / 255)
        for chunk in stack_in_chunks(frames, plan.chunk_size)
    ]
    shift, scale = model.vae.config.shift_factor or 0.0, model.vae.config.scaling_factor
    return torch.cat(encoded, dim=1) / scale + shift


def check(combination: Combination) -> None:
    """Raise InputError for a model that takes no input frames beside the latents."""
    if not combination.model.edits:
        raise InputError(
            f"{combination.model.name} generates from text alone: editing needs a model trained on instructions, such "
            "as timbrooks/instruct-pix2pix, or the pocket model's own, pocket-edit"
        )


EDITS = AddOn(
    (InstructPix2PixOptions,),
    used=lambda options: options["video"] is not None,
    when="with `video`, a video to edit",
    check=check,
)
