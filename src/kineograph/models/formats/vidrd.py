"""VidRD's released network as image network and layers along time.

Its U-Net has diffusers' names, and beside them a temporal convolution for every resnet, and attention along time inside
every transformer block.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from kineograph.models.formats import key_map, shapes
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.shapes import RELEASED_SETTINGS, AssumedSettings
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

UNET = "unet."
MARK = ".temp_convs."
ENTRY = "temp_transformer."
IN_CONV = re.compile(r"(.+)\.resnets\.(\d+)\.conv(\d)\.(norm|conv)\.(\w+)")
GROUPS = 32  # of the convolutions and of the transformer, whatever the image network has
POSITIONS = 128  # are computed there for as many frames as there are


def is_vidrd(tensors: Tensors) -> bool:
    """Whether these are the tensors of a VidRD checkpoint."""
    return any(name.startswith(UNET) and MARK in name for name in tensors)


def video_unet_from_vidrd(tensors: Tensors, what: str, unsaid: AssumedSettings = RELEASED_SETTINGS) -> VideoUNet:
    """The video network of a released checkpoint, whose other tensors are left alone.

    what: the file, for errors. Raises InputError when tensors are missing, left over or of another shape.
    """
    mine = key_map.select_prefix(UNET, tensors)
    looks = f"{what} looks like a VidRD checkpoint"
    with shapes.report_missing_tensors(mine, looks):
        net = shapes.empty_video_unet(_image_config(mine, unsaid), _temporal_config(mine, unsaid))
    key_map.load_tensors(net, mine, _layout(net), f"{looks}, but does not fit one")
    return net


def to_vidrd(net: VideoUNet) -> dict[str, Tensor]:
    """A network's tensors by the names, and in the shapes, of the released checkpoint: `network` backwards."""
    return {UNET + name: each for name, each in key_map.export_tensors(net.state_dict(), _layout(net)).items()}


def _layout(net: VideoUNet) -> dict[str, Entry]:
    """Where the released checkpoint has each tensor, but for positions, which it computes."""
    return {name: _place(name) for name in net.state_dict() if not name.endswith(".pe")}


def _place(name: str) -> Entry:
    part, _, rest = name.partition(".")
    if part == "image_unet":
        return Entry(rest)
    path = rest.removeprefix("after.")
    if path.startswith("conv_in."):
        return Entry(ENTRY + path.removeprefix("conv_in."))
    if found := IN_CONV.fullmatch(path):
        block, resnet, number, kind, leaf = found.groups()
        at = 4 * (int(number) - 1) + (3 if kind == "conv" else 0)  # norm, SiLU, dropout, convolution
        ones = 1 if (kind, leaf) == ("conv", "weight") else 0
        return Entry(f"{block}{MARK}{resnet}.convs.{at}.{leaf}", ones=ones)
    return Entry(path.replace(".attn2.temp_", ".temp_"))


def _image_config(unet: Tensors, unsaid: AssumedSettings) -> dict[str, Any]:
    levels = shapes.block_indices(unet, r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in unet for level in levels]
    spatial = key_map.select_prefix(f"down_blocks.{attends.index(True)}.attentions.0.", unet)
    widths = [len(unet[f"down_blocks.{level}.resnets.0.conv1.weight"]) for level in levels]
    return shapes.unet_config(widths, attends, spatial, unsaid) | {
        "sample_size": 32,
        "in_channels": unet["conv_in.weight"].shape[1],
        "out_channels": len(unet["conv_out.weight"]),
        "layers_per_block": len(shapes.block_indices(unet, r"down_blocks\.0\.resnets\.(\d+)\.conv1\.weight")),
    }


def _temporal_config(unet: Tensors, unsaid: AssumedSettings) -> TemporalConfig:
    entry = TransformerConfig(heads=8, attentions=1, misread=True)
    if f"{ENTRY}proj_in.weight" in unet:
        entry = entry.model_copy(update={"head_width": len(unet[f"{ENTRY}proj_in.weight"]) // 8})
    return TemporalConfig(
        num_frames=8,
        entry=entry if entry.head_width else None,
        convolution=True,
        in_block=TransformerConfig(head_width=unsaid.head_width, positions=POSITIONS),
        joint_norms=True,
        groups=GROUPS,
    )
