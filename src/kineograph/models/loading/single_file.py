"""Single-file checkpoints in the layout of Stable Diffusion's original code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import architecture, key_map, known_configurations, ldm, tensor_files
from kineograph.models.formats.key_map import KeyMap
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import components
from kineograph.models.loading.components import Components
from kineograph.models.network_folders import Config, empty_network, empty_transformer, read_config, read_json

# All models of the family use CLIP's vocabulary. OpenCLIP, the second encoder of SDXL and the only one of SD 2.x, pads
# with "!", CLIP with the end token.
TOKENIZER = "openai/clip-vit-large-patch14"
VAE_PREFIX = "first_stage_model."
# prefixes of the tensors of each text encoder, with the names of transformers or of OpenCLIP
CLIP_PREFIXES = {
    "": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
    "_2": ("conditioner.embedders.1.transformer.",),
}
OPENCLIP_PREFIXES = {"": ("cond_stage_model.model.",), "_2": ("conditioner.embedders.1.model.",)}
# tensors of training, and of parts that no network here has
UNUSED_OF_VAE = re.compile(r"(?:loss|model_ema)\..*")
UNUSED_OF_TEXT_ENCODER = re.compile(r".*position_ids|logit_scale|attn_mask|text_projection(?:\.weight)?")


class Checkpoint(NamedTuple):
    """A checkpoint in a single file, read into memory, and options for what it does not hold.

    config           a folder or repository in diffusers layout: the architecture, if it is not built in, and the
                     tokenizer, if CLIP's is neither on the Hub nor in its cache
    prediction_type  the network's prediction type, if the file does not determine it
    dtype            dtype of the networks
    given_apart      "vae" for a VAE on the meta device, or None, to be replaced by another one
    """

    path: Path
    tensors: Tensors
    config: str | Path | None
    prediction_type: str | None
    dtype: torch.dtype
    hub_options: HubOptions
    given_apart: Sequence[str] = ()


def components_from_file(file: Checkpoint) -> Components:
    """Return the components of an SD 1.x, 2.x or SDXL checkpoint.

    Raises InputError if the file is no such checkpoint or does not fit its configuration.
    """
    known_configurations.refuse_partial_checkpoint(file.path, file.tensors, given_apart=file.given_apart)
    with architecture.report_missing_tensors(file.tensors, f"{file.path} looks like a checkpoint with scaled weights"):
        file = file._replace(tensors=tensor_files.restore_scaled_weights(file.tensors, file.dtype, str(file.path)))
    with open_configuration(file) as folder:
        index = components.read_index(folder)
        encoders = [
            TextEncoder(tokenizer_for_file(file, folder, suffix), _read_text_encoder(file, folder, suffix, kind))
            for suffix, kind in components.text_encoder_classes(index)
        ]
        return Components(
            unet=_read_unet(file, folder),
            vae=_read_vae(file, folder) if "vae" not in file.given_apart else components.empty_vae(folder, file.dtype),
            text_encoders=tuple(encoders),
            scheduler=scheduler_of_file(file, folder),
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt")),
        )


@contextmanager
def open_configuration(file: Checkpoint) -> Iterator[Path]:
    """Provide a folder with the configuration of every component."""
    if file.config is not None:
        folder = hub.local_path(file.config) or hub.fetch_folder(str(file.config), hub.CONFIGS, file.hub_options)
        components.refuse_other_families(components.read_index(folder), str(folder), given_apart=file.given_apart)
        yield folder
        return
    marks = _scheduler_marks(file)
    with TemporaryDirectory() as temporary:
        with architecture.report_missing_tensors(file.tensors, f"{file.path} looks like a checkpoint"):
            family = known_configurations.match_family(file.path, file.tensors)
            known_configurations.write_configuration(family, file.tensors, marks, Path(temporary))
        yield Path(temporary)


def _read_unet(file: Checkpoint, folder: Path) -> UNet2DConditionModel:
    config = read_config(folder / "unet", UNet2DConditionModel)
    unet = empty_network(UNet2DConditionModel, config, str(folder / "unet"))
    own = key_map.select_prefix(known_configurations.UNET, file.tensors)
    return _fill(unet, own, ldm.unet_key_map(unet), file, "U-Net")


def _read_vae(file: Checkpoint, folder: Path) -> AutoencoderKL:
    config = {**read_config(folder / "vae", AutoencoderKL), **known_configurations.vae_marks(file.tensors)}
    vae = empty_network(AutoencoderKL, config, str(folder / "vae"))
    own = {
        name: each
        for name, each in key_map.select_prefix(VAE_PREFIX, file.tensors).items()
        if not UNUSED_OF_VAE.fullmatch(name)
    }
    return _fill(vae, own, ldm.vae_key_map(vae), file, "VAE")


def _read_text_encoder(file: Checkpoint, folder: Path, suffix: str, kind: Any) -> Any:
    encoder = empty_transformer(kind, folder / f"text_encoder{suffix}")
    own, entries = text_encoder_tensors(file.tensors, suffix, encoder)
    return _fill(encoder, own, entries, file, f"text encoder{suffix.replace('_', ' ')}")


def text_encoder_tensors(tensors: Tensors, suffix: str, encoder: Any) -> tuple[Tensors, KeyMap]:
    """Return the tensors of a text encoder in a checkpoint, and the key map of their layout.

    suffix: "" for the first text encoder, "_2" for the second.
    """
    if clip := _select_prefixes(CLIP_PREFIXES[suffix], tensors):
        own: Tensors = {name.removeprefix("text_model."): each for name, each in clip.items()}
        entries = ldm.clip_key_map(encoder)
    else:
        last = f"transformer.resblocks.{encoder.config.num_hidden_layers}."  # which SD 2.x does not use
        openclip = _select_prefixes(OPENCLIP_PREFIXES[suffix], tensors)
        own = {name: each for name, each in openclip.items() if not name.startswith(last)}
        own, entries = ldm.transpose_projection(own), ldm.text_encoder_key_map(encoder)
    names = {entry.name for entry in entries.values()}
    return {
        name: each for name, each in own.items() if name in names or not UNUSED_OF_TEXT_ENCODER.fullmatch(name)
    }, entries


def _select_prefixes(prefixes: tuple[str, ...], tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: each for prefix in prefixes for name, each in key_map.select_prefix(prefix, tensors).items()}


def _fill(network: nn.Module, own: Tensors, entries: KeyMap, file: Checkpoint, part: str) -> Any:
    """Load a network's tensors of a checkpoint, in the dtype of the models, for evaluation."""
    key_map.load_tensors(network, own, entries, f"{file.path} does not fit its configuration, in its {part}")
    return network.to(file.dtype).eval()


