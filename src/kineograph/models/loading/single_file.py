"""Single-file checkpoints in the layout of Stable Diffusion's original code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from transformers import CLIPTokenizer

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import known_configurations, tensor_files
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import components
from kineograph.models.loading.components import Components

# All models of the family use CLIP's vocabulary. OpenCLIP, the second encoder of SDXL and the only one of SD 2.x, pads
# with "!", CLIP with the end token.
TOKENIZER = "openai/clip-vit-large-patch14"
CONVERSION_ERRORS = (SingleFileComponentError, RuntimeError, ValueError, KeyError, OSError)


class Checkpoint(NamedTuple):
    """A checkpoint in a single file, read into memory, and options for what it does not hold.

    config           a folder or repository in diffusers layout: the architecture, if it is not built in, and the
                     tokenizer, if CLIP's is neither on the Hub nor in its cache
    prediction_type  the network's prediction type, if the file does not determine it
    dtype            dtype of the networks
    """

    path: Path
    tensors: Tensors
    config: str | Path | None
    prediction_type: str | None
    dtype: torch.dtype
    hub_options: HubOptions


def components_from_file(file: Checkpoint) -> Components:
    """Return the components of an SD 1.x, 2.x or SDXL checkpoint.

    Raises InputError if the file is no such checkpoint or does not fit its configuration.
    """
    known_configurations.refuse_partial_checkpoint(file.path, file.tensors)
    with open_configuration(file) as folder:
        return _convert(file, folder)


def vae_from_file(path: Path, like: AutoencoderKL) -> AutoencoderKL:
    """Return the VAE in a single file, of the same architecture as `like`."""
    return _network_from_file(path, like, like.dtype, "a VAE like the model's own")


def controlnet_from_file(path: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet, with the configuration of one for this U-Net, from a single file."""
    like = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return _network_from_file(path, like, dtype, "a ControlNet for the model's architecture")


def _network_from_file(path: Path, like: Any, dtype: torch.dtype, kind: str) -> Any:
    """Return a network of the class and configuration of `like` with the weights in a file."""
    tensors = tensor_files.read_tensors(path)
    with TemporaryDirectory() as folder:
        like.save_config(folder)
        try:
            return type(like).from_single_file(tensors, config=folder, dtype=dtype)
        except (*CONVERSION_ERRORS, TypeError) as error:  # diffusers does not check the names
            raise InputError(
                f"{path} is not {kind}: {_first_line(error)}. "
                f"Its {len(tensors)} tensors are called {tensor_files.preview_names(tensors)}"
            ) from error


@contextmanager
def open_configuration(file: Checkpoint) -> Iterator[Path]:
    """Provide a folder with the configuration of every component, which diffusers reads."""
    if file.config is not None:
        yield hub.local_path(file.config) or hub.fetch_folder(str(file.config), hub.CONFIGS, file.hub_options)
        return
    family = known_configurations.match_family(file.path, file.tensors)
    with TemporaryDirectory() as folder:
        known_configurations.write_configuration(family, file.tensors, file.prediction_type, Path(folder))
        yield Path(folder)


def _convert(file: Checkpoint, folder: Path) -> Components:
    """Return the components of a checkpoint whose configuration is in a folder."""
    index = components.read_index(folder)
    encoder_classes = components.text_encoder_classes(index)
    tokenizers = [tokenizer_for_file(file, folder, suffix) for suffix, _ in encoder_classes]
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    try:
        networks = [
            create_diffusers_clip_model_from_ldm(
                kind, checkpoint=file.tensors, subfolder=f"text_encoder{suffix}", torch_dtype=file.dtype, **options
            )
            for suffix, kind in encoder_classes
        ]
        converted = Components(
            unet=UNet2DConditionModel.from_single_file(file.tensors, subfolder="unet", dtype=file.dtype, **options),
            vae=AutoencoderKL.from_single_file(file.tensors, subfolder="vae", dtype=file.dtype, **options),
            text_encoders=tuple(map(TextEncoder, tokenizers, networks)),
            scheduler=components.read_json(folder / "scheduler" / "scheduler_config.json"),
            force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt")),
        )
    except CONVERSION_ERRORS as error:
        raise InputError(f"{file.path} does not fit its configuration: {_first_line(error)}") from error
    # diffusers leaves parameters that the file lacks on the meta device, unless it has to cast them
    for part, network in converted.networks.items():
        if missing := [name for name, parameter in network.named_parameters() if parameter.is_meta]:
            names = tensor_files.preview_names(missing)
            raise InputError(f"{file.path} lacks {len(missing)} tensors of the {part}: {names}")
    return converted


def tokenizer_for_file(file: Checkpoint, folder: Path, suffix: str) -> CLIPTokenizer:
    """Return the tokenizer in a configuration's folder, or else CLIP's from the Hub.

    suffix: "" for the first text encoder, "_2" for the second. Raises InputError if it is in neither.
    """
    if (folder / f"tokenizer{suffix}").is_dir():
        return components.read_tokenizer(folder, suffix)
    is_openclip = components.read_json(folder / f"text_encoder{suffix}" / "config.json").get("hidden_act") == "gelu"
    try:
        fetched = hub.fetch_folder(TOKENIZER, hub.CONFIGS, file.hub_options._replace(revision=None))
    except InputError as error:
        raise InputError(
            f"{file.path} holds no tokenizer, as no single file does: name in `config` the folder of any model of "
            f"this family in diffusers layout, of which the weights are not read, or go online once, since {error}"
        ) from error
    return CLIPTokenizer.from_pretrained(fetched, pad_token="!" if is_openclip else "<|endoftext|>")


def _first_line(error: Exception) -> str:
    if isinstance(error, NotImplementedError):  # raised when a meta tensor is moved
        return "it lacks tensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
