"""By what a network is known again, whatever number format it is in and whatever adapters are on it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diffusers import UNet2DConditionModel
from torch import nn

from kineograph.models.temporal.config import TemporalLayers

TargetLayer = nn.Linear | nn.Conv2d

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
    """The layers that a LoRA can change, by their path in the network, whether or not one is on them already."""
    return {
        path.removesuffix(".base_layer"): layer
        for path, layer in network.named_modules()
        if isinstance(layer, TargetLayer) and ".lora_" not in path
    }


def flattened_names(network: nn.Module) -> dict[str, str]:
    """Every flattened name of every layer of a U-Net, a text encoder or layers along time -> its path."""
    kinds = {UNet2DConditionModel: _in_unet, TemporalLayers: _in_time}
    aliases = next((each for kind, each in kinds.items() if isinstance(network, kind)), _in_text_encoder)
    return {flatten_name(name): path for path in target_layers(network) for name in aliases(network, path)}


def flatten_name(name: str) -> str:
    """A name as kohya's scripts write it; diffusers used to put processors between."""
    return name.replace(".processor.", ".").replace(".", "_")


def _in_text_encoder(network: nn.Module, path: str) -> Iterator[str]:
    bare = path.removeprefix("text_model.")  # transformers had this level, dropped it, and kept it where it projects
    for name in (bare, f"text_model.{bare}"):
        yield name
        yield re.sub(r"(q|k|v|out)_proj$", r"to_\1", name)  # diffusers before peft


def _in_time(network: nn.Module, path: str) -> Iterator[str]:
    """As motion LoRAs name them: diffusers' and the released files'."""
    for name in (path, motion_module_name(path)):
        yield name
        yield name.removesuffix(".0")
        module = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name.removesuffix(".0"))
        yield re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", module)


def _in_unet(network: UNet2DConditionModel, path: str) -> Iterator[str]:
    yield path
    yield path.removesuffix(".0")  # to_out.0, which diffusers before peft called to_out
    yield ldm_layer_name(network, path)


def motion_module_name(path: str) -> str:
    """The name in diffusers' motion modules of what stands behind this layer of an image network."""
    site = r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets)\.(\d+)\."
    return re.sub(site, r"\1.motion_modules.\2.", path.removeprefix("after."))


def ldm_layer_name(network: UNet2DConditionModel, path: str) -> str:
    """The layer's name in Stable Diffusion's own code, which numbers all blocks of a side through."""
    found = BLOCK_LAYER.fullmatch(path)
    if found is None:
        return LDM_NAMES.get(path, path)
    side, block, kind, number, rest = found.groups()
    stride = network.config.layers_per_block + 1
    at = int(block or 0) * stride + int(number)
    inner = LDM_RESNET_NAMES.get(rest, rest)
    if kind == "downsamplers":
        return f"input_blocks.{at + stride}.0.op"
    if kind == "upsamplers":
        behind = 2 if getattr(network.up_blocks[int(block)], "attentions", None) else 1
        return f"output_blocks.{at + stride - 1}.{behind}.{inner}"
    place = int(kind == "attentions")
    if side == "mid":
        return f"middle_block.{2 * int(number) + place}.{inner}"
    return f"input_blocks.{at + 1}.{place}.{inner}" if side == "down" else f"output_blocks.{at}.{place}.{inner}"
