"""What a network looks like, told from the shapes in a file that has no configuration; and an empty one like it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel

from kineograph.errors import InputError
from kineograph.models.conditioning import resampler as image_adapter
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.formats.tensor_files import Tensors, preview_names
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet


class AssumedSettings(NamedTuple):
    """What shapes do not say; unless given, as in everything that was released."""

    head_width: int = 64
    resampler_head_width: int = 64
    groups: int = 32


RELEASED_SETTINGS = AssumedSettings()


def read_assumed_settings(folder: Path) -> AssumedSettings:
    """What a folder in diffusers layout says, where it says it: a configuration that was given for a file."""
    unet, adapter = folder / "unet" / "config.json", folder / "image_adapter" / "config.json"
    said = RELEASED_SETTINGS
    if unet.is_file():
        config = json.loads(unet.read_text())
        heads, widths = config.get("attention_head_dim"), config.get("block_out_channels", [0])
        heads = heads[0] if isinstance(heads, list) else heads or 0
        said = said._replace(
            head_width=widths[0] // heads if heads else said.head_width,
            groups=config.get("norm_num_groups", said.groups),
        )
    if adapter.is_file():
        said = said._replace(resampler_head_width=json.loads(adapter.read_text())["resampler"]["head_width"])
    return said


def empty_video_unet(
    image: Mapping[str, Any], temporal: TemporalConfig, resampler: ResamplerConfig | None = None
) -> VideoUNet:
    """A video network without numbers, but for those that no checkpoint holds, for `places.fill` to fill."""
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**image)
        if resampler is not None:
            image_adapter.add_resampler(unet, resampler)
        return VideoUNet(unet, TemporalLayers(unet, temporal)).eval()


def unet_config(
    widths: Sequence[int], attends: Sequence[bool], spatial: Tensors, unsaid: AssumedSettings
) -> dict[str, Any]:
    """What diffusers' U-Net is to be told of its levels: how wide each is, and which have transformers.

    spatial: the tensors of the first transformer. Raises KeyError for one that is missing.
    """
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "transformer_layers_per_block": 1 + max(block_indices(spatial, r"transformer_blocks\.(\d+)\.norm1\.weight")),
        "cross_attention_dim": spatial["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": [width // unsaid.head_width for width in widths],  # diffusers' name for how many
        "use_linear_projection": spatial["proj_in.weight"].ndim == 2,
        "norm_num_groups": unsaid.groups,
    }


def block_indices(names: Iterable[str], pattern: str) -> list[int]:
    """The numbers in the names of a pattern, ascending. Raises KeyError when there is none."""
    found = {int(match[1]) for match in map(re.compile(pattern).fullmatch, names) if match}
    if not found:
        raise KeyError(pattern.replace(r"(\d+)", "N").replace("\\", ""))
    return sorted(found)


@contextmanager
def report_missing_tensors(tensors: Tensors, what: str) -> Iterator[None]:
    """An architecture is told from these within; a tensor that is missing for it is an InputError.

    what: the file and what it looks like.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{what}, but by its tensors no architecture can be told ({error}): fetch the file again. "
            f"Its {len(tensors)} tensors are called {preview_names(tensors)}"
        ) from error
