"""Names of the layers that a LoRA can change, as kohya, peft, diffusers and the original code write them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from kineograph.models.temporal.temporal_layers import TemporalLayers

TargetLayer = nn.Linear | nn.Conv2d
WeightedLayer = TargetLayer | nn.GroupNorm | nn.LayerNorm | nn.Embedding

LDM_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
LDM_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK_LAYER = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def target_layers(network: nn.Module) -> dict[str, TargetLayer]:
    """Return the linear layers and convolutions, by their path in the network; a LoRA may be on them already."""
    return {path: layer for path, layer in weighted_layers(network).items() if isinstance(layer, TargetLayer)}


def weighted_layers(network: nn.Module) -> dict[str, WeightedLayer]:
    """Return the layers that a file of LoRAs can change, by their path in the network."""
    return {
        path.removesuffix(".base_layer"): layer
        for path, layer in network.named_modules()
        if isinstance(layer, WeightedLayer) and ".lora_" not in path
    }


def flattened_names(network: nn.Module) -> dict[str, str]:
    """Return the path of every layer of a U-Net, a text encoder or temporal layers, by each of its flattened names."""
    kinds = {UNet2DConditionModel: _unet_names, TemporalLayers: _temporal_names}
    aliases = next((names for kind, names in kinds.items() if isinstance(network, kind)), _text_encoder_names)
    return {flatten_name(name): path for path in weighted_layers(network) for name in aliases(network, path)}


def flatten_name(name: str) -> str:
    """Return a name as kohya's scripts write it, without the `processor` that diffusers used to put in."""
    return name.replace(".processor.", ".").replace(".", "_")


def _text_encoder_names(network: nn.Module, path: str) -> Iterator[str]:
    # transformers dropped `text_model`, except in CLIPTextModelWithProjection
    bare = path.removeprefix("text_model.")
    for name in (bare, f"text_model.{bare}"):
        yield name
        yield re.sub(r"(q|k|v|out)_proj$", r"to_\1", name)  # diffusers before peft


def _temporal_names(network: nn.Module, path: str) -> Iterator[str]:
    """Yield the names in motion LoRAs: those of diffusers and of the released files."""
    for name in (path, motion_module_name(path)):
        yield name
        yield name.removesuffix(".0")
        module = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name.removesuffix(".0"))
        yield re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", module)


def _unet_names(network: UNet2DConditionModel, path: str) -> Iterator[str]:
    yield path
    yield path.removesuffix(".0")  # to_out.0, which diffusers before peft called to_out
    yield ldm_layer_name(network, path)


def motion_module_name(path: str) -> str:
    """Return the name that a temporal layer, named after the image layer before it, has in diffusers' MotionAdapter."""
    site = r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets)\.(\d+)\."
    return re.sub(site, r"\1.motion_modules.\2.", path.removeprefix("after."))


def ldm_layer_name(network: UNet2DConditionModel | ControlNetModel, path: str) -> str:
    """Return a layer's name in Stable Diffusion's original code, which numbers the layers of each side in a row."""
    found = BLOCK_LAYER.fullmatch(path)
    if found is None:
        return LDM_NAMES.get(path, path)
    side, block, kind, number, rest = found.groups()
    stride = network.config.layers_per_block + 1
    index = int(block or 0) * stride + int(number)
    inner = LDM_RESNET_NAMES.get(rest, rest)
    if kind == "downsamplers":
        return f"input_blocks.{index + stride}.0.op"
    if kind == "upsamplers":
        position = 2 if getattr(network.up_blocks[int(block)], "attentions", None) else 1
        return f"output_blocks.{index + stride - 1}.{position}.{inner}"
    position = int(kind == "attentions")
    if side == "mid":
        return f"middle_block.{2 * int(number) + position}.{inner}"
    return (
        f"input_blocks.{index + 1}.{position}.{inner}"
        if side == "down"
        else f"output_blocks.{index}.{position}.{inner}"
    )
