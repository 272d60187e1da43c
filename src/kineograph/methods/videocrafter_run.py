"""A video model draws from a prompt, and from a picture if there is one, as a request asks for it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kineograph import noise
from kineograph.condition import Condition
from kineograph.denoise import Denoise, replace_known_frames
from kineograph.errors import InputError
from kineograph.generate import controls
from kineograph.media.images import Picture
from kineograph.methods import videocrafter as method
from kineograph.models.conditioning.image_encoder import crop_to_size
from kineograph.models.model import Model
from kineograph.plan import DESCENTS, Plan, SamplingRun, begun, following, look
from kineograph.request import Request


def plan(model: Model, request: Request, start: Plan) -> SamplingRun:
    """The walk of a clip."""
    assert model.temporal is not None, "settled by recipes.settling"
    sigmas = DESCENTS[start.solver].rungs(model.schedule.sigmas, request.num_inference_steps)
    ratio = model.temporal.noise_ratio
    fresh = noise.partly_shared(ratio, start.seed, start.frames, start.shape, start.clip.number).to(model.device)
    begin = begun(request, start, fresh)
    estimate = _look(model, request, start)
    if request.first_frame == "pinned" and start.inputs.picture and start.clip.past is None:
        known = model.encode(crop_to_size(_pixels(start.inputs.picture), start.height, start.width)[:, None]).to(
            model.device
        )
        estimate = replace_known_frames(estimate, known, begin[:, :1])
    sampler = DESCENTS[start.solver].solver(noise.partly_shared_per_sigma(ratio, start.seed, start.frames, start.shape))
    return SamplingRun(
        len(sigmas), begin, method.sample(estimate, begin, sigmas, sampler=following(request, start, sampler, sigmas))
    )


def _look(model: Model, request: Request, start: Plan) -> Denoise:
    """The model told the prompt, the frame rate and the picture, and guided away from what it is told of nothing."""
    with_maps = controls.bound(model, request, start)
    said, unsaid = (
        with_maps(model.prompt([text], size=(start.height, start.width), fps=start.inputs.fps))
        for text in (request.prompt, request.negative_prompt)
    )
    bind = partial(model.bind, window=request.window, overlap=request.overlap, motion_scale=request.motion_scale)
    told, blank = (bind(each) for each in _shown(model, request, start, said, unsaid))
    return look(request, start, model.schedule, told, blank)


def _shown(
    model: Model, request: Request, start: Plan, said: Condition, unsaid: Condition
) -> tuple[Condition, Condition]:
    """The conditions with the picture, and with no picture, for models that are shown one."""
    if model.reader is None:
        if request.image is not None and request.first_frame == "shown":
            raise InputError(
                f"{model.name} is shown no pictures: take an image-to-video model such as pocket-animate, load the "
                "model with an IP-Adapter, or pin the first frame to the picture (--first-frame pinned)"
            )
        return said, unsaid
    seen = model.shown(_pixels(start.inputs.picture) if start.inputs.picture else None)
    told = replace(said, image_tokens=seen, image_scale=request.image_scale)
    return told, replace(unsaid, image_tokens=model.shown(None), image_scale=request.image_scale)


def _pixels(picture: Picture) -> Float[Tensor, "1 3 H W"]:
    return torch.from_numpy(picture.pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
