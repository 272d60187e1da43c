"""VAEs and temporal decoders from folders, files and repositories.

In VidRD's own layout the VAE has diffusers' names, and every block a list `temp_convs` beside its ResNet blocks.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import re
from pathlib import Path

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import Tensor

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.formats import architecture, key_map, known_configurations, tensor_files
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.formats.vidrd import temporal_conv_entry
from kineograph.models.loading import single_file, video_folder
from kineograph.models.loading.components import READ_ERRORS
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

VAE_PREFIX = "vae."
TEMPORAL_CONV = re.compile(r"decoder\.up_blocks\.(\d+)\.temp_convs\.(\d+)\.")
STEM = "diffusion_pytorch_model"
FILES = [f"{at}{name}" for at in ("", "temporal_decoder/") for name in ("config.json", f"{STEM}.safetensors")]
# names of attention layers in early versions of diffusers -> their names today
CURRENT_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(r"\.(query|key|value|proj_attn)\.(?=\w+$)")


def open_temporal_decoder(source: str | Path | TemporalDecoder, hub_options: HubOptions) -> TemporalDecoder:
    """Open the temporal decoder of a folder, file or repository.

    Raises InputError if there is none, or it is damaged.
    """
    if isinstance(source, TemporalDecoder):
        return source
    path = hub.local_path(source) or hub.fetch_folder(str(source), FILES, hub_options._replace(revision=None))
    if path.is_file():
        return read_vidrd_decoder(tensor_files.read_tensors(path), str(path))
    for folder in (path / video_folder.TEMPORAL_DECODER, path):
        config = folder / video_folder.CONFIG
        if config.is_file() and '"_class_name"' not in config.read_text():  # which networks saved by diffusers have
            return video_folder.read_temporal_decoder(folder)
    weights = [each for each in (path / f"{STEM}.safetensors", path / f"{STEM}.bin") if each.is_file()]
    if not weights:
        present = tensor_files.preview_names(sorted(each.name for each in path.iterdir()))
        raise InputError(
            f"{path} has no temporal decoder: expected a folder {video_folder.TEMPORAL_DECODER}, or VidRD's VAE in "
            f"diffusers layout; it holds {present or 'nothing'}"
        )
    return read_vidrd_decoder(tensor_files.read_tensors(weights[0]), str(weights[0]))


def has_temporal_decoder(tensors: Tensors) -> bool:
    """Return True if a VidRD checkpoint has a temporal decoder."""
    return any(TEMPORAL_CONV.match(name.removeprefix(VAE_PREFIX)) for name in tensors)


def read_vidrd_decoder(tensors: Tensors, source: str) -> TemporalDecoder:
    """Return the temporal decoder in the tensors of a VidRD checkpoint, or of its VAE alone.

    source: the file, for messages. Raises InputError if there is none, or tensors are missing or of another shape.
    """
    without_prefix = {name.removeprefix(VAE_PREFIX): each for name, each in tensors.items()}
    convs = {name: each for name, each in without_prefix.items() if TEMPORAL_CONV.match(name)}
    if not convs:
        raise InputError(
            f"{source} has no temporal decoder, which would have {TEMPORAL_CONV.pattern!r}. "
            f"{known_configurations.describe_tensors(tensors)}"
        )
    description = f"{source} looks like VidRD's temporal decoder"
    with architecture.report_missing_tensors(convs, description), init_empty_weights(include_buffers=False):
        layers = TemporalDecoder(_config(convs))
    key_map.load_tensors(layers, convs, vidrd_key_map(layers), f"{description}, but does not fit one")
    return layers.eval()


def vidrd_key_map(layers: TemporalDecoder) -> dict[str, Entry]:
    """Return the key map of the temporal convolutions in VidRD's VAE."""
    blocks = {name: re.sub(r"^(up_blocks\.\d+)\.", r"decoder.\1.resnets.", name) for name in layers.state_dict()}
    entries = {name: temporal_conv_entry(path) for name, path in blocks.items()}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _config(convs: Tensors) -> TemporalDecoderConfig:
    """Return the configuration inferred from tensor shapes. Raises KeyError for a missing tensor."""
    blocks = []
    for block in architecture.block_indices(convs, r"decoder\.up_blocks\.(\d+)\.temp_convs\.0\.convs\.0\.weight"):
        pattern = rf"decoder\.up_blocks\.{block}\.temp_convs\.(\d+)\.convs\.0\.weight"
        resnets = architecture.block_indices(convs, pattern)
        blocks.append((len(convs[f"decoder.up_blocks.{block}.temp_convs.0.convs.0.weight"]), len(resnets)))
    layers = architecture.block_indices(convs, r"decoder\.up_blocks\.0\.temp_convs\.0\.convs\.(\d+)\.weight")
    return TemporalDecoderConfig(blocks=tuple(blocks), convolutions=len(layers) // 2, joint_norms=True)


def fill_vae(vae: AutoencoderKL, tensors: Tensors, what: str) -> None:
    """Replace the VAE's weights by those of a VidRD checkpoint, if it has them.

    Raises InputError if tensors are missing, left over or of another shape.
    """
    expected = {name: each.shape for name, each in vae.state_dict().items()}
    own: dict[str, Tensor] = {}
    for name, each in key_map.select_prefix(VAE_PREFIX, tensors).items():
        if not TEMPORAL_CONV.match(name):
            name = OLD_NAME.sub(lambda found: f".{CURRENT_NAMES[found[1]]}.", name)
            own[name] = each.reshape(expected.get(name, each.shape))
    if own:
        kind = f"the VAE in {what} is not like the one in config"
        key_map.load_tensors(vae, own, key_map.identity_key_map(expected), kind)


VAE_FILES = [f"{at}{name}" for at in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors")]


def open_vae(vae: str | Path | AutoencoderKL, own: AutoencoderKL, hub_options: HubOptions) -> AutoencoderKL:
    """Open a VAE to use instead of a model's own. Raises InputError if its latents have other channels."""
    opened = vae if isinstance(vae, AutoencoderKL) else _read_vae(vae, own, hub_options)
    channels, expected = opened.config.latent_channels, own.config.latent_channels
    if channels != expected:
        raise InputError(f"the VAE has latents of {channels} channels, and the model {expected}: pass another")
    return opened


def _read_vae(vae: str | Path, own: AutoencoderKL, hub_options: HubOptions) -> AutoencoderKL:
    path = hub.local_path(vae) or hub.fetch_folder(str(vae), VAE_FILES, hub_options._replace(revision=None))
    if path.is_file():
        return single_file.vae_from_file(path, own)
    folder = path if (path / "config.json").is_file() else path / "vae"
    try:
        return AutoencoderKL.from_pretrained(folder, dtype=own.dtype, local_files_only=True)
    except READ_ERRORS as error:
        raise InputError(f"{vae} is no VAE in diffusers layout, or damaged: {error}") from error
