"""VAEs and temporal decoders from folders, files and repositories.

A VAE is AutoencoderKL, or TAESD (AutoencoderTiny), which has other layers for the same latents. In VidRD's own layout
the VAE has diffusers' names, and every block a list `temp_convs` beside its ResNet blocks.
Source: the released code of "Reuse and Diffuse" (Gu et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.description import LATENT_CHANNELS, vae_scale_factor
from kineograph.models.formats import architecture, key_map, known_configurations, ldm, tensor_files
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.formats.vidrd import temporal_conv_entry
from kineograph.models.loading import single_file, video_folder
from kineograph.models.network_folders import empty_network, empty_weights, read_config, read_json, read_network
from kineograph.models.vae.autoencoder import VAE, VAES
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
        if config.is_file() and "_class_name" not in read_json(config):  # which networks saved by diffusers have
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
            f"{known_configurations.describe_tensors(tensors, 'decoder')}"
        )
    description = f"{source} looks like VidRD's temporal decoder"
    with architecture.report_missing_tensors(convs, description), empty_weights():
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
VAE_PREFIXES = ("first_stage_model.", VAE_PREFIX)
# layers of TAESD in its authors' files; the decoder's are counted from a clamp, which diffusers does not count
TAESD_LAYER = re.compile(r"(\d+)\.((?:conv\.\d+\.|skip\.)?(?:weight|bias))")
TAESD_LATENTS = {"decoder.layers.0.weight": 1, "encoder.layers.14.weight": 0}  # -> dimension of the latents' channels
TAESD_SIDES = ("encoder", "decoder")


def open_vae(vae: str | Path | nn.Module, own: VAE | None, dtype: torch.dtype, hub_options: HubOptions) -> VAE:
    """Open a VAE to use instead of a model's own.

    own: None for a model without a VAE. Raises InputError if it is a network of another kind, tensors are missing, or
    its latents have other channels or another size than those of the model's own VAE.
    """
    opened: Any = _read_vae(vae, own, dtype, hub_options) if isinstance(vae, str | Path) else vae
    _refuse_other_kind(type(opened).__name__, "the network given as `vae`")
    if own is not None:
        refuse_other_latents(opened.config, own.config.latent_channels, vae_scale_factor(own.config))
    return opened


def refuse_other_latents(config: Mapping[str, Any], latent_channels: int, scale_factor: int) -> None:
    """Raise InputError if the latents of a VAE have other channels or another size than a model's."""
    channels, factor = config.get("latent_channels", LATENT_CHANNELS), vae_scale_factor(config)
    if channels != latent_channels:
        raise InputError(f"the VAE has latents of {channels} channels, and the model {latent_channels}: pass another")
    if factor != scale_factor:
        raise InputError(
            f"the VAE makes latents {factor} times smaller than images, and the model's own {scale_factor} times: pass "
            "one that was trained for the model's latents"
        )


def find_vae(vae: str | Path, hub_options: HubOptions, patterns: list[str] = VAE_FILES) -> Path:
    """Return the file of a VAE, or its folder: a network's own, or `vae` in a pipeline's. patterns: of downloads."""
    path = hub.local_path(vae) or hub.fetch_folder(str(vae), patterns, hub_options._replace(revision=None))
    return path if path.is_file() or (path / "config.json").is_file() else path / "vae"


def vae_configuration(path: Path) -> Mapping[str, Any] | None:
    """Return the configuration of a VAE in a file or folder; None for a file of one like the model's own."""
    if path.is_dir():
        config = _read_config(path)
        _refuse_other_kind(config["_class_name"], str(path))
        return config
    tensors = tensor_files.read_header(path)
    return _empty_taesd(tensors).config if tensors and _is_taesd(tensors) else None


def _read_vae(vae: str | Path, own: VAE | None, dtype: torch.dtype, hub_options: HubOptions) -> VAE:
    path = find_vae(vae, hub_options)
    if path.is_file():
        return _read_file(path, own).to(dtype).eval()
    kind = _read_config(path)["_class_name"]
    _refuse_other_kind(kind, str(vae))
    return read_network(VAES[kind], path, dtype=dtype)