def scheduler_of_file(file: Checkpoint, folder: Path) -> Config:
    """Return the scheduler of a configuration with the settings that the checkpoint states.

    Warns of those that the configuration contradicts.
    """
    config, marks = components.read_scheduler(folder), _scheduler_marks(file)
    changed = {name: value for name, value in marks.items() if config.get(name) != value}
    if changed and file.prediction_type is None:
        stated, instead = (", ".join(f"{name}={of.get(name)}" for name in changed) for of in (changed, config))
        warnings.warn(
            f"{file.path} states {stated}, and the scheduler in its configuration {instead}: the file's own is used, "
            "unless `prediction_type` is given",
            InputWarning,
            stacklevel=2,
        )
    return {**config, **changed}


def _scheduler_marks(file: Checkpoint) -> dict[str, Any]:
    """Return the settings of the scheduler that the option, tensors or metadata of a checkpoint state."""
    metadata = tensor_files.read_metadata(file.path)
    with architecture.report_missing_tensors(file.tensors, f"{file.path} states settings of its scheduler"):
        marks = known_configurations.scheduler_marks(file.tensors, metadata)
    return marks if file.prediction_type is None else {**marks, "prediction_type": file.prediction_type}


def tokenizer_for_file(file: Checkpoint, folder: Path, suffix: str) -> CLIPTokenizer:
    """Return the tokenizer in a configuration's folder, or else CLIP's from the Hub.

    suffix: "" for the first text encoder, "_2" for the second. Raises InputError if it is in neither.
    """
    if (folder / f"tokenizer{suffix}").is_dir():
        return components.read_tokenizer(folder, suffix)
    is_openclip = read_json(folder / f"text_encoder{suffix}" / "config.json").get("hidden_act") == "gelu"
    try:
        fetched = hub.fetch_folder(TOKENIZER, hub.CONFIGS, file.hub_options._replace(revision=None))
    except InputError as error:
        raise InputError(
            f"{file.path} holds no tokenizer, as no single file does: name in `config` the folder of any model of "
            f"this family in diffusers layout, of which the weights are not read, or go online once, since {error}"
        ) from error
    return components.open_tokenizer(fetched, pad_token="!" if is_openclip else "<|endoftext|>")
