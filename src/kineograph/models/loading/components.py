"""The parts of a diffusers pipeline, taken from a folder or from one that is open."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from kineograph.errors import InputError
from kineograph.models.conditioning.image_encoder import ImageEncoder
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import animatediff, modelscope
from kineograph.models.formats.tensor_files import preview_names
from kineograph.models.loading import video_folder
from kineograph.models.temporal.adapters import MotionAdapter, SpatialAdapter
from kineograph.models.temporal.config import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae.temporal_decoder import TemporalDecoder

INDEX = "model_index.json"
# video networks of diffusers that are an image network and layers along time
VIDEO_UNETS: Mapping[str, Callable[[Any], VideoUNet]] = {
    "UNet3DConditionModel": modelscope.video_unet_from_modelscope,
    "UNetMotionModel": animatediff.video_unet_from_animatediff,
}
UNETS = {each.__name__: each for each in (UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel)}
EXPECTED_CLASSES = {
    "unet": ("UNet2DConditionModel", *VIDEO_UNETS),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
}
TEXT_ENCODERS = {each.__name__: each for each in (CLIPTextModel, CLIPTextModelWithProjection)}
READ_ERRORS = (OSError, SafetensorError, ValueError, RuntimeError, KeyError)

Config = Mapping[str, Any]


@runtime_checkable
class Pipeline(Protocol):
    """What an open diffusers pipeline is, as far as this file cares: nothing of diffusers is imported to tell."""

    @property
    def components(self) -> dict[str, Any]: ...

    @property
    def config(self) -> Any: ...


class Components(NamedTuple):
    """Networks and settings that make a model; force_zeros and subject are as in `Model`, words what LoRAs taught."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: tuple[TextEncoder, ...]
    scheduler: Config
    force_zeros: bool
    reader: ImageEncoder | None = None
    temporal: TemporalLayers | None = None
    decoder: TemporalDecoder | None = None
    motion_adapter: MotionAdapter | None = None
    spatial_adapter: SpatialAdapter | None = None
    subject: str | None = None
    words: tuple[str, ...] = ()

    @property
    def net(self) -> VideoUNet:
        """The network of them all."""
        return VideoUNet(
            self.unet, self.temporal, motion_adapter=self.motion_adapter, spatial_adapter=self.spatial_adapter
        )

    @property
    def beside(self) -> list[nn.Module]:
        """What has a format of numbers and no place in `networks`: adapters beside layers, and what reads pictures."""
        pictures = [] if self.reader is None else [self.reader.network]
        return [*pictures, *(each for each in (self.motion_adapter, self.spatial_adapter) if each is not None)]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that adapters go on, by their names in a pipeline; `temporal` for layers along time."""
        encoders = (encoder.network for encoder in self.text)
        along = {} if self.temporal is None else {"temporal": self.temporal}
        return {"unet": self.unet, **dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False)), **along}


def components_from_pipeline(pipeline: Pipeline) -> Components:
    """The parts of an open pipeline, shared with it; of a video network the weights are.

    Raises InputError when it is of another family.
    """
    parts = pipeline.components
    refuse_other_families({part: (None, type(parts.get(part)).__name__) for part in EXPECTED_CLASSES}, "this pipeline")
    pairs = [
        (parts[f"tokenizer{end}"], parts[f"text_encoder{end}"]) for end in ("", "_2") if f"tokenizer{end}" in parts
    ]
    unet, temporal = _apart(parts["unet"])
    return Components(
        unet=unet,
        vae=parts["vae"],
        text=tuple(TextEncoder(*pair) for pair in pairs),
        scheduler=dict(parts["scheduler"].config),
        force_zeros=bool(pipeline.config.get("force_zeros_for_empty_prompt")),
        reader=ImageEncoder(parts["image_encoder"]) if parts.get("image_encoder") else None,
        temporal=temporal,
    )


def components_from_folder(folder: Path, dtype: torch.dtype, variant: str | None = None) -> Components:
    """The parts of a pipeline in diffusers layout. Raises InputError when something is missing or damaged."""
    index = read_index(folder)
    refuse_other_families(index, str(folder))
    options: dict[str, Any] = {"dtype": dtype, "variant": variant, "local_files_only": True}
    try:
        unet, temporal = read_unet(folder, index, options)
        return Components(
            unet=unet,
            vae=AutoencoderKL.from_pretrained(folder, subfolder="vae", **options),
            text=tuple(
                TextEncoder(
                    read_tokenizer(folder, end), kind.from_pretrained(folder, subfolder=f"text_encoder{end}", **options)
                )
                for end, kind in text_encoder_classes(index)
            ),
            scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
            force_zeros=bool(index.get("force_zeros_for_empty_prompt")),
            reader=video_folder.read_image_adapter(folder, unet, dtype),
            temporal=temporal,
            decoder=open_decoder(folder),
            motion_adapter=None if temporal is None else video_folder.read_motion_adapter(folder, temporal),
        )
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{folder} is incomplete or damaged: {error}") from error


def read_unet(
    folder: Path, index: Config, options: Mapping[str, Any]
) -> tuple[UNet2DConditionModel, TemporalLayers | None]:
    """The image network of a pipeline in diffusers layout, and the layers along time inside it or beside it."""
    unet, temporal = _apart(UNETS[index["unet"][1]].from_pretrained(folder, subfolder="unet", **options))
    beside = folder / video_folder.TEMPORAL
    return unet, video_folder.read_temporal_layers(beside, unet) if beside.is_dir() else temporal


def open_decoder(folder: Path) -> TemporalDecoder | None:
    """The temporal decoder of a pipeline in diffusers layout, if it has one."""
    beside = folder / video_folder.TEMPORAL_DECODER
    return video_folder.read_temporal_decoder(beside) if beside.is_dir() else None


def _apart(unet: nn.Module) -> tuple[UNet2DConditionModel, TemporalLayers | None]:
    """The image network of a pipeline, and its layers along time, if it has any."""
    split = VIDEO_UNETS.get(type(unet).__name__)
    if split is None:
        return unet, None
    net = split(unet)
    return net.image_unet, net.temporal


def read_index(folder: Path) -> Config:
    """What a folder says it is made of: part -> library and class."""
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has no {INDEX}: expected a pipeline in diffusers layout. "
            f"It holds {preview_names(sorted(each.name for each in folder.iterdir())) or 'nothing'}; "
            "a checkpoint that is a single file is loaded by the path of the file"
        )
    return read_json(folder / INDEX)


def text_encoder_classes(index: Config) -> list[tuple[str, type[CLIPTextModel] | type[CLIPTextModelWithProjection]]]:
    """How the names of the text encoders end, and their classes."""
    ends = [end for end in ("", "_2") if f"text_encoder{end}" in index]
    return [(end, TEXT_ENCODERS[index[f"text_encoder{end}"][1]]) for end in ends]


def read_tokenizer(folder: Path, end: str) -> CLIPTokenizer:
    """The tokenizer of a pipeline in diffusers layout, the first ("") or the second ("_2").

    Raises InputError when it is not there, where transformers would make one that knows no words.
    """
    if not any((folder / f"tokenizer{end}" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder} has no tokenizer{end}/tokenizer.json or vocab.json: fetch it again")
    return CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{end}", local_files_only=True)


def read_json(file: Path) -> Config:
    """A configuration. Raises InputError when it is damaged or not there."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is missing or damaged ({error}): fetch it again") from error


def refuse_other_families(index: Config, what: str) -> None:
    """Raises InputError unless these are the parts of a model of the SD 1.x, 2.x and SDXL family, or of its videos."""
    for part, expected in EXPECTED_CLASSES.items():
        _, kind = index.get(part) or (None, None)
        if not str(kind).startswith(expected):
            raise InputError(
                f"{what} has a {part} of the kind {kind}: expected {' or '.join(expected)}, "
                "as in models of the SD 1.x, 2.x and SDXL family"
            )
