"""Temporal decoders from where they live, to put around a VAE: a model's folder, or what VidRD's authors save.

In VidRD's own layout the VAE has diffusers' names, and every block beside its resnets a list `temp_convs`.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.formats import key_map, tensor_files
from kineograph.models.formats import shapes as architecture
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import known_configurations, single_file, video_folder
from kineograph.models.loading.components import READ_ERRORS
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

VAE_PREFIX = "vae."
MARK = re.compile(r"decoder\.up_blocks\.(\d+)\.temp_convs\.(\d+)\.")
IN_CONV = re.compile(r"up_blocks\.(\d+)\.(\d+)\.conv(\d)\.(norm|conv)\.(\w+)")
STEM = "diffusion_pytorch_model"
FILES = [f"{at}{name}" for at in ("", "temporal_decoder/") for name in ("config.json", f"{STEM}.safetensors")]
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # as diffusers had it then


def open_temporal_decoder(source: str | Path | TemporalDecoder, hub_options: HubOptions) -> TemporalDecoder:
    """The temporal decoder of a folder, file or repository. Raises InputError when there is none, or it is damaged."""
    if isinstance(source, TemporalDecoder):
        return source
    path = hub.local_path(source) or hub.fetch_folder(str(source), FILES, hub_options._replace(revision=None))
    if path.is_file():
        return read_vidrd_decoder(tensor_files.read_tensors(path), str(path))
    for folder in (path / video_folder.TEMPORAL_DECODER, path):
        if (folder / video_folder.CONFIG).is_file() and not _is_released(folder):
            return video_folder.read_temporal_decoder(folder)
    weights = [each for each in (path / f"{STEM}.safetensors", path / f"{STEM}.bin") if each.is_file()]
    if not weights:
        raise InputError(
            f"{path} has no temporal decoder: expected a folder {video_folder.TEMPORAL_DECODER}, or VidRD's VAE in diffusers "
            f"layout; it holds {tensor_files.preview_names(sorted(each.name for each in path.iterdir())) or 'nothing'}"
        )
    return read_vidrd_decoder(tensor_files.read_tensors(weights[0]), str(weights[0]))


def _is_released(folder: Path) -> bool:
    """Whether this is a network as diffusers saves it, and not layers as we do."""
    return '"_class_name"' in (folder / video_folder.CONFIG).read_text()


def has_temporal_decoder(tensors: Tensors) -> bool:
    """Whether there is a temporal decoder among the tensors of a VidRD checkpoint."""
    return any(MARK.match(name.removeprefix(VAE_PREFIX)) for name in tensors)


def read_vidrd_decoder(tensors: Tensors, what: str) -> TemporalDecoder:
    """The temporal decoder among the tensors of a VidRD checkpoint, or of its VAE alone.

    what: the file, for errors. Raises InputError when there is none, or tensors are missing or of another shape.
    """
    plain = {name.removeprefix(VAE_PREFIX): each for name, each in tensors.items()}
    mine = {name: each for name, each in plain.items() if MARK.match(name)}
    if not mine:
        raise InputError(
            f"{what} has no temporal decoder, which would have {MARK.pattern!r}. {known_configurations.describe_tensors(tensors)}"
        )
    looks = f"{what} looks like VidRD's temporal decoder"
    with architecture.report_missing_tensors(mine, looks), init_empty_weights(include_buffers=False):
        layers = TemporalDecoder(_config(mine))
    key_map.load_tensors(layers, mine, vidrd_key_map(layers), f"{looks}, but does not fit one")
    return layers.eval()


def vidrd_key_map(layers: TemporalDecoder) -> dict[str, Entry]:
    """Where VidRD's VAE has each tensor."""
    return {name: _place(name) for name in layers.state_dict()}


def _place(name: str) -> Entry:
    found = IN_CONV.fullmatch(name)
    assert found is not None, name
    block, resnet, number, kind, leaf = found.groups()
    at = 4 * (int(number) - 1) + (3 if kind == "conv" else 0)  # norm, SiLU, dropout, convolution
    ones = 1 if (kind, leaf) == ("conv", "weight") else 0
    return Entry(f"decoder.up_blocks.{block}.temp_convs.{resnet}.convs.{at}.{leaf}", trailing_ones=ones)


