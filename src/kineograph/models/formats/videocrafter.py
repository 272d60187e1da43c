"""VideoCrafter1's released networks (and VideoCrafter2's) as image network, layers along time and image adapter.

Their U-Net is Stable Diffusion 2.x's in its own code's names, with a temporal transformer put in behind every spatial
one, so that what follows moves on by one. What a checkpoint has is told from its names and shapes.
Source: the released checkpoints of Chen et al. 2023.
"""

from __future__ import annotations

import re
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from kineograph.models.conditioning import resampler as image_adapter
from kineograph.models.formats import key_map, shapes
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.layer_names import ldm_layer_name
from kineograph.models.formats.shapes import RELEASED_SETTINGS, AssumedSettings
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

UNET = "model.diffusion_model."
RESAMPLER = "image_proj_model."
MARKS = (f"{UNET}init_attn.", ".temopral_conv.", ".relative_position_k.")
FPS = {"fps.embedding.linear_1": "fps_embedding.0", "fps.embedding.linear_2": "fps_embedding.2"}
BEHIND_SPATIAL = re.compile(r"((?:in|out)put_blocks\.\d+|middle_block)\.1\.")


def is_videocrafter(tensors: Tensors) -> bool:
    """Whether these are the tensors of a VideoCrafter checkpoint."""
    return any(mark in name for name in tensors for mark in MARKS)


def video_unet_from_videocrafter(tensors: Tensors, what: str, unsaid: AssumedSettings = RELEASED_SETTINGS) -> VideoUNet:
    """The video network of a released checkpoint, whose other tensors are left alone.

    what: the file, for errors. Raises InputError when tensors are missing, left over or of another shape.
    """
    mine = {name: each for name, each in tensors.items() if name.startswith((UNET, RESAMPLER))}
    unet, resampler = key_map.select_prefix(UNET, mine), key_map.select_prefix(RESAMPLER, mine)
    looks = f"{what} looks like a VideoCrafter checkpoint"
    with shapes.report_missing_tensors(mine, looks):
        head_width = unsaid.resampler_head_width
        reads = image_adapter.infer_resampler_config(resampler, head_width) if resampler else None
        net = shapes.empty_video_unet(_image_config(unet, unsaid), _temporal_config(unet, unsaid), reads)
    key_map.load_tensors(net, mine, videocrafter_key_map(net), f"{looks}, but does not fit one")
    return net


def to_videocrafter(net: VideoUNet) -> dict[str, Tensor]:
    """A network's tensors by the names, and in the shapes, of the released checkpoints: `network` backwards."""
    return key_map.export_tensors(net.state_dict(), videocrafter_key_map(net))


def videocrafter_key_map(net: VideoUNet) -> dict[str, Entry]:
    """Where a released checkpoint has each tensor of a network."""
    return {name: _place(net.image_unet, name) for name in net.state_dict()}


def _place(unet: UNet2DConditionModel, name: str) -> Entry:
    part, _, rest = name.partition(".")
    if part == "temporal":
        return _in_time(unet, rest)
    if rest.startswith(image_adapter.PROJECTION):
        place = image_adapter.resampler_entry(rest.removeprefix(image_adapter.PROJECTION))
        return place._replace(name=RESAMPLER + place.name)
    plain = re.sub(r"\.processor\.(to_[kv]_ip)\.0\.", r".\1.", rest)
    return Entry(UNET + _with_room(_in_ldm(unet, plain)))


def _in_time(unet: UNet2DConditionModel, name: str) -> Entry:
    layer, _, leaf = name.rpartition(".")
    if layer in FPS:
        return Entry(f"{UNET}{FPS[layer]}.{leaf}")
    path = name.removeprefix("after.")
    if path.startswith("conv_in."):
        convolved = re.search(r"\.proj_(?:in|out)\.weight$", path)
        return Entry(f"{UNET}init_attn.0.{path.removeprefix('conv_in.')}", ones=1 if convolved else 0)
    if ".resnets." in path:
        inner = path.replace(".conv1.conv.", ".conv1.2.").replace(".norm.", ".0.").replace(".conv.", ".3.")
        room = _with_room(_in_ldm(unet, re.sub(r"\.(conv\d\.)", r".temopral_conv.\1", inner)))
        return Entry(UNET + room, ones=1 if path.endswith(".conv.weight") else 0)
    return Entry(UNET + BEHIND_SPATIAL.sub(r"\1.2.", _in_ldm(unet, path)))


def _in_ldm(unet: UNet2DConditionModel, name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return f"{ldm_layer_name(unet, path)}.{leaf}"


def _with_room(name: str) -> str:
    """A name of Stable Diffusion's, with what stands behind a spatial transformer moved on by one."""
    return re.sub(r"^(middle_block|output_blocks\.\d+)\.2\.", r"\1.3.", name)


def _image_config(unet: Tensors, unsaid: AssumedSettings) -> dict[str, Any]:
    """Of the image network: its levels are told from where the downsamplers are."""
    ends = shapes.block_indices(unet, r"input_blocks\.(\d+)\.0\.op\.weight")
    levels = [1, *(end + 1 for end in ends)]
    attends = [f"input_blocks.{level}.1.norm.weight" in unet for level in levels]
    spatial = key_map.select_prefix(f"input_blocks.{levels[attends.index(True)]}.1.", unet)
    widths = [len(unet[f"input_blocks.{level}.0.out_layers.3.weight"]) for level in levels]
    return shapes.unet_config(widths, attends, spatial, unsaid) | {
        "sample_size": (72, 128) if _tells_frame_rate(unet) and not _convolves(unet) else (40, 64),
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(unet["out.2.weight"]),
        "layers_per_block": ends[0] - 1,
    }


def _temporal_config(unet: Tensors, unsaid: AssumedSettings) -> TemporalConfig:
    table = unet.get("init_attn.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table")
    farthest = None if table is None else len(table) // 2
    head_width = unsaid.head_width if table is None else table.shape[1]
    transformer = TransformerConfig(head_width=head_width, relative=farthest)
    inside = len(unet["init_attn.0.proj_in.weight"])
    return TemporalConfig(
        num_frames=farthest or 16,
        entry=transformer.model_copy(update={"heads": inside // head_width}),
        transformer=transformer,
        convolution=_convolves(unet),
        frame_rate=_tells_frame_rate(unet),
        solver="euler-ancestral",  # DDIM with eta 1
    )


def _convolves(unet: Tensors) -> bool:
    return any(".temopral_conv." in name for name in unet)


def _tells_frame_rate(unet: Tensors) -> bool:
    return "fps_embedding.0.weight" in unet
