"""What a video model adds to a folder in diffusers layout: layers along time, and what reads pictures.

temporal/config.json                                 a `TemporalConfig`
temporal/diffusion_pytorch_model.safetensors         the layers along time
temporal_decoder/config.json                         a `DecoderConfig`
temporal_decoder/diffusion_pytorch_model.safetensors the layers along time of the VAE's decoder
motion_adapter/motion_adapter.safetensors            as `adapter_files` has it
image_adapter/config.json                            a `ResamplerConfig`, and how pictures are read
image_adapter/ip_adapter.safetensors                 as IP-Adapter's own files are
image_encoder/                                       CLIP's vision tower, in transformers' layout
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning import image_encoder
from kineograph.models.conditioning import resampler as image_adapter
from kineograph.models.conditioning.image_encoder import ImageEncoder
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.formats import key_map, tensor_files
from kineograph.models.loading import adapter_files
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

CONFIG = "config.json"
TEMPORAL, TEMPORAL_WEIGHTS = "temporal", "diffusion_pytorch_model.safetensors"
TEMPORAL_DECODER = "temporal_decoder"
MOTION_ADAPTER, MOTION_ADAPTER_WEIGHTS = "motion_adapter", "motion_adapter.safetensors"
IMAGE_ADAPTER, IMAGE_ADAPTER_WEIGHTS = "image_adapter", "ip_adapter.safetensors"
IMAGE_ENCODER = "image_encoder"
FITS = {fit.__name__: fit for fit in (image_encoder.stretch_to_square, image_encoder.crop_to_square)}


class ImageAdapterConfig(BaseModel):
    """The resampler, and how its pictures are read: see `PictureReader`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resampler: ResamplerConfig
    layer: int
    fit: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    blank: tuple[float, float, float]


def read_temporal_layers(folder: Path, unet: UNet2DConditionModel) -> TemporalLayers:
    """The layers along time of a folder `temporal`, for this image network.

    Raises InputError when the folder is incomplete or damaged, or the layers are for another network.
    """
    config = read_temporal_config(folder)
    with init_empty_weights(include_buffers=False):
        layers = TemporalLayers(unet, config)
    tensors = tensor_files.read_tensors(_file(folder, TEMPORAL_WEIGHTS))
    key_map.load_tensors(
        layers,
        tensors,
        key_map.identity_key_map(layers.state_dict()),
        f"{folder} does not fit the image network beside it",
    )
    return layers.eval()


def read_temporal_config(folder: Path) -> TemporalConfig:
    """What a folder `temporal` says its layers are."""
    return _validated(TemporalConfig, _file(folder, CONFIG))


def write_temporal_layers(layers: TemporalLayers, folder: Path) -> None:
    """Write layers along time into a new folder `temporal`."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(layers.config.model_dump(mode="json"), indent=2))
    _save(layers.state_dict(), folder / TEMPORAL_WEIGHTS)


def read_temporal_decoder(folder: Path) -> TemporalDecoder:
    """The layers of a folder `temporal_decoder`. Raises InputError when it is incomplete or damaged."""
    with init_empty_weights(include_buffers=False):
        layers = TemporalDecoder(_validated(TemporalDecoderConfig, _file(folder, CONFIG)))
    tensors = tensor_files.read_tensors(_file(folder, TEMPORAL_WEIGHTS))
    key_map.load_tensors(
        layers, tensors, key_map.identity_key_map(layers.state_dict()), f"{folder} does not fit its configuration"
    )
    return layers.eval()


def write_temporal_decoder(layers: TemporalDecoder, folder: Path) -> None:
    """Write a temporal decoder's layers into a new folder."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(layers.config.model_dump(mode="json"), indent=2) + "\n")
    _save(layers.state_dict(), folder / TEMPORAL_WEIGHTS)


def read_motion_adapter(folder: Path, temporal: TemporalLayers) -> MotionAdapter | None:
    """A pipeline's motion adapter, for its layers along time; nothing if it has none."""
    if not (folder / MOTION_ADAPTER).is_dir():
        return None
    adapter = adapter_files.read_adapter_file(
        _file(folder / MOTION_ADAPTER, MOTION_ADAPTER_WEIGHTS), "motion", HubOptions()
    )
    return adapter_files.build_motion_adapter(adapter, temporal, folder.name)


def read_image_adapter(folder: Path, unet: UNet2DConditionModel, dtype: torch.dtype) -> ImageEncoder | None:
    """Put a pipeline's image adapter on its network, and give what reads its pictures; nothing if it has none."""
    if not (folder / IMAGE_ADAPTER).is_dir():
        return None
    config = _validated(ImageAdapterConfig, _file(folder / IMAGE_ADAPTER, CONFIG))
    if config.fit not in FITS:
        raise InputError(f"{folder / IMAGE_ADAPTER / CONFIG} has fit {config.fit!r}: expected {' or '.join(FITS)}")
    with init_empty_weights(include_buffers=False):
        image_adapter.add_resampler(unet, config.resampler)
    tensors = tensor_files.read_tensors(_file(folder / IMAGE_ADAPTER, IMAGE_ADAPTER_WEIGHTS))
    what = f"{folder / IMAGE_ADAPTER} does not fit the image network beside it"
    key_map.load_tensors(unet, tensors, image_adapter.ip_adapter_key_map(unet), what)
    unet.eval()
    encoder = _encoder(folder / IMAGE_ENCODER, dtype)
    return ImageEncoder(encoder, config.layer, FITS[config.fit], config.mean, config.std, config.blank)


def _encoder(folder: Path, dtype: torch.dtype) -> CLIPVisionModel | CLIPVisionModelWithProjection:
    projects = "CLIPVisionModelWithProjection" in json.loads(_file(folder, CONFIG).read_text()).get("architectures", [])
    kind = CLIPVisionModelWithProjection if projects else CLIPVisionModel
    return kind.from_pretrained(folder, dtype=dtype, local_files_only=True)


def write_image_adapter(unet: UNet2DConditionModel, reader: ImageEncoder | None, folder: Path) -> None:
    """Write the image adapter on a network, if there is one, and its encoder, into a pipeline's folder."""
    resampler = image_adapter.resampler_config(unet)
    if resampler is None or reader is None:
        return
    config = ImageAdapterConfig(
        resampler=resampler,
        layer=reader.layer,
        fit=reader.fit.__name__,
        mean=reader.mean,
        std=reader.std,
        blank=reader.blank,
    )
    (folder / IMAGE_ADAPTER).mkdir()
    (folder / IMAGE_ADAPTER / CONFIG).write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    _save(
        key_map.export_tensors(unet.state_dict(), image_adapter.ip_adapter_key_map(unet)),
        folder / IMAGE_ADAPTER / IMAGE_ADAPTER_WEIGHTS,
    )
    reader.network.save_pretrained(folder / IMAGE_ENCODER)


def write_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write an image network into a new folder, without the image adapter on it, so that diffusers opens it."""
    beside = image_adapter.ip_adapter_key_map(unet)
    settings = json.loads(unet.to_json_string()) | {"encoder_hid_dim_type": None}
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(settings, indent=2))
    plain = {name: each for name, each in unet.state_dict().items() if name not in beside}
    _save(plain, folder / TEMPORAL_WEIGHTS)


def _save(state: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: each.detach().contiguous() for name, each in state.items()}, file, metadata={"format": "pt"})


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"{folder} has no {name}: it is incomplete, fetch or save it again")
    return folder / name


def _validated(kind: type[Any], file: Path) -> Any:
    try:
        return kind.model_validate_json(file.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is damaged, or from a newer Kineograph: {error}") from error
