"""ControlNet: maps of a control video, such as edges or poses, guide the frames (Zhang et al. 2023).

The residuals enter through the condition, so any method that binds conditions of an image network takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kineograph.condition import Condition
from kineograph.media.annotators import load_annotator
from kineograph.media.footage import Footage, stack_in_chunks
from kineograph.models.model import Model
from kineograph.models.unet.controlnet import ControlEmbedding, VideoControlNet, bind_controlnet, sum_residuals
from kineograph.models.unet.frame_attention import first, own
from kineograph.plan import Plan
from kineograph.request import Control, Request


def bind_controls(model: Model, request: Request, plan: Plan) -> Callable[[Condition], Condition]:
    """Read the control videos, once, and return the function that adds their residuals to a condition.

    A ControlNet has the model's frame attention: the first frame's, or each frame's own in a video model.
    """
    if not request.control:
        return plan.add_control
    nets = [model.control(control.kind) for control in request.control]
    embeddings = [
        _embed_maps(net, control, footage, plan, request.chunk_size, model)
        for net, control, footage in zip(nets, request.control, plan.inputs.footage, strict=True)
    ]
    frame_attention = first if model.temporal is None else own

    def add_control(condition: Condition) -> Condition:
        residuals = [
            bind_controlnet(
                net,
                model.net.image_condition(condition),
                embedding,
                frame_attention=frame_attention,
                scale=control.scale,
                start=control.start,
                end=control.end,
                timesteps=len(model.schedule.sigmas),
            )
            for net, embedding, control in zip(nets, embeddings, request.control, strict=True)
        ]
        return replace(condition, residuals=sum_residuals(*residuals))

    return add_control


def _embed_maps(
    net: VideoControlNet, control: Control, footage: Footage, plan: Plan, chunk_size: int, model: Model
) -> ControlEmbedding:
    """Embed the control's maps, a few frames in memory at a time."""
    maps = footage.frames(plan.height, plan.width)
    if not control.ready:
        maps = map(load_annotator(control.kind, control.annotator, model.device), maps)
    return torch.cat([net.embed(_to_tensor(chunk)) for chunk in stack_in_chunks(maps, chunk_size)])


def _to_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
