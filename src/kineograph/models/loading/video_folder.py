"""Components of a video model in a folder in diffusers layout: temporal layers, and the image adapter.

temporal/config.json                                 a `TemporalConfig`
temporal/diffusion_pytorch_model.safetensors         the temporal layers
temporal_decoder/config.json                         a `TemporalDecoderConfig`
temporal_decoder/diffusion_pytorch_model.safetensors the temporal layers of the VAE's decoder
motion_adapter/motion_adapter.safetensors            a file of `adapter_files`
image_adapter/config.json                            an `ImageAdapterConfig`
image_adapter/ip_adapter.safetensors                 a file in IP-Adapter's own layout
image_encoder/                                       CLIP's vision model, in transformers' layout
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from kineograph.errors import InputError, check_integer, in_one_line, shown
from kineograph.hub import HubOptions
from kineograph.models.conditioning.image_encoder import (
    ImageEncoder,
    check_image_encoder,
    crop_to_square,
    stretch_to_square,
)
from kineograph.models.conditioning.resampler import (
    ResamplerConfig,
    add_resampler,
    ip_adapter_key_map,
    resampler_config,
)
from kineograph.models.formats import adapter_files, key_map, tensor_files
from kineograph.models.network_folders import (
    Record,
    empty_weights,
    read_config,
    read_json,
    read_network,
    read_record,
    validated,
)
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

CONFIG = "config.json"
NETWORK_WEIGHTS = "diffusion_pytorch_model.safetensors"
TEMPORAL = "temporal"
TEMPORAL_DECODER = "temporal_decoder"
MOTION_ADAPTER, MOTION_ADAPTER_WEIGHTS = "motion_adapter", "motion_adapter.safetensors"
IMAGE_ADAPTER, IMAGE_ADAPTER_WEIGHTS = "image_adapter", "ip_adapter.safetensors"
IMAGE_ENCODER = "image_encoder"
Layers = TypeVar("Layers", TemporalLayers, TemporalDecoder)
# names in `ImageAdapterConfig.fit`: the first changes the aspect ratio
FITS = {"squashed": stretch_to_square, "cropped": crop_to_square}


class ImageAdapterConfig(BaseModel):
    """The resampler's sizes and the fields of `ImageEncoder`: `fit` names its resize, `blank` is its empty_color."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resampler: ResamplerConfig
    layer: int
    fit: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blank: tuple[float, float, float]


def read_temporal_layers(folder: Path, unet: UNet2DConditionModel) -> TemporalLayers:
    """Return the temporal layers in a folder `temporal`, for this image network.

    Raises InputError if the folder is incomplete or damaged, or the layers are for another network.
    """
    config, what = read_temporal_config(folder), f"{folder} does not fit the image network beside it"
    with _empty_layers(what):
        layers = TemporalLayers(unet, config)
    return _load_weights(layers, folder, what)


def read_temporal_config(folder: Path) -> TemporalConfig:
    """Return the configuration in a folder `temporal`."""
    return _read_layers_config(TemporalConfig, folder)


def read_temporal_decoder(folder: Path) -> TemporalDecoder:
    """Return the layers in a folder `temporal_decoder`. Raises InputError if it is incomplete or damaged."""
    config, what = _read_layers_config(TemporalDecoderConfig, folder), f"{folder} does not fit its configuration"
    with _empty_layers(what):
        layers = TemporalDecoder(config)
    return _load_weights(layers, folder, what)


@contextmanager
def _empty_layers(what: str) -> Iterator[None]:
    """Build layers on the meta device, and turn errors of torch's layers for sizes that do not fit into InputError."""
    try:
        with empty_weights():
            yield
    except InputError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{what} ({in_one_line(error)})") from error


def _load_weights(layers: Layers, folder: Path, what: str) -> Layers:
    tensors = tensor_files.read_tensors(_file(folder, NETWORK_WEIGHTS))
    key_map.load_tensors(layers, tensors, key_map.identity_key_map(layers.state_dict()), what)
    return layers.eval()


