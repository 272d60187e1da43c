"""Where layers along time stand in an image network, and which: a family of video models is one `TemporalConfig`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.temporal.layers import ApplyProjection, AttentionInBlock, FrameRate, TemporalConv, TemporalTransformer, apply_projection, as_frames, as_frames_misread
from kineograph.models.temporal.resampling import TemporalDownsample, TemporalUpsample

# (layer just left, its output, number of frames) -> that output after the frames have seen each other
AfterLayer = Callable[[nn.Module, Tensor, int], Tensor]


class TransformerConfig(BaseModel):
    """A temporal transformer. Heads or head_width may be left open: as many, or as wide, as fit the channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int | None = None
    head_width: int | None = None
    depth: int = 1
    attentions: int = 2
    positions: int | None = None
    relative: int | None = None
    widening: int = 4
    misread: bool = False

    def split(self, channels: int) -> tuple[int, int]:
        """Heads, and the width of each."""
        heads = self.heads or channels // (self.head_width or channels)
        return heads, self.head_width or channels // heads


class TemporalConfig(BaseModel):
    """All that a video model adds to an image network along time.

    num_frames   how many frames it was trained on
    entry        the transformer after conv_in
    transformer  that after every spatial transformer
    lonely       whether it stands after resnets too that no spatial transformer follows
    middle       whether it stands in the middle block too
    convolution  whether temporal convolutions follow every resnet
    in_a_row     how many of them
    coarsest     whether transformers stand in the blocks of the smallest pictures alone, and convolutions elsewhere
    fewer        by what the number of frames is divided behind each downsampler, and multiplied on the way up
    in_block     attention between a spatial block's cross-attention and its feed-forward
    frame_rate   whether frames a second are told beside the timestep
    joint_norms  whether the group norms of resnets, and the last one, span all frames
    groups       of the group norms here; None for as many as the image network's have
    noise_ratio  how many parts of noise that all frames share come to one of a frame's own (`noise.mixed`)
    solver       by which its authors draw
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = 16
    entry: TransformerConfig | None = None
    transformer: TransformerConfig | None = None
    lonely: bool = False
    middle: bool = True
    convolution: bool = False
    in_a_row: int = 4
    coarsest: bool = False
    fewer: tuple[int, ...] = ()
    in_block: TransformerConfig | None = None
    frame_rate: bool = False
    joint_norms: bool = False
    groups: int | None = None
    noise_ratio: float = 0.0
    solver: str = "ddim"

    @model_validator(mode="after")
    def _places(self) -> TemporalConfig:
        if self.in_block is not None and self.transformer is not None:
            raise ValueError("expected attention inside the spatial blocks or transformers behind them, got both")
        return self

    @property
    def longest(self) -> int | None:
        """How many frames it can see together; None for any number: relative distances are taken to clip."""
        known = [each.positions for each in (self.entry, self.transformer, self.in_block) if each is not None]
        return min((positions for positions in known if positions is not None), default=None)


class TemporalLayers(nn.Module):
    """The layers along time of one video model. They are named after the image network's layers that they follow."""

    def __init__(self, unet: UNet2DConditionModel, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        self.names: list[str] = []
        self.after = nn.Module()
        for name, layer in _sites(unet, config):
            self.names.append(name)
            add_submodule(self.after, name, layer)
        self.fps = _frame_rate(unet) if config.frame_rate else None

    def around(self, unet: nn.Module, project: ApplyProjection = apply_projection) -> AfterLayer:
        """These layers as what is called after each layer of this image network.

        project: how their attentions' queries, keys and values are made.
        Looked up anew for every walk: adapters may have been put in a layer's place.
        """
        found = {unet.get_submodule(name): self.after.get_submodule(name) for name in self.names}

        def after(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
            return found[layer](x, frames, project) if layer in found else x

        return after


def _sites(unet: UNet2DConditionModel, config: TemporalConfig) -> Iterator[tuple[str, nn.Module]]:
    """Each layer along time under the name of the layer that it follows, in the order of the walk."""
    groups = config.groups or unet.config.norm_num_groups
    if config.entry is not None:
        yield "conv_in", _transformer(config.entry, unet.config.block_out_channels[0], groups)
    for block, resnet, spatial, channels in _stages(unet):
        coarse = block in (f"down_blocks.{len(unet.down_blocks) - 1}", "mid_block", "up_blocks.0")
        if config.convolution and not (config.coarsest and coarse):
            yield resnet, TemporalConv(channels, groups, config.in_a_row)
        if spatial is not None and config.in_block is not None:
            for name in _blocks(unet, spatial):
                yield name, _in_block(config.in_block, channels)
        place = spatial or (resnet if config.lonely and block != "mid_block" else None)
        attends = (coarse or not config.coarsest) and (config.middle or block != "mid_block")
        if config.transformer is not None and place and attends:
            yield place, _transformer(config.transformer, channels, groups)
    yield from _paces(unet, config.fewer)


def _paces(unet: Any, fewer: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
    """What changes the number of frames, behind each down- and each upsampler."""
    steps = len(unet.down_blocks) - 1
    if len(fewer) not in (0, steps):
        raise InputError(f"this image network has {steps} downsamplers, and fewer says {len(fewer)} numbers: {fewer}")
    for k, factor in enumerate(fewer):
        down, up = unet.down_blocks[k], unet.up_blocks[steps - 1 - k]
        yield f"down_blocks.{k}.downsamplers.0", TemporalDownsample(down.resnets[-1].out_channels, factor)
        yield f"up_blocks.{steps - 1 - k}.upsamplers.0", TemporalUpsample(up.resnets[-1].out_channels, factor)


def _stages(unet: Any) -> Iterator[tuple[str, str, str | None, int]]:
    """Block, resnet, the spatial transformer that follows it (if one does), and channels, of a U-Net."""
    blocks: Mapping[str, Any] = {
        **{f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)},
        **({} if unet.mid_block is None else {"mid_block": unet.mid_block}),
        **{f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)},
    }
    for name, block in blocks.items():
        spatial = len(getattr(block, "attentions", ()))
        for k, resnet in enumerate(block.resnets):
            yield name, f"{name}.resnets.{k}", f"{name}.attentions.{k}" if k < spatial else None, resnet.out_channels


def _blocks(unet: UNet2DConditionModel, spatial: str) -> list[str]:
    count = len(unet.get_submodule(spatial).transformer_blocks)
    return [f"{spatial}.transformer_blocks.{k}.attn2" for k in range(count)]


def _transformer(config: TransformerConfig, channels: int, groups: int) -> TemporalTransformer:
    heads, width = config.split(channels)
    return TemporalTransformer(
        channels, heads, width, groups=groups, depth=config.depth, attentions=config.attentions,
        positions=config.positions, relative=config.relative, widening=config.widening,
        back=as_frames_misread if config.misread else as_frames,
    )  # fmt: skip


def _in_block(config: TransformerConfig, channels: int) -> AttentionInBlock:
    return AttentionInBlock(channels, *config.split(channels), positions=config.positions, relative=config.relative)


def _frame_rate(unet: UNet2DConditionModel) -> FrameRate:
    return FrameRate(unet.config.block_out_channels[0], unet.time_embedding.linear_2.out_features)


def add_submodule(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer into a tree of empty modules under a name with dots."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)
