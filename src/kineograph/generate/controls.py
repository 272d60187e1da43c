"""What ControlNets add while a video is drawn: their maps, made from videos frame by frame, bound to what is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kineograph.condition import Condition
from kineograph.media.annotators import annotator
from kineograph.media.footage import Footage, in_chunks
from kineograph.models.model import Model
from kineograph.models.unet.controlnet import ControlEmbedding, VideoControlNet, bind_controlnet, sum_residuals
from kineograph.models.unet.frame_attention import first, own
from kineograph.plan import Plan
from kineograph.request import Control, Request

Told = Callable[[Condition], Condition]


def bound(model: Model, request: Request, start: Plan) -> Told:
    """What a condition becomes when the request's controls are added to it. The videos are read here, once.

    A ControlNet's frames see each other as the model's own do: first-frame attention, or layers along time instead.
    """
    if not request.control:
        return lambda condition: condition
    nets = [model.control(control.kind) for control in request.control]
    cues = [
        _cues(net, control, footage, start, request.chunk_size, model)
        for net, control, footage in zip(nets, request.control, start.inputs.footage, strict=True)
    ]

    see = first if model.temporal is None else own

    def told(condition: Condition) -> Condition:
        each = [
            bind_controlnet(
                net, model.net.of_image(condition), cue, see=see, scale=control.scale, start=control.start,
                end=control.end, timesteps=len(model.schedule.sigmas),
            )
            for net, cue, control in zip(nets, cues, request.control, strict=True)
        ]  # fmt: skip
        return replace(condition, residuals=sum_residuals(*each))

    return told


def _cues(
    net: VideoControlNet, control: Control, footage: Footage, start: Plan, at_once: int, model: Model
) -> ControlEmbedding:
    """The control's pictures as the ControlNet takes them in: a few frames in memory at a time."""
    draw = _as_it_is if control.ready else annotator(control.kind, control.annotator, model.device)
    maps = (draw(frame) for frame in footage.frames(start.height, start.width))
    return torch.cat([net.embed(_as_tensor(chunk)) for chunk in in_chunks(maps, at_once)])


def _as_it_is(frame: np.ndarray) -> np.ndarray:
    return frame


def _as_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
