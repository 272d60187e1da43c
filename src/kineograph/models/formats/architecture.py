"""Architecture of a video U-Net, inferred from the tensor shapes of a file without a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel

from kineograph.errors import InputError, in_one_line
from kineograph.models.conditioning.resampler import ResamplerConfig, add_resampler
from kineograph.models.formats.tensor_files import Tensors, preview_names
from kineograph.models.network_folders import MAX_LAYERS, empty_weights, read_config, read_json, validated
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet


class AssumedSettings(NamedTuple):
    """Settings that tensor shapes do not determine; the defaults are those of all released checkpoints.

    head_width            channels of an attention head of the U-Net
    resampler_head_width  channels of an attention head of the resampler
    groups                number of groups of the group norms
    """

    head_width: int = 64
    resampler_head_width: int = 64
    groups: int = 32


RELEASED_SETTINGS = AssumedSettings()


def read_assumed_settings(folder: Path) -> AssumedSettings:
    """Return the settings in a folder in diffusers layout; those that it does not have are the released ones."""
    unet, adapter = folder / "unet" / "config.json", folder / "image_adapter" / "config.json"
    settings = RELEASED_SETTINGS
    if unet.is_file():
        config = read_config(unet.parent, UNet2DConditionModel)
        heads, widths = config.get("attention_head_dim"), config.get("block_out_channels", [0])
        heads = next(iter(heads), 0) if isinstance(heads, list) else heads or 0
        head_width = widths[0] // heads if heads and widths else settings.head_width
        settings = settings._replace(head_width=head_width, groups=config.get("norm_num_groups", settings.groups))
    if adapter.is_file():
        resampler = validated(ResamplerConfig, read_json(adapter).get("resampler"), str(adapter))
        settings = settings._replace(resampler_head_width=resampler.head_width)
    return settings


def empty_video_unet(
    image: Mapping[str, Any], temporal: TemporalConfig, resampler: ResamplerConfig | None = None
) -> VideoUNet:
    """Return a video U-Net on the meta device, except for buffers that no checkpoint holds; see `load_tensors`."""
    with empty_weights():
        unet = UNet2DConditionModel(**image)
        if resampler is not None:
            add_resampler(unet, resampler)
        return VideoUNet(unet, TemporalLayers(unet, temporal)).eval()


def unet_config(
    widths: Sequence[int], attends: Sequence[bool], spatial: Tensors, settings: AssumedSettings
) -> dict[str, Any]:
    """Return the arguments of `UNet2DConditionModel` that describe its blocks.

    widths, attends: channels of each down block, and True if it has transformers. spatial: tensors of the first spatial
    transformer. Raises KeyError if one is missing.
    """
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "transformer_layers_per_block": 1 + max(block_indices(spatial, r"transformer_blocks\.(\d+)\.norm1\.weight")),
        "cross_attention_dim": spatial["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": [width // settings.head_width for width in widths],  # despite its name
        "use_linear_projection": spatial["proj_in.weight"].ndim == 2,
        "norm_num_groups": settings.groups,
    }


def block_indices(names: Iterable[str], pattern: str) -> list[int]:
    """Return the numbers that the group of a pattern matches in tensor names, ascending.

    Raises KeyError if no name matches, ValueError for a number that no layer has.
    """
    found = {int(match[1]) for match in map(re.compile(pattern).fullmatch, names) if match}
    if not found:
        raise KeyError(pattern.replace(r"(\d+)", "N").replace("\\", ""))
    if max(found) > MAX_LAYERS:
        raise ValueError(f"a layer has the number {max(found)}")
    return sorted(found)


@contextmanager
def report_missing_tensors(tensors: Tensors, what: str) -> Iterator[None]:
    """Turn errors of the code inside, which infers settings from a file's tensors, into an InputError.

    The tensors may be missing or have any shape. what: the file and the kind of its content, for the error. Code that
    does anything else does not belong inside: its errors are to be seen.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"{what}, but its tensors determine no architecture ({in_one_line(error)}): fetch the file again. "
            f"Its {len(tensors)} tensors are called {preview_names(tensors)}"
        ) from error
