"""By what a network is known again, whatever number format it is in and whatever adapters are on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from math import isclose

from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from torch import nn

from kineograph.models.temporal.config import TemporalLayers

# Rounding to half precision moves a norm by a hundredth of this; training on moves one of them at least by more.
NEAR = 1e-3
OF_PICTURES = ("encoder_hid_proj.", "processor.")  # in the names of what an IP-Adapter puts on a network


class Likeness(BaseModel):
    """What a network is called, and how its layers look.

    shapes  SHA-256 over their names and shapes
    norms   of their weights in half precision, in which the smallest round most, in the order of their names
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shapes: str
    norms: tuple[float, ...]

    def has_shapes_of(self, other: Likeness) -> bool:
        return self.shapes == other.shapes

    def is_of(self, other: Likeness) -> bool:
        """Whether both are of one network, by whatever names."""
        return self.has_shapes_of(other) and all(
            isclose(norm, its, rel_tol=NEAR) for norm, its in zip(self.norms, other.norms, strict=True)
        )


def likeness(network: nn.Module, name: str) -> Likeness:
    """The likeness of an image network, or of layers along time."""
    found = {path: layer for path, layer in sorted(layers(network).items()) if not _is_of_pictures(path)}
    said = "\n".join(f"{path} {_shape(layer)}" for path, layer in found.items())
    norms = (float(f"{layer.weight.detach().half().float().norm().item():.5g}") for layer in found.values())
    return Likeness(name=name, shapes=hashlib.sha256(said.encode()).hexdigest(), norms=tuple(norms))


def _is_of_pictures(path: str) -> bool:
    return any(mark in path for mark in OF_PICTURES)


def _shape(layer: Layer) -> tuple[int, ...]:
    """As the layer says it, not as its weight is stored, which quantisation changes."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return (layer.out_features, layer.in_features)


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
