"""Low-rank branches beside the layers of a video network, each with a scale for every call and every sample.

A motion adapter stands beside the projections of all attentions along time, a spatial adapter behind every image layer
that a layer along time follows (Chefer et al. 2024, Still-Moving). Neither is put on a network: like layers along time
they are modules kept apart, and what they add is an argument of the walk (docs/decisions/0009).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import preview_names
from kineograph.models.temporal.config import AfterLayer, TemporalLayers, add_submodule
from kineograph.models.temporal.layers import ApplyProjection, TemporalAttention

AdapterScale = float | Float[Tensor, " b"]  # of all samples, or one each

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v")
IMAGE_LAYERS = ("conv_in", "resnets", "attentions")
NO_TEMPORAL_LAYERS = (
    "is an image model without layers along time: load it with motion= (--motion-module), or take a video model, such "
    "as pocket-video"
)
MOTION_ADAPTER_HINT = (
    "take a video model that has one, such as pocket-video, or load this one with its own, motion_adapter=FILE "
    "(--motion-adapter FILE)"
)


class AdapterConfig(BaseModel):
    """How wide branches are inside, and beside which layers they stand: all whose names have one of these parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1)
    layers: tuple[str, ...] = Field(min_length=1)


MOTION_ADAPTER = AdapterConfig(rank=16, layers=ATTENTION_PROJECTIONS)  # ranks: the paper's are not known
SPATIAL_ADAPTER = AdapterConfig(rank=16, layers=IMAGE_LAYERS)


class LowRankBranch(nn.Module):
    """`scale * A_up A_down x` of the channels of x: nothing yet, since A_up begins as zero.

    Its two matrices have the names of LoRA's, which they are (Hu et al. 2021).
    """

    def __init__(self, reads: int, gives: int, rank: int) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(reads, rank, bias=False), nn.Linear(rank, gives, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor, scale: AdapterScale) -> Tensor:
        """`n ... c` -> `n ... c'`, where a scale for each sample is for n / b rows in a row."""
        added = self.lora_B(self.lora_A(x))
        if not isinstance(scale, Tensor):
            return scale * added
        return added * scale.to(added).repeat_interleave(len(added) // len(scale)).view(-1, *[1] * (added.ndim - 1))


class MotionAdapter(nn.Module):
    """A motion adapter: `P(x) = W_P x + scale * A_up A_down x` in the attentions along time.

    At scale 1 a video stands still, once it has learnt that; at 0 nothing is added; below it moves more than it did.
    """

    def __init__(self, temporal: TemporalLayers, config: AdapterConfig = MOTION_ADAPTER) -> None:
        super().__init__()
        self.config = config
        attentions = [name for name, layer in temporal.named_modules() if isinstance(layer, TemporalAttention)]
        self.names = _chosen([f"{name}.{part}" for name in attentions for part in ATTENTION_PROJECTIONS], config)
        self.beside = nn.Module()
        for name in self.names:
            layer: Any = temporal.get_submodule(name)
            add_submodule(self.beside, name, LowRankBranch(layer.in_features, layer.out_features, config.rank))

    def around(self, temporal: TemporalLayers, scale: AdapterScale) -> ApplyProjection:
        """How these layers' attentions project with the adapter at this scale."""
        found = {temporal.get_submodule(name): self.beside.get_submodule(name) for name in self.names}

        def project(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(x) + found[layer](x, scale) if layer in found else layer(x)

        return project


class SpatialAdapter(nn.Module):
    """A spatial adapter: `y' = y + scale * A_up A_down y` of what image layers give, before a layer along time."""

    def __init__(self, temporal: TemporalLayers, config: AdapterConfig = SPATIAL_ADAPTER) -> None:
        super().__init__()
        self.config = config
        self.names = _chosen(temporal.names, config)
        self.behind = nn.Module()
        for name in self.names:
            along: Any = temporal.after.get_submodule(name)
            add_submodule(self.behind, name, LowRankBranch(along.channels, along.channels, config.rank))

    def before(self, after: AfterLayer, unet: nn.Module, scale: AdapterScale) -> AfterLayer:
        """What is called after each layer of this image network: the adapter at this scale, then what was."""
        found = {unet.get_submodule(name): self.behind.get_submodule(name) for name in self.names}

        def adapted(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
            return after(layer, x + _of_channels(found[layer], x, scale) if layer in found else x, frames)

        return adapted


def _chosen(names: list[str], config: AdapterConfig) -> list[str]:
    found = [name for name in names if not set(config.layers).isdisjoint(name.split("."))]
    if not found:
        raise InputError(
            f"no layer here is one of {', '.join(config.layers)}: {preview_names(names)} can have branches"
        )
    return found


def _of_channels(branch: Callable[[Tensor, AdapterScale], Tensor], x: Tensor, scale: AdapterScale) -> Tensor:
    """A branch of pictures `n c h w`, or of tokens `n l c`."""
    return branch(x.permute(0, 2, 3, 1), scale).permute(0, 3, 1, 2) if x.ndim == 4 else branch(x, scale)


def is_off(scale: AdapterScale) -> bool:
    """Whether a branch at this scale adds nothing to any sample, and is left out."""
    return not (scale.any() if isinstance(scale, Tensor) else scale)


def check_scale_shape(name: str, scale: AdapterScale, count: int) -> None:
    """Raises InputError unless a scale is one number, or one for each of so many samples."""
    if isinstance(scale, Tensor) and scale.shape != torch.Size([count]):
        raise InputError(
            f"{name} is one number, or one for each of the {count} videos of a batch, not a tensor of "
            f"{' x '.join(map(str, scale.shape)) or 'no dimensions'}"
        )
