"""Networks as functions of a list of tensors, which `graph.convert` converts, called by their own arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from kineograph.models.openvino.graph import Body, network_dtype
from kineograph.models.unet.controlnet import ControlResiduals, VideoControlNet
from kineograph.models.unet.cross_attention import KeysAndValues, TokenKeyValues
from kineograph.models.unet.deepcache import DeepFeature
from kineograph.models.unet.forward import AddedResiduals, LayerInputs
from kineograph.models.unet.frame_attention import FrameGroups, KeyValueCache
from kineograph.models.unet.supported_layers import transformer_blocks
from kineograph.models.unet.video_unet import TemporalSettings, VideoUNet
from kineograph.models.unet.windows import one_window

# (network, what else the function depends on, function, tensors) -> the function's tensors
Call = Callable[[nn.Module, Hashable, Body, Sequence[Tensor]], Sequence[Tensor]]


class Layers(NamedTuple):
    """Inputs of all layers but tensors: the rest of `LayerInputs`, the same for all calls of one graph.

    groups        frame attention, with frames numbered from 0; those of the cache come after them
    image_scales  of each cross-attention layer's keys and values
    branch        of DeepCache, None without it
    reuse         True to read its feature, False to return it
    """

    groups: FrameGroups
    image_scales: tuple[tuple[float, ...], ...]
    branch: int | None = None
    reuse: bool = False


def call_unet(
    call: Call, net: VideoUNet, x: Tensor, residuals: AddedResiduals, inputs: LayerInputs, settings: TemporalSettings
) -> tuple[Tensor, Tensor | None]:
    """Compute `VideoUNet.run_layers`; keys and values of frames that later calls read go into the cache."""
    layers = describe_layers(inputs)
    sizes = tuple(len(each) for each in residuals)
    fixed = fix_settings(settings, inputs.frames)

    def body(network: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
        copied, given = cast(VideoUNet, network), iter(tensors)
        z = next(given)
        added = AddedResiduals(*([next(given) for _ in range(size)] for size in sizes))
        bound = restore_layers(copied.image_unet, layers, given)
        output, feature = copied.run_layers(z, added, bound, fixed.restore())
        kept = [] if feature is None or layers.reuse else [feature]
        return [output, *kept, *cached_tensors(copied.image_unet, layers, bound.cache)]

    tensors = [x, *(each for group in residuals for each in group), *layer_tensors(net.image_unet, layers, inputs)]
    output, *others = call(net, ("unet", layers, sizes, fixed), body, tensors)
    feature = None if inputs.deep is None else inputs.deep.tensor if layers.reuse else others.pop(0)
    fill_cache(net.image_unet, layers, inputs, others)
    return output, feature


def call_controlnet(
    call: Call, net: VideoControlNet, x: Tensor, control: Tensor, inputs: LayerInputs
) -> ControlResiduals:
    """Compute `VideoControlNet.run_layers`; keys and values of frames that later calls read go into the cache."""
    layers = describe_layers(inputs)
    count = len(cast(Any, net.controlnet.controlnet_down_blocks))

    def body(network: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
        copied, (z, maps, *rest) = cast(VideoControlNet, network), tensors
        bound = restore_layers(copied.controlnet, layers, iter(rest))
        skips, mid = copied.run_layers(z, maps, bound)
        return [*skips, mid, *cached_tensors(copied.controlnet, layers, bound.cache)]

    tensors = [x, control, *layer_tensors(net.controlnet, layers, inputs)]
    outputs = call(net, ("controlnet", layers), body, tensors)
    fill_cache(net.controlnet, layers, inputs, outputs[count + 1 :])
    return list(outputs[:count]), outputs[count]


class FixedSettings(NamedTuple):
    """`TemporalSettings` as numbers. windows: frames and weights of each, or None for one window with all frames."""

    motion_scale: float | tuple[float, ...]
    spatial_scale: float | tuple[float, ...]
    windows: tuple[Any, ...] | None

    def restore(self) -> TemporalSettings:
        """Return the settings; their windows are those of the number of frames that they were fixed for."""
        motion, spatial = (
            torch.tensor(each) if isinstance(each, tuple) else each for each in (self.motion_scale, self.spatial_scale)
        )
        windows = self.windows
        if windows is None:
            return TemporalSettings(motion, spatial, lambda frames: one_window(int(frames)))
        return TemporalSettings(motion, spatial, lambda frames: windows)


def fix_settings(settings: TemporalSettings, frames: int) -> FixedSettings:
    """Return settings as numbers, for a number of frames."""
    motion, spatial = (
        tuple(each.tolist()) if isinstance(each, Tensor) else each
        for each in (settings.motion_scale, settings.spatial_scale)
    )
    windows = None if settings.attention_windows is one_window else tuple(settings.attention_windows(frames))
    return FixedSettings(motion, spatial, windows)


def describe_layers(inputs: LayerInputs) -> Layers:
    """Return what the layers of a U-Net or ControlNet read besides tensors."""
    groups, count, deep = inputs.groups, inputs.frames, inputs.deep
    renumbered = groups._replace(
        frames=list(range(count)),
        cached=list(range(count, count + len(groups.cached))),
        to_cache={-1 - at: at for frame, at in groups.to_cache.items() if frame not in groups.cached},
    )
    scales = tuple(tuple(each.scale for each in pairs) for pairs in inputs.key_values.values())
    if deep is None:
        return Layers(renumbered, scales)
    return Layers(renumbered, scales, deep.branch, deep.tensor is not None)


def layer_tensors(network: nn.Module, layers: Layers, inputs: LayerInputs) -> list[Tensor]:
    """Return the tensors of a network's inputs, in the order in which `restore_layers` reads them."""
    frames, cached, deep = inputs.groups.frames, [], inputs.deep
    tokens = [
        each[:, frames] if each.ndim == 4 else each
        for pairs in inputs.key_values.values()
        for pair in pairs
        for each in (pair.key, pair.value)
    ]
    evaluated = _evaluated_layers(network, layers) if inputs.groups.cached else []
    for frame in inputs.groups.cached:
        of_frame = (inputs.cache or {})[frame]
        cached += [each for layer in evaluated for each in of_frame[layer]]
    feature = [] if deep is None or deep.tensor is None else [deep.tensor]
    return [inputs.temb, *tokens, *cached, *feature]


