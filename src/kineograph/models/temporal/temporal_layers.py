"""The temporal layers of one video model, around an image U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.temporal.config import (
    AttentionConfig,
    ConvConfig,
    LayerConfig,
    ResamplingConfig,
    Site,
    TemporalConfig,
)
from kineograph.models.temporal.layers import (
    PLAIN,
    AttentionInBlock,
    AttentionPolicy,
    FrameRateEmbedding,
    TemporalConv,
    TemporalDownsample,
    TemporalTransformer,
    TemporalUpsample,
)

# (a layer of the image U-Net, its output, number of frames) -> the output of the temporal layer that follows it
AfterLayer = Callable[[nn.Module, Tensor, int], Tensor]


class TemporalLayers(nn.Module):
    """The temporal layers of one video model, named after the image U-Net's layers that they follow."""

    def __init__(self, unet: UNet2DConditionModel, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        self.names: list[str] = []
        self.after = nn.Module()
        for name, layer in _build(unet, config):
            self.names.append(name)
            add_submodule(self.after, name, layer)
        width, embedding = unet.config.block_out_channels[0], unet.time_embedding.linear_2.out_features
        self.fps = FrameRateEmbedding(width, embedding) if config.frame_rate else None

    def bind(self, unet: nn.Module, policy: AttentionPolicy = PLAIN) -> AfterLayer:
        """Return the function to call after each layer of this image U-Net.

        The layers are looked up anew for every forward pass: an adapter may have replaced one.
        """
        temporal = {unet.get_submodule(name): self.after.get_submodule(name) for name in self.names}

        def after(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
            return temporal[layer](x, frames, policy) if layer in temporal else x

        return after


class ImageLayer(NamedTuple):
    """A layer of an image U-Net that temporal layers can follow.

    kinds   the values of `Site.after` that include it
    lowest  True in the blocks of the lowest resolution
    level   index of the down- or upsampler, from the highest resolution on
    """

    name: str
    kinds: tuple[str, ...]
    channels: int
    mid_block: bool = False
    lowest: bool = False
    level: int = 0

    def is_at(self, site: Site) -> bool:
        """Return True if the site includes this layer."""
        resolution = site.resolution == "all" or (site.resolution == "lowest") == self.lowest
        return site.after in self.kinds and resolution and (site.mid_block or not self.mid_block)


def _build(unet: Any, config: TemporalConfig) -> Iterator[tuple[str, nn.Module]]:
    """Yield each temporal layer and the name of the image layer that it follows, in the order of the forward pass."""
    levels = len(unet.down_blocks) - 1
    for _, layer in config.layers:
        if isinstance(layer, ResamplingConfig) and len(layer.factors) != levels:
            raise InputError(
                f"this image network has {levels} downsamplers, and the temporal resampling has "
                f"{len(layer.factors)} factors: {layer.factors}"
            )
    for image_layer in _image_layers(unet):
        found = [layer for site, layer in config.layers if image_layer.is_at(site)]
        if len(found) > 1:
            raise InputError(f"expected one temporal layer after {image_layer.name}, got {len(found)}")
        if found:
            yield image_layer.name, _temporal_layer(found[0], image_layer, config.groups or unet.config.norm_num_groups)


def _temporal_layer(config: LayerConfig, after: ImageLayer, groups: int) -> nn.Module:
    if isinstance(config, ConvConfig):
        return TemporalConv(after.channels, groups, config.count)
    if isinstance(config, AttentionConfig):
        return AttentionInBlock(after.channels, config)
    if isinstance(config, ResamplingConfig):
        resampler = TemporalDownsample if after.name.startswith("down") else TemporalUpsample
        return resampler(after.channels, config.factors[after.level])
    return TemporalTransformer(after.channels, config, groups)


def _image_layers(unet: Any) -> Iterator[ImageLayer]:
    """Yield the layers of a U-Net that temporal layers can follow, in the forward pass's order, resamplers last."""
    yield ImageLayer("conv_in", ("conv_in",), unet.config.block_out_channels[0])
    levels = len(unet.down_blocks) - 1
    names = [f"down_blocks.{k}" for k in range(levels + 1)]
    names += [] if unet.mid_block is None else ["mid_block"]
    names += [f"up_blocks.{k}" for k in range(levels + 1)]
    for block_name in names:
        block = unet.get_submodule(block_name)
        mid, lowest = block_name == "mid_block", block_name in (f"down_blocks.{levels}", "mid_block", "up_blocks.0")
        transformers = getattr(block, "attentions", ())
        for k, resnet in enumerate(block.resnets):
            alone = k >= len(transformers)
            kinds = ("resnet", "stage") if alone and not mid else ("resnet",)
            yield ImageLayer(f"{block_name}.resnets.{k}", kinds, resnet.out_channels, mid, lowest)
            if alone:
                continue
            name = f"{block_name}.attentions.{k}"
            for n in range(len(transformers[k].transformer_blocks)):
                inside = f"{name}.transformer_blocks.{n}.attn2"
                yield ImageLayer(inside, ("cross_attention",), resnet.out_channels, mid, lowest)
            yield ImageLayer(name, ("transformer", "stage"), resnet.out_channels, mid, lowest)
    for k in range(levels):
        for name in (f"down_blocks.{k}.downsamplers.0", f"up_blocks.{levels - 1 - k}.upsamplers.0"):
            block = unet.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
            yield ImageLayer(name, ("resampler",), block.resnets[-1].out_channels, level=k)


def add_submodule(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Add a layer under a dotted name, creating the empty modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)
