"""ModelScope's text-to-video network, and ZeroScope's, converted from diffusers' `UNet3DConditionModel`.
Source: ModelScope (Wang et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusers import UNet3DConditionModel

from kineograph.errors import InputError
from kineograph.models.formats import architecture, key_map
from kineograph.models.formats.key_map import Entry
from kineograph.models.temporal.config import ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

CONVOLUTION = re.compile(r"(.+)\.resnets\.(\d+\.conv\d)\.(norm|conv)\.(\w+)")
SHARED_SETTINGS = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "downsample_padding",
    "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
)  # fmt: skip


def video_unet_from_modelscope(unet: UNet3DConditionModel) -> VideoUNet:
    """Return a video U-Net that shares the weights of ModelScope's network.

    Raises InputError if the network has another structure.
    """
    net = architecture.empty_video_unet(_image_config(unet.config), _temporal_config(unet.config))
    names = {name: modelscope_entry(name) for name in net.state_dict()}
    key_map.load_tensors(net, unet.state_dict(), names, "this UNet3DConditionModel is not like ModelScope's")
    return net


def modelscope_entry(name: str) -> Entry:
    """Return the entry, in the key map of diffusers' network, of a parameter of a video U-Net."""
    part, _, rest = name.partition(".")
    if part == "image_unet":
        return Entry(rest)
    path = rest.removeprefix("after.")
    if path.startswith("conv_in."):
        return Entry(path.replace("conv_in.", "transformer_in.", 1))
    if found := CONVOLUTION.fullmatch(path):
        block, conv, kind, leaf = found.groups()
        # norm, SiLU, convolution; all but the first have a dropout before the convolution
        index = 0 if kind == "norm" else 2 if conv.endswith("conv1") else 3
        trailing_ones = 1 if (kind, leaf) == ("conv", "weight") else 0
        return Entry(f"{block}.temp_convs.{conv}.{index}.{leaf}", trailing_ones=trailing_ones)
    return Entry(path.replace(".attentions.", ".temp_attentions."))


def _image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    # attention_head_dim is the width of a head in UNet3DConditionModel, and the number of heads in UNet2DConditionModel
    heads = [width // _head_width(config) for width in config["block_out_channels"]]
    return {name: config[name] for name in SHARED_SETTINGS} | {
        "down_block_types": [kind.replace("3D", "2D") for kind in config["down_block_types"]],
        "up_block_types": [kind.replace("3D", "2D") for kind in config["up_block_types"]],
        "attention_head_dim": heads,
        "use_linear_projection": True,
    }


def _temporal_config(config: Mapping[str, Any]) -> TemporalConfig:
    transformer = TransformerConfig(head_width=_head_width(config))
    return TemporalConfig(
        layers=(
            (Site(after="conv_in"), transformer.model_copy(update={"heads": 8})),
            (Site(after="resnet"), ConvConfig()),
            (Site(after="transformer"), transformer),
        )
    )


def _head_width(config: Mapping[str, Any]) -> int:
    width = config["attention_head_dim"]
    if not isinstance(width, int):
        raise InputError(f"expected attention_head_dim to be one number, as in ModelScope's network, got {width}")
    return width
