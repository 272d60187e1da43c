"""VidRD's released checkpoint, converted to a video U-Net and back.

Its U-Net has diffusers' names. Added are a temporal convolution after every ResNet block and temporal attention inside
every spatial transformer block.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from kineograph.models.formats import architecture, key_map
from kineograph.models.formats.architecture import RELEASED_SETTINGS, AssumedSettings
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

UNET = "unet."
MARK = ".temp_convs."
FIRST_TRANSFORMER = "temp_transformer."
CONVOLUTION = re.compile(r"(.+)\.resnets\.(\d+)\.conv(\d)\.(norm|conv)\.(\w+)")
GROUPS = 32  # of the temporal layers' group norms, whatever the image U-Net has
POSITIONS = 128  # the released code computes positions for any number of frames


def is_vidrd(tensors: Tensors) -> bool:
    """Return True for the tensors of a VidRD checkpoint."""
    return any(name.startswith(UNET) and MARK in name for name in tensors)


def video_unet_from_vidrd(tensors: Tensors, what: str, settings: AssumedSettings = RELEASED_SETTINGS) -> VideoUNet:
    """Return the video U-Net of a released checkpoint; its other tensors are ignored.

    what: the file, for errors. Raises InputError if tensors of the U-Net are missing, left over or have another shape.
    """
    unet = key_map.select_prefix(UNET, tensors)
    kind = f"{what} looks like a VidRD checkpoint"
    with architecture.report_missing_tensors(unet, kind):
        net = architecture.empty_video_unet(_image_config(unet, settings), _temporal_config(unet, settings))
    key_map.load_tensors(net, unet, _key_map(net), f"{kind}, but does not fit one")
    return net


def to_vidrd(net: VideoUNet) -> dict[str, Tensor]:
    """Return a network's tensors in the names and shapes of the released checkpoint."""
    return {UNET + name: each for name, each in key_map.export_tensors(net.state_dict(), _key_map(net)).items()}


def _key_map(net: VideoUNet) -> dict[str, Entry]:
    # without positions, which the released code computes
    return {name: _entry(name) for name in net.state_dict() if not name.endswith(".pe")}


def _entry(name: str) -> Entry:
    part, _, rest = name.partition(".")
    if part == "image_unet":
        return Entry(rest)
    path = rest.removeprefix("after.")
    if path.startswith("conv_in."):
        return Entry(FIRST_TRANSFORMER + path.removeprefix("conv_in."))
    return temporal_conv_entry(path) or Entry(path.replace(".attn2.temp_", ".temp_"))


def temporal_conv_entry(path: str) -> Entry | None:
    """Return the tensor of the temporal convolution after a ResNet block; None for another layer's path."""
    found = CONVOLUTION.fullmatch(path)
    if found is None:
        return None
    block, resnet, number, kind, leaf = found.groups()
    index = 4 * (int(number) - 1) + (3 if kind == "conv" else 0)  # norm, SiLU, dropout, convolution
    trailing_ones = 1 if (kind, leaf) == ("conv", "weight") else 0
    return Entry(f"{block}{MARK}{resnet}.convs.{index}.{leaf}", trailing_ones=trailing_ones)


def _image_config(unet: Tensors, settings: AssumedSettings) -> dict[str, Any]:
    blocks = architecture.block_indices(unet, r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    attends = [f"down_blocks.{block}.attentions.0.norm.weight" in unet for block in blocks]
    spatial = key_map.select_prefix(f"down_blocks.{attends.index(True)}.attentions.0.", unet)
    widths = [len(unet[f"down_blocks.{block}.resnets.0.conv1.weight"]) for block in blocks]
    return architecture.unet_config(widths, attends, spatial, settings) | {
        "sample_size": 32,
        "in_channels": unet["conv_in.weight"].shape[1],
        "out_channels": len(unet["conv_out.weight"]),
        "layers_per_block": len(architecture.block_indices(unet, r"down_blocks\.0\.resnets\.(\d+)\.conv1\.weight")),
    }


def _temporal_config(unet: Tensors, settings: AssumedSettings) -> TemporalConfig:
    attention = AttentionConfig(head_width=settings.head_width, positions=POSITIONS)
    layers: tuple = ((Site(after="resnet"), ConvConfig()), (Site(after="cross_attention"), attention))
    first = unet.get(f"{FIRST_TRANSFORMER}proj_in.weight")
    if first is not None:
        transformer = TransformerConfig(heads=8, head_width=len(first) // 8, attentions=1, transposed=True)
        layers = ((Site(after="conv_in"), transformer), *layers)
    return TemporalConfig(num_frames=8, layers=layers, joint_norms=True, groups=GROUPS)