def _read_config(folder: Path) -> Mapping[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no VAE in diffusers layout: it has no config.json")
    return {"_class_name": AutoencoderKL.__name__, **read_config(folder, *VAES.values())}


def _refuse_other_kind(kind: str, what: str) -> None:
    if kind not in tuple(VAES):
        raise InputError(
            f"{what} is of the kind {kind}: expected {' or '.join(VAES)} (TAESD), as in models of the SD 1.x, 2.x and "
            "SDXL family"
        )


def _read_file(path: Path, own: VAE | None) -> VAE:
    """Return the VAE in a file: TAESD, or one like the model's own, alone or in a checkpoint."""
    tensors = tensor_files.read_tensors(path)
    known_configurations.refuse_other_kind(path, tensors, "vae")
    if _is_taesd(tensors):
        opened, what = _empty_taesd(tensors), f"{path} looks like TAESD, but does not fit it"
        tensors = _with_other_side(tensors, path)
        key_map.load_tensors(opened, tensors, key_map.identity_key_map(opened.state_dict()), what)
        return opened
    config = own.config if isinstance(own, AutoencoderKL) else known_configurations.VAE
    opened = empty_network(AutoencoderKL, config, str(path))
    prefix = next((each for each in VAE_PREFIXES if any(name.startswith(each) for name in tensors)), "")
    weights = {
        OLD_NAME.sub(lambda found: f".{CURRENT_NAMES[found[1]]}.", name): each
        for name, each in key_map.select_prefix(prefix, tensors).items()
        if not single_file.UNUSED_OF_VAE.fullmatch(name)
    }
    in_diffusers = any("_blocks." in name for name in weights)
    entries = key_map.identity_key_map(opened.state_dict()) if in_diffusers else ldm.vae_key_map(opened)
    key_map.load_tensors(opened, weights, entries, f"{path} is not a VAE like the model's own")
    return opened


def _is_taesd(tensors: Tensors) -> bool:
    """Return True for the tensors of TAESD, in diffusers' names or those of one side in its authors' files."""
    return any(name.startswith(("encoder.layers.", "decoder.layers.")) for name in tensors) or all(
        map(TAESD_LAYER.fullmatch, tensors)
    )


def _empty_taesd(tensors: Tensors) -> AutoencoderTiny:
    """Return TAESD on the meta device, for latents of as many channels as the tensors of either side have."""
    named = _to_diffusers(tensors)
    with architecture.report_missing_tensors(tensors, "the file looks like TAESD"):
        channels = [named[name].shape[dimension] for name, dimension in TAESD_LATENTS.items() if name in named]
    with empty_weights():
        return AutoencoderTiny(**({"latent_channels": channels[0]} if channels else {}))


def _to_diffusers(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of TAESD with diffusers' names."""
    if not all(map(TAESD_LAYER.fullmatch, tensors)):
        return dict(tensors)
    is_encoder = any(name.startswith("0.") for name in tensors)
    side, first = ("encoder", 0) if is_encoder else ("decoder", 1)
    found = {name: TAESD_LAYER.fullmatch(name) for name in tensors}
    return {
        f"{side}.layers.{int(match[1]) - first}.{match[2]}": tensors[name] for name, match in found.items() if match
    }


def _with_other_side(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """Return TAESD's tensors with those of the file of its other side beside it, if they are in two files."""
    both = _to_diffusers(tensors)
    missing = [side for side in TAESD_SIDES if not any(name.startswith(side) for name in both)]
    if not missing:
        return both
    (there,) = set(TAESD_SIDES) - set(missing)
    other = path.with_name(path.name.replace(there, missing[0]))
    if other == path or not other.is_file():
        raise InputError(
            f"{path} is the {there} of TAESD alone: put its {missing[0]} beside it as {other.name}, or pass the folder "
            "of madebyollin/taesd (taesdxl) in diffusers layout"
        )
    return both | _to_diffusers(tensor_files.read_tensors(other))