def write_layers(layers: TemporalLayers | TemporalDecoder, folder: Path) -> None:
    """Write temporal layers or a temporal decoder into a new folder, which the functions above read."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(layers.config.model_dump(mode="json"), indent=2) + "\n")
    tensor_files.write_tensors(layers.state_dict(), folder / NETWORK_WEIGHTS)


def read_motion_adapter(folder: Path, temporal: TemporalLayers) -> MotionAdapter | None:
    """Return a pipeline's motion adapter for its temporal layers, None if it has none."""
    if not (folder / MOTION_ADAPTER).is_dir():
        return None
    path = _file(folder / MOTION_ADAPTER, MOTION_ADAPTER_WEIGHTS)
    file = adapter_files.read_adapter_file(path, "motion", HubOptions())
    return adapter_files.build_motion_adapter(file, temporal, folder.name)


def read_image_adapter(folder: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ImageEncoder | None:
    """Add a pipeline's image adapter to its U-Net and return its image encoder, None if it has none."""
    if not (folder / IMAGE_ADAPTER).is_dir():
        return None
    config = read_record(ImageAdapterConfig, _file(folder / IMAGE_ADAPTER, CONFIG))
    if config.fit not in FITS:
        raise InputError(f"{folder / IMAGE_ADAPTER / CONFIG} has fit {config.fit!r}: expected {' or '.join(FITS)}")
    what = f"{folder / IMAGE_ADAPTER} does not fit the image network beside it"
    with _empty_layers(what):
        add_resampler(unet, config.resampler)
    tensors = tensor_files.read_tensors(_file(folder / IMAGE_ADAPTER, IMAGE_ADAPTER_WEIGHTS))
    key_map.load_tensors(unet, tensors, ip_adapter_key_map(unet), what)
    unet.eval()
    classes = read_config(folder / IMAGE_ENCODER, CLIPVisionModel).get("architectures")
    projects = "CLIPVisionModelWithProjection" in (classes or ())
    kind: type[nn.Module] = CLIPVisionModelWithProjection if projects else CLIPVisionModel
    network: Any = read_network(kind, folder / IMAGE_ENCODER, dtype=dtype)
    check_integer(
        f"layer in {folder / IMAGE_ADAPTER / CONFIG}", config.layer, -network.config.num_hidden_layers - 1, -1
    )
    encoder = ImageEncoder(network, config.layer, FITS[config.fit], config.mean, config.std, config.blank)
    check_image_encoder(unet, encoder, str(folder / IMAGE_ADAPTER))
    return encoder


def write_image_adapter(unet: UNet2DConditionModel, encoder: ImageEncoder | None, folder: Path) -> None:
    """Write a U-Net's image adapter, if it has one, and the image encoder into a pipeline's folder."""
    resampler = resampler_config(unet)
    if resampler is None or encoder is None:
        return
    config = ImageAdapterConfig(
        resampler=resampler,
        layer=encoder.layer,
        fit=next(name for name, resize in FITS.items() if resize is encoder.resize),
        mean=encoder.mean,
        std=encoder.std,
        blank=encoder.empty_color,
    )
    (folder / IMAGE_ADAPTER).mkdir()
    (folder / IMAGE_ADAPTER / CONFIG).write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    tensors = key_map.export_tensors(unet.state_dict(), ip_adapter_key_map(unet))
    tensor_files.write_tensors(tensors, folder / IMAGE_ADAPTER / IMAGE_ADAPTER_WEIGHTS)
    with tensor_files.as_os_error(folder / IMAGE_ENCODER):
        encoder.network.save_pretrained(folder / IMAGE_ENCODER)


def write_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write a U-Net without its image adapter into a new folder, which diffusers can load."""
    adapter = ip_adapter_key_map(unet)
    settings = json.loads(unet.to_json_string()) | {"encoder_hid_dim_type": None}
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(settings, indent=2))
    image_weights = {name: each for name, each in unet.state_dict().items() if name not in adapter}
    tensor_files.write_tensors(image_weights, folder / NETWORK_WEIGHTS)


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"{folder} has no {name}: it is incomplete, fetch or save it again")
    return folder / name


def _read_layers_config(kind: type[Record], folder: Path) -> Record:
    config = read_json(_file(folder, CONFIG))
    if network := config.get("_class_name") or config.get("architectures"):
        names = ", ".join(map(str, network)) if isinstance(network, list) else network
        raise InputError(f"{folder} holds a {shown(names)}, where temporal layers are expected")
    return validated(kind, config, str(folder / CONFIG))
