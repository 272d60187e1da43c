"""VideoCrafter1's and VideoCrafter2's released U-Nets, converted to a video U-Net and back.

They use the names of Stable Diffusion's original code, with a temporal transformer after every spatial one, so that the
layers behind it in a block have a number higher by one. The architecture is inferred from names and shapes.
Source: the released checkpoints of Chen et al. 2023.
"""

from __future__ import annotations

import re
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from kineograph.models.conditioning.resampler import PROJECTION, infer_resampler_config, resampler_entry
from kineograph.models.formats import architecture, key_map
from kineograph.models.formats.architecture import RELEASED_SETTINGS, AssumedSettings
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.layer_names import ldm_layer_name
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import ConvConfig, LayerConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet

UNET = "model.diffusion_model."
RESAMPLER = "image_proj_model."
MARKS = (f"{UNET}init_attn.", ".temopral_conv.", ".relative_position_k.")
FPS = {"fps.embedding.linear_1": "fps_embedding.0", "fps.embedding.linear_2": "fps_embedding.2"}
SPATIAL_TRANSFORMER = re.compile(r"((?:in|out)put_blocks\.\d+|middle_block)\.1\.")


def is_videocrafter(tensors: Tensors) -> bool:
    """Return True for the tensors of a VideoCrafter checkpoint."""
    return any(mark in name for name in tensors for mark in MARKS)


def video_unet_from_videocrafter(
    tensors: Tensors, what: str, settings: AssumedSettings = RELEASED_SETTINGS
) -> VideoUNet:
    """Return the video U-Net of a released checkpoint, with its image adapter; its other tensors are ignored.

    what: the file, for errors. Raises InputError if tensors of the U-Net are missing, left over or have another shape.
    """
    selected = {name: each for name, each in tensors.items() if name.startswith((UNET, RESAMPLER))}
    unet, resampler = key_map.select_prefix(UNET, selected), key_map.select_prefix(RESAMPLER, selected)
    kind = f"{what} looks like a VideoCrafter checkpoint"
    with architecture.report_missing_tensors(selected, kind):
        config = infer_resampler_config(resampler, settings.resampler_head_width) if resampler else None
        net = architecture.empty_video_unet(_image_config(unet, settings), _temporal_config(unet, settings), config)
    key_map.load_tensors(net, selected, videocrafter_key_map(net), f"{kind}, but does not fit one")
    return net


def to_videocrafter(net: VideoUNet) -> dict[str, Tensor]:
    """Return a network's tensors in the names and shapes of the released checkpoints."""
    return key_map.export_tensors(net.state_dict(), videocrafter_key_map(net))


def videocrafter_key_map(net: VideoUNet) -> dict[str, Entry]:
    """Return the key map of the released checkpoints for a network."""
    return {name: videocrafter_entry(net.image_unet, name) for name in net.state_dict()}


def videocrafter_entry(unet: UNet2DConditionModel, name: str) -> Entry:
    """Return the entry, in the key map of the released checkpoints, of a parameter of a video U-Net."""
    part, _, rest = name.partition(".")
    if part == "temporal":
        return _temporal_entry(unet, rest)
    if rest.startswith(PROJECTION):
        entry = resampler_entry(rest.removeprefix(PROJECTION))
        return entry._replace(name=RESAMPLER + entry.name)
    plain = re.sub(r"\.processor\.(to_[kv]_ip)\.0\.", r".\1.", rest)
    return Entry(UNET + _renumber(_ldm_name(unet, plain)))


def _temporal_entry(unet: UNet2DConditionModel, name: str) -> Entry:
    layer, _, leaf = name.rpartition(".")
    if layer in FPS:
        return Entry(f"{UNET}{FPS[layer]}.{leaf}")
    path = name.removeprefix("after.")
    if path.startswith("conv_in."):
        convolved = re.search(r"\.proj_(?:in|out)\.weight$", path)
        return Entry(f"{UNET}init_attn.0.{path.removeprefix('conv_in.')}", trailing_ones=1 if convolved else 0)
    if ".resnets." in path:
        inner = path.replace(".conv1.conv.", ".conv1.2.").replace(".norm.", ".0.").replace(".conv.", ".3.")
        released = _renumber(_ldm_name(unet, re.sub(r"\.(conv\d\.)", r".temopral_conv.\1", inner)))
        return Entry(UNET + released, trailing_ones=1 if path.endswith(".conv.weight") else 0)
    return Entry(UNET + SPATIAL_TRANSFORMER.sub(r"\1.2.", _ldm_name(unet, path)))


def _ldm_name(unet: UNet2DConditionModel, name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return f"{ldm_layer_name(unet, path)}.{leaf}"


def _renumber(name: str) -> str:
    """Return a name of Stable Diffusion's code, with layers behind a spatial transformer numbered one higher."""
    return re.sub(r"^(middle_block|output_blocks\.\d+)\.2\.", r"\1.3.", name)


def _image_config(unet: Tensors, settings: AssumedSettings) -> dict[str, Any]:
    downsamplers = architecture.block_indices(unet, r"input_blocks\.(\d+)\.0\.op\.weight")
    first_layers = [1, *(index + 1 for index in downsamplers)]  # of each down block
    attends = [f"input_blocks.{first}.1.norm.weight" in unet for first in first_layers]
    spatial = key_map.select_prefix(f"input_blocks.{first_layers[attends.index(True)]}.1.", unet)
    widths = [len(unet[f"input_blocks.{first}.0.out_layers.3.weight"]) for first in first_layers]
    return architecture.unet_config(widths, attends, spatial, settings) | {
        "sample_size": (72, 128) if _has_frame_rate(unet) and not _has_convolutions(unet) else (40, 64),
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(unet["out.2.weight"]),
        "layers_per_block": downsamplers[0] - 1,
    }


def _temporal_config(unet: Tensors, settings: AssumedSettings) -> TemporalConfig:
    table = unet.get("init_attn.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table")
    largest_distance = None if table is None else len(table) // 2
    head_width = settings.head_width if table is None else table.shape[1]
    transformer = TransformerConfig(head_width=head_width, relative=largest_distance)
    first = transformer.model_copy(update={"heads": len(unet["init_attn.0.proj_in.weight"]) // head_width})
    layers: list[tuple[Site, LayerConfig]] = [(Site(after="conv_in"), first), (Site(after="transformer"), transformer)]
    if _has_convolutions(unet):
        layers.insert(1, (Site(after="resnet"), ConvConfig()))
    return TemporalConfig(
        num_frames=largest_distance or 16,
        layers=tuple(layers),
        frame_rate=_has_frame_rate(unet),
        sampler="euler-ancestral",  # DDIM with eta 1
    )


def _has_convolutions(unet: Tensors) -> bool:
    return any(".temopral_conv." in name for name in unet)


def _has_frame_rate(unet: Tensors) -> bool:
    return "fps_embedding.0.weight" in unet
