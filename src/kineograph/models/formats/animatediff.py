"""AnimateDiff's motion modules: in diffusers' folders, in released files, and inside a diffusers `UNetMotionModel`.

They come without an image network. Version 1 has group norms over all frames in the released code's resnets; here, as
in diffusers, each frame has its own.
Source: AnimateDiff (Guo et al. 2023).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats import key_map, shapes
from kineograph.models.formats.key_map import Entry, KeyMap
from kineograph.models.formats.layer_names import motion_module_name
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

MARK = "motion_modules."
HEADS = 8
# how the released files call what diffusers calls otherwise
RELEASED = {
    "temporal_transformer.": "",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".ff_norm.": ".norm3.",
    ".attention_blocks.0.pos_encoder.": ".pos_embed.",
    ".attention_blocks.0.": ".attn1.",
    ".attention_blocks.1.": ".attn2.",
}
# the noise that all of them were trained on, whatever the image network was trained on
ANIMATEDIFF_SCHEDULER = {
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "signal_scale": None,
    "steps_offset": 1,
    "clip_sample": False,
}


def is_animatediff(tensors: Tensors) -> bool:
    """Whether these are the tensors of motion modules, and not a LoRA for them."""
    return any(MARK in name for name in tensors) and not any("lora" in name for name in tensors)


def to_diffusers_names(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a released file by diffusers' names; those of a diffusers folder as they are."""
    second = ".attention_blocks.1.pos_encoder."  # a copy of the first's positions
    return {_renamed(name): each for name, each in tensors.items() if second not in name}


def _renamed(name: str) -> str:
    for theirs, ours in RELEASED.items():
        name = name.replace(theirs, ours)
    return name


def block_widths(tensors: Tensors) -> tuple[int, ...]:
    """How wide the blocks are of the image network that these are for, from the top."""
    first = rf"down_blocks\.(\d+)\.{MARK}0\.norm\.weight"
    return tuple(len(tensors[f"down_blocks.{n}.{MARK}0.norm.weight"]) for n in shapes.block_indices(tensors, first))


def animatediff_config(tensors: Tensors, said: Mapping[str, Any]) -> TemporalConfig:
    """What these are, told from shapes, and from the configuration that a diffusers folder has.

    Raises InputError for PIA's, which change the image network too; KeyError for a tensor that is missing.
    """
    if "conv_in.weight" in tensors:
        raise InputError("these are PIA's motion modules, with an input layer of their own, which is not supported")
    block = rf"down_blocks\.0\.{MARK}0\.transformer_blocks\.(\d+)\.norm1\.weight"
    positions = tensors.get(f"down_blocks.0.{MARK}0.transformer_blocks.0.pos_embed.pe")
    heads = said.get("motion_num_attention_heads", HEADS)
    if not isinstance(heads, int):
        raise InputError(f"expected motion modules with as many attention heads everywhere, got {heads}")
    return TemporalConfig(
        transformer=TransformerConfig(
            heads=heads,
            depth=len(shapes.block_indices(tensors, block)),
            positions=said.get("motion_max_seq_length", 32) if positions is None else positions.shape[1],
        ),
        lonely=True,
        middle=any(name.startswith("mid_block.") for name in tensors),
        groups=said.get("motion_norm_num_groups"),
    )


def animatediff_key_map(temporal: nn.Module | None, tensors: Tensors) -> KeyMap:
    """Where diffusers' files have each tensor of layers around an image network; some leave positions out."""
    assert temporal is not None
    names = {name: motion_module_name(name) for name in temporal.state_dict()}
    return {name: Entry(theirs) for name, theirs in names.items() if theirs in tensors or not theirs.endswith(".pe")}


def video_unet_from_animatediff(unet: UNetMotionModel) -> VideoUNet:
    """The network of diffusers' AnimateDiff as image network and layers along time, which share its weights."""
    tensors = unet.state_dict()
    motion = {name: each for name, each in tensors.items() if MARK in name}
    net = shapes.empty_video_unet(_image_config(unet.config), animatediff_config(motion, unet.config))
    along = {f"temporal.{name}": place for name, place in animatediff_key_map(net.temporal, motion).items()}
    image = {f"image_unet.{name}": Entry(name) for name in net.image_unet.state_dict()}
    key_map.load_tensors(
        net, tensors, along | image, "this UNetMotionModel is not like AnimateDiff's, or has adapters on it"
    )
    return net


def _image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: value for name, value in config.items() if name in known and not name.startswith("num_att")} | {
        "down_block_types": [re.sub("Motion$", "2D", kind) for kind in config["down_block_types"]],
        "up_block_types": [re.sub("Motion$", "2D", kind) for kind in config["up_block_types"]],
        "attention_head_dim": config["num_attention_heads"],  # by which diffusers means the same
    }
