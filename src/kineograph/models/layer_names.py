"""The names that a layer goes by in the files of different trainers.

Flattened, with "_" for ".", because kohya's scripts write them so and nothing is lost by it.
Source: the module names of diffusers, of transformers, and of Stable Diffusion's own code ("LDM" names below).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from diffusers import UNet2DConditionModel
from torch import nn

from kineograph.models.temporal_layers import TemporalLayers

Layer = nn.Linear | nn.Conv2d

IN_LDM = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
IN_LDM_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ROOM = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def layers(network: nn.Module) -> dict[str, Layer]:
    """The layers that a LoRA can change, by their path in the network, whether or not one is on them already."""
    return {
        path.removesuffix(".base_layer"): layer
        for path, layer in network.named_modules()
        if isinstance(layer, Layer) and ".lora_" not in path
    }


def flat_names(network: nn.Module) -> dict[str, str]:
    """Every flattened name of every layer of a U-Net, a text encoder or layers along time -> its path."""
    kinds = {UNet2DConditionModel: _in_unet, TemporalLayers: _in_time}
    aliases = next((each for kind, each in kinds.items() if isinstance(network, kind)), _in_text_encoder)
    return {flat(name): path for path in layers(network) for name in aliases(network, path)}


def flat(name: str) -> str:
    """A name as kohya's scripts write it; diffusers used to put processors between."""
    return name.replace(".processor.", ".").replace(".", "_")


def _in_text_encoder(network: nn.Module, path: str) -> Iterator[str]:
    bare = path.removeprefix("text_model.")  # transformers had this level, dropped it, and kept it where it projects
    for name in (bare, f"text_model.{bare}"):
        yield name
        yield re.sub(r"(q|k|v|out)_proj$", r"to_\1", name)  # diffusers before peft


def _in_time(network: nn.Module, path: str) -> Iterator[str]:
    """As motion LoRAs name them: diffusers' and the released files'."""
    for name in (path, in_motion_adapter(path)):
        yield name
        yield name.removesuffix(".0")
        module = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name.removesuffix(".0"))
        yield re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", module)


def _in_unet(network: UNet2DConditionModel, path: str) -> Iterator[str]:
    yield path
    yield path.removesuffix(".0")  # to_out.0, which diffusers before peft called to_out
    yield in_ldm(network, path)


def in_motion_adapter(path: str) -> str:
    """The name in diffusers' motion modules of what stands behind this layer of an image network."""
    site = r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets)\.(\d+)\."
    return re.sub(site, r"\1.motion_modules.\2.", path.removeprefix("after."))


def in_ldm(network: UNet2DConditionModel, path: str) -> str:
    """The layer's name in Stable Diffusion's own code, which numbers all blocks of a side through."""
    found = ROOM.fullmatch(path)
    if found is None:
        return IN_LDM.get(path, path)
    side, block, kind, number, rest = found.groups()
    stride = network.config.layers_per_block + 1
    at = int(block or 0) * stride + int(number)
    inner = IN_LDM_RESNETS.get(rest, rest)
    if kind == "downsamplers":
        return f"input_blocks.{at + stride}.0.op"
    if kind == "upsamplers":
        behind = 2 if getattr(network.up_blocks[int(block)], "attentions", None) else 1
        return f"output_blocks.{at + stride - 1}.{behind}.{inner}"
    place = int(kind == "attentions")
    if side == "mid":
        return f"middle_block.{2 * int(number) + place}.{inner}"
    return f"input_blocks.{at + 1}.{place}.{inner}" if side == "down" else f"output_blocks.{at}.{place}.{inner}"