def _config(mine: Tensors) -> TemporalDecoderConfig:
    """Raises KeyError for tensors without which nothing can be told."""
    first = r"decoder\.up_blocks\.0\.temp_convs\.0\.convs\.(\d+)\.weight"
    blocks = architecture.block_indices(mine, r"decoder\.up_blocks\.(\d+)\.temp_convs\.0\.convs\.0\.weight")
    return TemporalDecoderConfig(
        blocks=tuple(
            (
                len(mine[f"decoder.up_blocks.{block}.temp_convs.0.convs.0.weight"]),
                len(
                    architecture.block_indices(
                        mine, rf"decoder\.up_blocks\.{block}\.temp_convs\.(\d+)\.convs\.0\.weight"
                    )
                ),
            )
            for block in blocks
        ),
        in_a_row=len(architecture.block_indices(mine, first)) // 2,
        joint_norms=True,
    )


def fill_vae(vae: AutoencoderKL, tensors: Tensors, what: str) -> None:
    """Put what else a VidRD checkpoint has of its VAE in place of the VAE's own, if it has it.

    Raises InputError when tensors are missing, left over or of another shape.
    """
    own = {
        _now(name): each for name, each in key_map.select_prefix(VAE_PREFIX, tensors).items() if not MARK.match(name)
    }
    if own:
        shapes = {name: each.shape for name, each in vae.state_dict().items()}
        own = {name: each.reshape(shapes.get(name, each.shape)) for name, each in own.items()}
        key_map.load_tensors(
            vae, own, key_map.identity_key_map(shapes), f"the VAE in {what} is not like the one in config"
        )


def _now(name: str) -> str:
    path, _, last = name.rpartition(".")
    before, _, inner = path.rpartition(".")
    return f"{before}.{OLD_ATTENTION[inner]}.{last}" if inner in OLD_ATTENTION else name


ROUNDED = 0.01  # more than bfloat16 rounds, less than a fine-tuned decoder changes
VAE_FILES = [f"{at}{name}" for at in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors")]


def open_vae(vae: str | Path | AutoencoderKL, own: AutoencoderKL, hub_options: HubOptions) -> AutoencoderKL:
    opened = vae if isinstance(vae, AutoencoderKL) else _opened(vae, own, hub_options)
    here, expected = opened.config.latent_channels, own.config.latent_channels
    if here != expected:
        raise InputError(f"the VAE makes latents of {here} channels, and the model draws {expected}: pass another")
    return opened


def _opened(vae: str | Path, own: AutoencoderKL, hub_options: HubOptions) -> AutoencoderKL:
    path = hub.local_path(vae) or hub.fetch_folder(str(vae), VAE_FILES, hub_options._replace(revision=None))
    if path.is_file():
        return single_file.vae_from_file(path, own)
    folder = path if (path / "config.json").is_file() else path / "vae"
    try:
        return AutoencoderKL.from_pretrained(folder, dtype=own.dtype, local_files_only=True)
    except READ_ERRORS as error:
        raise InputError(f"{vae} is no VAE in diffusers layout, or damaged: {error}") from error


def prevent_overflow(vae: AutoencoderKL) -> AutoencoderKL:
    """SDXL's VAE, and any that does not deny it, leaves the range of float16; an open pipeline keeps its own."""
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    return copy.deepcopy(vae).float() if overflows else vae


def same_latent_space(one: AutoencoderKL, other: AutoencoderKL) -> bool:
    """Whether two VAEs have the same latents: the same layers and weights, but for what half precision rounds away."""
    if one is other:
        return True
    scales = [(vae.config.scaling_factor, vae.config.shift_factor) for vae in (one, other)]
    if scales[0] != scales[1]:
        return False
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(
        weight.shape == there[name].shape
        and torch.allclose(weight.float().cpu(), there[name].float().cpu(), rtol=ROUNDED, atol=ROUNDED / 10)
        for name, weight in here.items()
    )
