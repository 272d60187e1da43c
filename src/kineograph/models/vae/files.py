"""VAEs and temporal decoders from folders, files and repositories.

In VidRD's own layout the VAE has diffusers' names, and every block a list `temp_convs` beside its ResNet blocks.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import re
from pathlib import Path

from accelerate import init_empty_weights
from diffusers import AutoencoderKL

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.formats import key_map, shapes, tensor_files
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import known_configurations, single_file, video_folder
from kineograph.models.loading.components import READ_ERRORS
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

VAE_PREFIX = "vae."
TEMPORAL_CONV = re.compile(r"decoder\.up_blocks\.(\d+)\.temp_convs\.(\d+)\.")
CONVOLUTION = re.compile(r"up_blocks\.(\d+)\.(\d+)\.conv(\d)\.(norm|conv)\.(\w+)")
STEM = "diffusion_pytorch_model"
FILES = [f"{at}{name}" for at in ("", "temporal_decoder/") for name in ("config.json", f"{STEM}.safetensors")]
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers' earlier names


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
        if (folder / video_folder.CONFIG).is_file() and not _is_saved_by_diffusers(folder):
            return video_folder.read_temporal_decoder(folder)
    weights = [each for each in (path / f"{STEM}.safetensors", path / f"{STEM}.bin") if each.is_file()]
    if not weights:
        present = tensor_files.preview_names(sorted(each.name for each in path.iterdir()))
        raise InputError(
            f"{path} has no temporal decoder: expected a folder {video_folder.TEMPORAL_DECODER}, or VidRD's VAE in "
            f"diffusers layout; it holds {present or 'nothing'}"
        )
    return read_vidrd_decoder(tensor_files.read_tensors(weights[0]), str(weights[0]))


def _is_saved_by_diffusers(folder: Path) -> bool:
    """Return True for a network saved by diffusers, False for temporal layers saved by this library."""
    return '"_class_name"' in (folder / video_folder.CONFIG).read_text()


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
    with shapes.report_missing_tensors(convs, description), init_empty_weights(include_buffers=False):
        layers = TemporalDecoder(_config(convs))
    key_map.load_tensors(layers, convs, vidrd_key_map(layers), f"{description}, but does not fit one")
    return layers.eval()


def vidrd_key_map(layers: TemporalDecoder) -> dict[str, Entry]:
    """Return the name of each tensor in VidRD's VAE."""
    return {name: _entry(name) for name in layers.state_dict()}


def _entry(name: str) -> Entry:
    found = CONVOLUTION.fullmatch(name)
    assert found is not None, name
    block, resnet, number, kind, leaf = found.groups()
    at = 4 * (int(number) - 1) + (3 if kind == "conv" else 0)  # norm, SiLU, dropout, convolution
    ones = 1 if (kind, leaf) == ("conv", "weight") else 0
    return Entry(f"decoder.up_blocks.{block}.temp_convs.{resnet}.convs.{at}.{leaf}", trailing_ones=ones)


def _config(convs: Tensors) -> TemporalDecoderConfig:
    """Return the configuration that follows from shapes. Raises KeyError for a missing tensor."""
    first = r"decoder\.up_blocks\.0\.temp_convs\.0\.convs\.(\d+)\.weight"
    blocks = shapes.block_indices(convs, r"decoder\.up_blocks\.(\d+)\.temp_convs\.0\.convs\.0\.weight")
    return TemporalDecoderConfig(
        blocks=tuple(
            (
                len(convs[f"decoder.up_blocks.{block}.temp_convs.0.convs.0.weight"]),
                len(shapes.block_indices(convs, rf"decoder\.up_blocks\.{block}\.temp_convs\.(\d+)\.convs\.0\.weight")),
            )
            for block in blocks
        ),
        convolutions=len(shapes.block_indices(convs, first)) // 2,
        joint_norms=True,
    )


def fill_vae(vae: AutoencoderKL, tensors: Tensors, what: str) -> None:
    """Replace the VAE's weights by those of a VidRD checkpoint, if it has them.

    Raises InputError if tensors are missing, left over or of another shape.
    """
    own = {
        _current_name(name): each
        for name, each in key_map.select_prefix(VAE_PREFIX, tensors).items()
        if not TEMPORAL_CONV.match(name)
    }
    if own:
        expected = {name: each.shape for name, each in vae.state_dict().items()}
        own = {name: each.reshape(expected.get(name, each.shape)) for name, each in own.items()}
        key_map.load_tensors(
            vae, own, key_map.identity_key_map(expected), f"the VAE in {what} is not like the one in config"
        )


def _current_name(name: str) -> str:
    path, _, last = name.rpartition(".")
    before, _, inner = path.rpartition(".")
    return f"{before}.{OLD_ATTENTION[inner]}.{last}" if inner in OLD_ATTENTION else name


VAE_FILES = [f"{at}{name}" for at in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors")]


def open_vae(vae: str | Path | AutoencoderKL, own: AutoencoderKL, hub_options: HubOptions) -> AutoencoderKL:
    """Open a VAE to use instead of a model's own. Raises InputError if its latents have other channels."""
    opened = vae if isinstance(vae, AutoencoderKL) else _opened(vae, own, hub_options)
    here, expected = opened.config.latent_channels, own.config.latent_channels
    if here != expected:
        raise InputError(f"the VAE has latents of {here} channels, and the model {expected}: pass another")
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
