"""Video Instruct-Pix2Pix: an editing model changes every frame of a video by an instruction.

Each frame is conditioned on its own frame of the input, with guidance by text and by image (Brooks et al. 2023), and
attends to the first frame (Text2Video-Zero, section 3.5). The frames to edit enter through the condition, so any method
samples an edit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import torch
from typing_extensions import TypedDict

from kineograph.denoise import Denoise, classifier_free_guidance, text_and_image_guidance
from kineograph.latents import Latents
from kineograph.options import Number, option
from kineograph.plan import AddOn, BindCondition, Combination, Plan, encode_footage

if TYPE_CHECKING:
    from kineograph.models.conditioning.condition import Condition

DEFAULT_SAMPLER = "euler-ancestral"


class InstructPix2PixOptions(TypedDict, total=False):
    """Options of edits."""

    image_guidance_scale: Annotated[
        Number,
        option(
            1.5,
            "Weight of the video's own frames with an editing model: a higher one changes less; 1 turns this guidance "
            "off, which is a third faster.",
            group="Edits",
        ),
    ]


def bind_input(plan: Plan) -> Plan:
    """Return the plan of an edit with the clip's frames to edit in its conditions, and guidance by them."""
    frames = encode_input(plan).expand(len(plan.prompts), -1, -1, -1, -1)
    scale, image_scale = plan.guidance_scale, plan.read(InstructPix2PixOptions)["image_guidance_scale"]

    def add_frames(condition: Condition) -> Condition:
        return replace(plan.add_conditions(condition), channels=frames)

    def guide(bind: BindCondition, cond: Condition, uncond: Condition) -> Denoise:
        neither = replace(uncond, channels=torch.zeros_like(frames))
        if cond.guidance_scale is not None:  # the network reads the scale of the text itself
            return classifier_free_guidance(bind(cond), bind(replace(cond, channels=neither.channels)), image_scale)
        return text_and_image_guidance(bind(cond), bind(uncond), bind(neither), scale, image_scale)

    return replace(plan, add_conditions=add_frames, guide=guide)


def encode_input(plan: Plan) -> Latents:
    """Encode the clip's frames to edit as the editing model reads them: without the latents' scaling factor."""
    from kineograph.models.vae.autoencoder import unscale_latents

    return unscale_latents(plan.model.vae, encode_footage(plan, plan.edit_footage[0]))


def unread(combination: Combination) -> dict[str, str]:
    """Return the options without an effect: guidance by frames of a model that reads none."""
    if combination.model.edits:
        return {}
    return {"image_guidance_scale": f"{combination.model.name} is not an editing model, which would read the frames"}


EDITS = AddOn(
    (InstructPix2PixOptions,),
    used=lambda options: options["video"] is not None,
    when="with `video`, a video to edit",
    unread=unread,
)
