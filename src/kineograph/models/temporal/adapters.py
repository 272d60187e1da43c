"""Low-rank adapters of a video network, each with a scale for every call and every sample.

A motion adapter adds to the projections of all temporal attentions; a spatial adapter adds to the output of every
image layer that a temporal layer follows (Chefer et al. 2024, Still-Moving). They change no network: they are modules
of their own, as temporal layers are, and the forward pass takes what they add as an argument (docs/decisions/0009).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import preview_names
from kineograph.models.temporal.config import Size
from kineograph.models.temporal.layers import ApplyProjection, TemporalAttention
from kineograph.models.temporal.temporal_layers import AfterLayer, TemporalLayers, add_submodule

AdapterScale = float | Float[Tensor, " b"]  # of all samples, or one each

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v")
NO_TEMPORAL_LAYERS = (
    "is an image model without temporal layers: load it with motion modules (`motion_module`), or take a video model, "
    "such as pocket-video"
)
MOTION_ADAPTER_HINT = (
    "take a video model that has one, such as pocket-video, or load this one with its own, `motion_adapter`"
)


class AdapterConfig(BaseModel):
    """Rank of an adapter's branches, and the layers that have one: all whose dotted names contain one of `layers`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Size
    layers: tuple[str, ...] = Field(min_length=1)


MOTION_ADAPTER = AdapterConfig(rank=16, layers=ATTENTION_PROJECTIONS)  # the paper does not state its ranks
SPATIAL_ADAPTER = AdapterConfig(rank=16, layers=("conv_in", "resnets", "attentions"))


class LowRankBranch(nn.Module):
    """`scale * A_up A_down x` of the channels of x, in LoRA's names (Hu et al. 2021); A_up, lora_B, starts at zero."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor, scale: AdapterScale) -> Tensor:
        """Return `n ... c'` of `n ... c`. A scale `[b]` is for n / b successive rows each."""
        added = self.lora_B(self.lora_A(x))
        if not isinstance(scale, Tensor):
            return scale * added
        return added * scale.to(added).repeat_interleave(len(added) // len(scale)).view(-1, *[1] * (added.ndim - 1))


class MotionAdapter(nn.Module):
    """Still-Moving's motion adapter: `P(x) = W_P x + scale * A_up A_down x` in the temporal attentions.

    Once trained, a video is frozen at scale 1; at 0 nothing is added; below 0 it moves more than without the adapter.
    """

    def __init__(self, temporal: TemporalLayers, config: AdapterConfig = MOTION_ADAPTER) -> None:
        super().__init__()
        self.config = config
        attentions = [name for name, layer in temporal.named_modules() if isinstance(layer, TemporalAttention)]
        self.names = _select([f"{name}.{part}" for name in attentions for part in ATTENTION_PROJECTIONS], config)
        self.beside = nn.Module()  # the branch beside each projection, under the projection's name
        for name in self.names:
            layer: Any = temporal.get_submodule(name)
            add_submodule(self.beside, name, LowRankBranch(layer.in_features, layer.out_features, config.rank))

    def bind(self, temporal: TemporalLayers, scale: AdapterScale) -> ApplyProjection:
        """Return the function that computes these temporal layers' projections with the adapter at this scale."""
        branches = {temporal.get_submodule(name): self.beside.get_submodule(name) for name in self.names}

        def project(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(x) + branches[layer](x, scale) if layer in branches else layer(x)

        return project


class SpatialAdapter(nn.Module):
    """Still-Moving's spatial adapter: `y' = y + scale * A_up A_down y` between an image layer and a temporal layer."""

    def __init__(self, temporal: TemporalLayers, config: AdapterConfig = SPATIAL_ADAPTER) -> None:
        super().__init__()
        self.config = config
        self.names = _select(temporal.names, config)
        self.behind = nn.Module()  # the branch behind each image layer, under the layer's name
        for name in self.names:
            layer: Any = temporal.after.get_submodule(name)
            add_submodule(self.behind, name, LowRankBranch(layer.channels, layer.channels, config.rank))

    def bind(self, after: AfterLayer, unet: nn.Module, scale: AdapterScale) -> AfterLayer:
        """Return `after` for the layers of this image U-Net, with the adapter at this scale before it."""
        branches = {unet.get_submodule(name): self.behind.get_submodule(name) for name in self.names}

        def adapted(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
            if layer in branches:
                branch = branches[layer]
                image = x.ndim == 4  # n c h w, else tokens n l c
                x = x + (branch(x.permute(0, 2, 3, 1), scale).permute(0, 3, 1, 2) if image else branch(x, scale))
            return after(layer, x, frames)

        return adapted


def _select(names: list[str], config: AdapterConfig) -> list[str]:
    chosen = [name for name in names if not set(config.layers).isdisjoint(name.split("."))]
    if not chosen:
        wanted = ", ".join(config.layers)
        raise InputError(f"no layer here is one of {wanted}: {preview_names(names)} can have branches")
    return chosen


def is_off(scale: AdapterScale) -> bool:
    """Return True if the scale is 0 for every sample, so that the branches are skipped."""
    return not (scale.any() if isinstance(scale, Tensor) else scale)


def check_scale_shape(name: str, scale: AdapterScale, count: int) -> None:
    """Raise InputError unless the scale is one number, or one for each of `count` samples."""
    if isinstance(scale, Tensor) and scale.shape != torch.Size([count]):
        raise InputError(
            f"{name} is one number, or one for each of the {count} videos of a batch, not a tensor of "
            f"{' x '.join(map(str, scale.shape)) or 'no dimensions'}"
        )
