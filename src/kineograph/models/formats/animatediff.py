"""AnimateDiff's motion modules, from diffusers' folders, released files, or a diffusers `UNetMotionModel`.

They come without an image network. In the released code of version 1 the ResNet blocks' group norms span all frames;
here, as in diffusers, they span one frame.
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
from kineograph.models.formats import architecture, key_map
from kineograph.models.formats.key_map import Entry, KeyMap
from kineograph.models.formats.layer_names import motion_module_name
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

MARK = "motion_modules."
HEADS = 8
LATENT_CHANNELS = 4
PREFIX = re.compile(r"(.*?)(?:down_blocks|mid_block|up_blocks)\.(?:\d+\.)?motion_modules\.")
# parts of released names -> diffusers' names
DIFFUSERS_NAMES = {
    "temporal_transformer.": "",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".ff_norm.": ".norm3.",
    ".attention_blocks.0.pos_encoder.": ".pos_embed.",
    ".attention_blocks.0.": ".attn1.",
    ".attention_blocks.1.": ".attn2.",
}
# the noise schedule that all of them were trained with, whatever the image network was trained with
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
    """Return True for the tensors of motion modules; False for a LoRA for them, and for a SparseCtrl with its own."""
    others = ("lora", "controlnet_")
    return any(MARK in name for name in tensors) and not any(part in name for name in tensors for part in others)


def has_image_network(tensors: Tensors) -> bool:
    """Return True for motion modules that training saved together with the image network around them."""
    return any(".resnets." in name for name in tensors)


def to_diffusers_names(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of a released file by diffusers' names; names of diffusers do not change.

    A prefix that they share is removed, and so is an image network that training saved with them.
    """
    copies = ".attention_blocks.1.pos_encoder."  # the same positions as in the first attention
    prefix = next((found[1] for name in tensors if (found := PREFIX.match(name))), "")
    in_network, first = has_image_network(tensors), tensors.get(f"{prefix}conv_in.weight")
    is_pia = first is not None and first.shape[1] != LATENT_CHANNELS
    renamed = {}
    for name, tensor in tensors.items():
        if copies not in name and (MARK in name or is_pia or not in_network):
            name = name.removeprefix(prefix)
            for released, diffusers in DIFFUSERS_NAMES.items():
                name = name.replace(released, diffusers)
            renamed[name] = tensor
    return renamed


def block_widths(tensors: Tensors) -> tuple[int, ...]:
    """Return the block channels of the image network that these motion modules are for, highest resolution first."""
    first = rf"down_blocks\.(\d+)\.{MARK}0\.norm\.weight"
    return tuple(
        len(tensors[f"down_blocks.{n}.{MARK}0.norm.weight"]) for n in architecture.block_indices(tensors, first)
    )


def animatediff_config(tensors: Tensors, config: Mapping[str, Any]) -> TemporalConfig:
    """Return the configuration of motion modules.

    The tensors have diffusers' names; `config` is that of diffusers' MotionAdapter, empty for a released file. Raises
    InputError if they are PIA's, which change the image network too; KeyError if a tensor is missing.
    """
    if "conv_in.weight" in tensors:
        raise InputError("these are PIA's motion modules, with an input layer of their own, which is not supported")
    block = rf"down_blocks\.0\.{MARK}0\.transformer_blocks\.(\d+)\.norm1\.weight"
    positions = tensors.get(f"down_blocks.0.{MARK}0.transformer_blocks.0.pos_embed.pe")
    heads = config.get("motion_num_attention_heads", HEADS)
    if not isinstance(heads, int):
        raise InputError(f"expected motion modules with the same number of attention heads everywhere, got {heads}")
    transformer = TransformerConfig(
        heads=heads,
        depth=len(architecture.block_indices(tensors, block)),
        positions=config.get("motion_max_seq_length", 32) if positions is None else positions.shape[1],
    )
    mid_block = any(name.startswith("mid_block.") for name in tensors)
    return TemporalConfig(
        layers=((Site(after="stage", mid_block=mid_block), transformer),), groups=config.get("motion_norm_num_groups")
    )


def animatediff_key_map(temporal: nn.Module | None, tensors: Tensors) -> KeyMap:
    """Return the key map of diffusers' motion modules for temporal layers; some files have no positions."""
    assert temporal is not None
    names = {name: motion_module_name(name) for name in temporal.state_dict()}
    return {name: Entry(key) for name, key in names.items() if key in tensors or not key.endswith(".pe")}


def video_unet_from_animatediff(unet: UNetMotionModel) -> VideoUNet:
    """Return a video U-Net that shares the weights of diffusers' AnimateDiff network."""
    tensors = unet.state_dict()
    motion = {name: each for name, each in tensors.items() if MARK in name}
    net = architecture.empty_video_unet(_image_config(unet.config), animatediff_config(motion, unet.config))
    entries = {f"temporal.{name}": entry for name, entry in animatediff_key_map(net.temporal, motion).items()}
    entries |= {f"image_unet.{name}": Entry(name) for name in net.image_unet.state_dict()}
    what = (
        "this UNetMotionModel is not like AnimateDiff's, or has LoRAs or other adapters, or fused projections (merge "
        "LoRAs by fuse_lora() and unload_lora_weights(), or pass them as `lora`)"
    )
    key_map.load_tensors(net, tensors, entries, what)
    return net


def _image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: value for name, value in config.items() if name in known and not name.startswith("num_att")} | {
        "down_block_types": [re.sub("Motion$", "2D", kind) for kind in config["down_block_types"]],
        "up_block_types": [re.sub("Motion$", "2D", kind) for kind in config["up_block_types"]],
        "attention_head_dim": config["num_attention_heads"],  # diffusers' older name for it
    }
