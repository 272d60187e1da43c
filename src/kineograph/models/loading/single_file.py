"""Checkpoints that are one file in Stable Diffusion's own layout, as they are shared and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from torch import nn
from transformers import CLIPTokenizer

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import tensor_files
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import components, known_configurations
from kineograph.models.loading.components import Components

# All models of the family read CLIP's one vocabulary. OpenCLIP, the second encoder of SDXL and the only one of
# SD 2.x, pads with "!" where CLIP repeats the end mark.
TOKENIZER = "openai/clip-vit-large-patch14"
MISFITS = (SingleFileComponentError, RuntimeError, ValueError, KeyError, OSError)


def components_from_file(
    path: Path,
    tensors: Tensors,
    config: str | Path | None,
    prediction_type: str | None,
    dtype: torch.dtype,
    hub_options: HubOptions,
) -> Components:
    """The parts of a model that is one file, which holds these tensors.

    config: a folder or repository in diffusers layout, for what the file does not hold: the architecture, unless it
    is one of the catalogue's, and the tokenizer, unless CLIP's is in reach on the Hub or in its cache.
    Raises InputError when the file is no such checkpoint or does not fit the configuration.
    """
    known_configurations.refuse_partial_checkpoint(path, tensors)
    with _configured(path, tensors, config, prediction_type, hub_options) as folder:
        index = components.read_index(folder)
        tokenizers = [
            tokenizer_for_file(path, folder, end, hub_options) for end, _ in components.text_encoder_classes(index)
        ]
        return _converted(path, tensors, folder, tokenizers, dtype)


def vae_from_file(path: Path, like: AutoencoderKL) -> AutoencoderKL:
    """A VAE that is one file, of the same architecture as `like`."""
    tensors = tensor_files.read_tensors(path)
    with TemporaryDirectory() as folder:
        like.save_config(folder)
        try:
            return AutoencoderKL.from_single_file(tensors, config=folder, dtype=like.dtype)
        except MISFITS as error:
            raise InputError(
                f"{path} is not a VAE like the model's own: {_first_line(error)}. "
                f"Its {len(tensors)} tensors are called {tensor_files.preview_names(tensors)}"
            ) from error


def controlnet_from_file(path: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """A ControlNet that is one file, for this U-Net."""
    tensors = tensor_files.read_tensors(path)
    with TemporaryDirectory() as folder:
        ControlNetModel.from_unet(unet, load_weights_from_unet=False).save_config(folder)
        try:
            return ControlNetModel.from_single_file(tensors, config=folder, dtype=dtype)
        except (*MISFITS, TypeError) as error:  # diffusers takes the names for granted
            raise InputError(
                f"{path} is not a ControlNet for the model's architecture: {_first_line(error)}. "
                f"Its {len(tensors)} tensors are called {tensor_files.preview_names(tensors)}"
            ) from error


@contextmanager
def _configured(
    path: Path, checkpoint: Tensors, config: str | Path | None, prediction_type: str | None, hub_options: HubOptions
) -> Iterator[Path]:
    """A folder with the configuration of every part, which diffusers reads from there."""
    if config is not None:
        yield hub.local_path(config) or hub.fetch_folder(str(config), hub.CONFIGS, hub_options)
        return
    known = known_configurations.match_family(path, checkpoint)
    with TemporaryDirectory() as folder:
        known_configurations.write_configuration(known, checkpoint, prediction_type, Path(folder))
        yield Path(folder)


def _converted(
    path: Path, checkpoint: Tensors, folder: Path, tokenizers: list[CLIPTokenizer], dtype: torch.dtype
) -> Components:
    index = components.read_index(folder)
    try:
        networks = [
            _text_encoder(checkpoint, folder, end, kind, dtype) for end, kind in components.text_encoder_classes(index)
        ]
        opened = Components(
            unet=UNet2DConditionModel.from_single_file(
                checkpoint, config=str(folder), subfolder="unet", dtype=dtype, local_files_only=True
            ),
            vae=AutoencoderKL.from_single_file(
                checkpoint, config=str(folder), subfolder="vae", dtype=dtype, local_files_only=True
            ),
            text=tuple(map(TextEncoder, tokenizers, networks)),
            scheduler=components.read_json(folder / "scheduler" / "scheduler_config.json"),
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt")),
        )
    except MISFITS as error:
        raise InputError(f"{path} does not fit its configuration: {_first_line(error)}") from error
    _refuse_incomplete(path, opened.networks)
    return opened


def _text_encoder(checkpoint: Tensors, folder: Path, end: str, kind: type, dtype: torch.dtype) -> nn.Module:
    return create_diffusers_clip_model_from_ldm(
        kind,
        checkpoint=checkpoint,
        subfolder=f"text_encoder{end}",
        config=str(folder),
        torch_dtype=dtype,
        local_files_only=True,
    )


def tokenizer_for_file(path: Path, folder: Path, end: str, hub_options: HubOptions) -> CLIPTokenizer:
    """The tokenizer for a file whose configuration is in this folder, from there or from the Hub.

    Raises InputError when neither has it.
    """
    if (folder / f"tokenizer{end}").is_dir():
        return components.read_tokenizer(folder, end)
    is_openclip = components.read_json(folder / f"text_encoder{end}" / "config.json").get("hidden_act") == "gelu"
    try:
        fetched = hub.fetch_folder(TOKENIZER, hub.CONFIGS, hub_options._replace(revision=None))
    except InputError as error:
        raise InputError(
            f"{path} holds no tokenizer, as no single file does: pass config= the folder of any model of this family "
            f"in diffusers layout, of which the weights are not read, or go online once, since {error}"
        ) from error
    return CLIPTokenizer.from_pretrained(fetched, pad_token="!" if is_openclip else "<|endoftext|>")


def _refuse_incomplete(path: Path, networks: Mapping[str, nn.Module]) -> None:
    """Tensors that a file lacks are left without storage, and in float32 nothing has moved them yet."""
    for part, network in networks.items():
        missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
        if missing:
            raise InputError(
                f"{path} lacks {len(missing)} tensors of the {part}: {tensor_files.preview_names(missing)}"
            )


def _first_line(error: Exception) -> str:
    if isinstance(error, NotImplementedError):  # from moving a tensor that is not there
        return "it lacks tensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
