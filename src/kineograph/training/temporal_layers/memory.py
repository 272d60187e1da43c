"""How much memory a step of the training keeps for the backward pass, found by a walk without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from kineograph.condition import Condition
from kineograph.models.model import Model
from kineograph.models.unet.forward import CallStage, call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.temporal_layers.settings import Stage

HALF = 0.55  # of float32's bytes: what mixed precision keeps, some of it in float32


class LayerMemory(NamedTuple):
    """Bytes that one part of the walk was given, and that it keeps itself."""

    given: int
    inside: int


def activation_bytes(model: Model, stage: Stage, batch: int, precision: str) -> int:
    """Bytes that the network keeps for the gradients of so many videos of a stage, about.

    The walk is on torch's meta device, takes no memory, and knows of no kernel that keeps less.
    """
    parts: list[LayerMemory] = []

    def through(part: CallStage, *given: object) -> Tensor:
        with _counted(weights) as kept:
            left = part(*given)
        parts.append(LayerMemory(sum(each.nbytes for each in given if isinstance(each, Tensor)), sum(kept.values())))
        return left

    net = VideoUNet(model.net.image_unet, model.net.temporal, through)
    weights = {name: _bare(each) for name, each in net.state_dict(keep_vars=True).items()}
    with _counted(weights) as outside:
        functional_call(net, weights, _given(model, stage, batch))
    once = model.net.through is call_directly
    kept = sum(each.inside for each in parts)
    again = sum(each.given for each in parts) + max(each.inside for each in parts)
    return round((sum(outside.values()) + (kept if once else again)) * (1 if precision == "no" else HALF))


def _bare(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)


@contextmanager
def _counted(weights: dict[str, Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of all that is kept for gradients within, but for the weights, by where it is kept."""
    kept: dict[int, int] = {}
    held = []  # so that no two things come to be in one place, one after the other
    known = {each.untyped_storage()._cdata for each in weights.values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _given(model: Model, stage: Stage, batch: int) -> tuple[Tensor, Tensor, Condition]:
    """What the network is called with, on the meta device."""
    like = model.prompt([""], size=(stage.height, stage.width))
    embedding = None if like.embedding is None else like.embedding.expand(batch, -1).to("meta")
    told = Condition(like.tokens.expand(batch, -1, -1).to("meta"), embedding=embedding)
    z = torch.empty(batch, stage.num_frames, *model.latent_shape(stage.height, stage.width), device="meta")
    return z, torch.zeros(batch, dtype=torch.int64, device="meta"), told
