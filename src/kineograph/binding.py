"""Binding of a plan's models to their conditions: prompts, image, control videos, video to edit, guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kineograph.denoise import Denoise, classifier_free_guidance, refuse_nan, replace_known_frames
from kineograph.latents import Latents
from kineograph.plan import BindCondition, Plan
from kineograph.request import ImageOptions

if TYPE_CHECKING:
    from kineograph.condition import Condition
    from kineograph.media.images import InputImage
    from kineograph.models.model import Model
    from kineograph.models.schedule import Schedule
    from kineograph.models.unet.frame_attention import FrameAttention


class BoundModel(NamedTuple):
    """A model as functions `(x, sigma) -> x0`.

    guided     with all conditions and guidance
    bind_cond  binds it to all conditions without guidance: for inversion, which guidance would make diverge
    """

    guided: Denoise
    bind_cond: Callable[[], Denoise]


def bind_model(plan: Plan, frame_attention: FrameAttention) -> BoundModel:
    """Bind the plan's model to its conditions, with guidance."""
    model = plan.model
    cond, uncond = (
        plan.add_conditions(model.prompt(texts, size=(plan.height, plan.width), fps=plan.fps))
        for texts in (plan.prompts, plan.negative_prompts)
    )
    cond, uncond = add_image(model, plan, cond, uncond)
    bind = partial(
        model.bind,
        frame_attention=frame_attention,
        chunk_size=plan.chunk_size,
        window=plan.window or None,
        overlap=plan.overlap if plan.window else None,
        motion_scale=0.0 if model.temporal is None else plan.motion_scale,
    )
    guided = fit_to_sampler(plan.guide(bind, cond, uncond), plan.sampler, model.schedule)
    return BoundModel(guided, lambda: bind(cond))


def add_image(model: Model, plan: Plan, cond: Condition, uncond: Condition) -> tuple[Condition, Condition]:
    """Add image tokens for models that read them: the image's to `cond`, those of no image to `uncond`.

    A video model with an image encoder always has image tokens, an image model only with an image.
    """
    if model.image_encoder is None or (model.temporal is None and not plan.image):
        return cond, uncond
    scale, count = plan.read(ImageOptions)["image_scale"], len(plan.prompts)
    tokens = model.image_tokens(_to_tensor(plan.image[0]).expand(count, -1, -1, -1) if plan.image else None, count)
    return (
        replace(cond, image_tokens=tokens, image_scale=scale),
        replace(uncond, image_tokens=model.image_tokens(None, count), image_scale=scale),
    )


def pin_first_frame(plan: Plan, denoise: Denoise, initial_noise: Latents) -> Denoise:
    """Wrap the model so that the first frame of the first clip is the image, if the plan pins it."""
    if not plan.image or plan.clip > 0 or plan.read(ImageOptions)["first_frame"] != "pinned":
        return denoise
    from kineograph.models.conditioning.image_encoder import crop_to_size

    pixels = crop_to_size(_to_tensor(plan.image[0]), plan.height, plan.width)
    known = plan.model.encode(pixels[:, None]).to(plan.model.device)
    return replace_known_frames(denoise, known.expand(len(plan.prompts), -1, -1, -1, -1), initial_noise[:, :1])


def guide_by_text(scale: float, bind: BindCondition, cond: Condition, uncond: Condition) -> Denoise:
    """Apply classifier-free guidance, none for a scale of 1 or less."""
    return classifier_free_guidance(bind(cond), bind(uncond), max(1.0, scale))


def fit_to_sampler(denoise: Denoise, sampler: str, schedule: Schedule) -> Denoise:
    """Wrap the model: as a consistency model for "lcm", and with a check for NaN for every sampler."""
    return refuse_nan(schedule.consistency_denoise(denoise) if sampler == "lcm" else denoise)


def _to_tensor(image: InputImage) -> torch.Tensor:
    """Return an image as float [1 3 H W], values from 0 to 1."""
    return torch.from_numpy(image.pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