def in_float32(key_values: TokenKeyValues) -> TokenKeyValues:
    """Return keys and values as graphs read them, so that they are not cast for each evaluation."""
    return {
        layer: [
            KeysAndValues(each.key.float().contiguous(), each.value.float().contiguous(), each.scale) for each in pairs
        ]
        for layer, pairs in key_values.items()
    }


def restore_layers(network: nn.Module, layers: Layers, tensors: Iterator[Tensor]) -> LayerInputs:
    """Return the inputs of a network's layers from their tensors, in the network's dtype."""
    given = (each.to(network_dtype(network)) for each in tensors)
    temb = next(given)
    key_values = {
        layer: [KeysAndValues(next(given), next(given), scale) for scale in scales]
        for layer, scales in zip(_layers(network, "attn2"), layers.image_scales, strict=True)
    }
    cache: KeyValueCache = {
        frame: {layer: (next(given), next(given)) for layer in _evaluated_layers(network, layers)}
        for frame in layers.groups.cached
    }
    deep = None if layers.branch is None else DeepFeature(layers.branch, next(given) if layers.reuse else None)
    return LayerInputs(temb, key_values, layers.groups, cache, deep=deep)


def cached_tensors(network: nn.Module, layers: Layers, cache: KeyValueCache | None) -> list[Tensor]:
    """Return the keys and values that a forward pass put into the cache."""
    assert cache is not None
    evaluated = _evaluated_layers(network, layers)
    return [each for frame in layers.groups.to_cache for layer in evaluated for each in cache[frame][layer]]


def fill_cache(network: nn.Module, layers: Layers, inputs: LayerInputs, tensors: Sequence[Tensor]) -> None:
    """Put keys and values, in the order of `cached_tensors`, into the cache of a forward pass."""
    given, cache = iter(tensors), inputs.cache
    if cache is None or not inputs.groups.to_cache:
        return
    evaluated = _evaluated_layers(network, layers)
    for frame in inputs.groups.to_cache:
        if frame not in inputs.groups.cached:
            cache.setdefault(frame, {}).update({layer: (next(given), next(given)) for layer in evaluated})


def _layers(network: nn.Module, name: str) -> list[nn.Module]:
    """Return the attention layers of this name of all transformer blocks, in a fixed order."""
    return [getattr(block, name) for _, block in transformer_blocks(network)]


def _evaluated_layers(network: Any, layers: Layers) -> list[nn.Module]:
    """Return the self-attention layers that a forward pass evaluates: with a feature of DeepCache, the outer ones."""
    if not layers.reuse or layers.branch is None:
        return _layers(network, "attn1")
    down: list[nn.Module | None] = [None]  # of each skip connection, the first convolution's at the start
    for block in network.down_blocks:
        down += getattr(block, "attentions", None) or [None] * len(block.resnets)
        down += [None] * len(block.downsamplers or ())
    up = [
        each
        for block in network.up_blocks
        for each in getattr(block, "attentions", None) or [None] * len(block.resnets)
    ]
    outer = [each for each in (*down[: layers.branch + 1], *up[-layers.branch - 1 :]) if each is not None]
    return [layer for transformer in outer for layer in _layers(transformer, "attn1")]
