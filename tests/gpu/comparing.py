"""Estimates and frames of models, to compare a device with the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import kineograph as kg
from kineograph.models.model import Model

FEW = {"num_frames": 3, "num_inference_steps": 2, "seed": 3, "height": 64, "width": 64, "guidance_scale": 3.0}


def networks(model: Model) -> Iterator[nn.Module]:
    """Yield all networks of a model that are in memory, but for its ControlNets."""
    yield from (model.net, model.vae, *(each.network for each in model.text_encoders))
    if model.image_encoder is not None:
        yield model.image_encoder.network
    if model.temporal_decoder is not None:
        yield model.temporal_decoder


def device_types(model: Model) -> set[str]:
    return {weight.device.type for network in networks(model) for weight in network.parameters()}


@torch.no_grad()
def estimate(model: Model, frames: int = 3) -> Tensor:
    """Return a model's estimate of x0 from fixed noise, on the CPU."""
    x = torch.randn(1, frames, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    return model.bind(model.prompt(["a red fish"]))(5 * x, 5.0).cpu()


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the root of the mean square of the difference, relative to what is wanted."""
    return float((got.float().cpu() - wanted.float()).norm() / wanted.float().norm())


def grey_levels(one: kg.Video, other: kg.Video) -> float:
    """Return the mean absolute difference of two videos, in grey levels of 255."""
    return float(np.abs(one.frames.astype(int) - other.frames).mean())
