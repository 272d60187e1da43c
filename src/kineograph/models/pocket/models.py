"""Built-in models that are stored as changes of the pocket model, restored when they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CLIPTextModel, CLIPVisionModel

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.image_encoder import GREY, LAST, ImageEncoder, stretch_to_square
from kineograph.models.conditioning.resampler import ResamplerConfig, add_resampler
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats.adapter_files import build_motion_adapter, read_adapter_file
from kineograph.models.formats.tensor_files import read_tensors
from kineograph.models.loading.components import Components, components_from_folder
from kineograph.models.loading.video_folder import MOTION_ADAPTER_WEIGHTS, TEMPORAL_DECODER, read_temporal_decoder
from kineograph.models.network_folders import read_network
from kineograph.models.pocket import networks
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plugins import find_plugins, load_plugin

# folders in the pocket model's folder, which is the argument `folder` of all functions here
VIDEO, ANIMATE, EDIT, VIDRD, FOX = "video", "animate", "edit", "vidrd", "fox"
HALF = (0.5, 0.5, 0.5)


def open_pocket_edit(folder: Path) -> Components:
    """Return the components of the editing model."""
    components = components_from_folder(folder, torch.float32)
    weights = read_tensors(folder / EDIT / "edit.safetensors")
    return components._replace(
        unet=networks.restore_network(networks.initial_editing_unet(components.unet), weights).eval()
    )


def open_pocket_video(folder: Path) -> Components:
    """Return the components of the video model, with a text encoder whose vocabulary includes motion."""
    components = components_from_folder(folder, torch.float32)
    own = _subfolder(folder, VIDEO)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    net = networks.restore_video_unet(components.unet, config, read_tensors(own / "video.safetensors"))
    encoder = read_network(CLIPTextModel, own / "text_encoder", dtype=torch.float32)
    temporal = net.temporal
    assert temporal is not None
    return components._replace(
        unet=net.image_unet.eval(),
        temporal=temporal.eval(),
        text_encoders=(TextEncoder(components.text_encoders[0].tokenizer, encoder),),
        scheduler=json.loads((own / "scheduler" / "scheduler_config.json").read_text()),
        motion_adapter=_motion_adapter(folder, VIDEO, temporal),
    )


def _motion_adapter(folder: Path, part: str | Path, temporal: TemporalLayers) -> MotionAdapter | None:
    file = folder / part / MOTION_ADAPTER_WEIGHTS
    if not file.is_file():
        return None
    return build_motion_adapter(read_adapter_file(file, "motion", HubOptions()), temporal, f"pocket-{Path(part).name}")


def open_pocket_vidrd(folder: Path) -> Components:
    """Return the components of the video model with VidRD's temporal layers and temporal decoder."""
    decoder = read_temporal_decoder(_subfolder(folder, VIDRD) / TEMPORAL_DECODER).float()
    return open_with_temporal_layers(folder, VIDRD)._replace(temporal_decoder=decoder)


def open_with_temporal_layers(folder: Path, part: str | Path) -> Components:
    """Return the components of the video model with the temporal layers and motion adapter in the folder `part`."""
    components, own = open_pocket_video(folder), _subfolder(folder, part)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    weights = read_tensors(own / f"{own.name}.safetensors")
    net = networks.restore_vidrd_unet(VideoUNet(components.unet, components.temporal), config, weights)
    temporal = net.temporal
    assert temporal is not None
    return components._replace(
        unet=net.image_unet.eval(), temporal=temporal.eval(), motion_adapter=_motion_adapter(folder, part, temporal)
    )


def open_pocket_animate(folder: Path) -> Components:
    """Return the components of the image-to-video model: the video model with an image adapter."""
    components = open_pocket_video(folder)
    own = _subfolder(folder, ANIMATE)
    add_resampler(components.unet, ResamplerConfig.model_validate_json((own / "resampler.json").read_text()))
    networks.load_float32(VideoUNet(components.unet, components.temporal), read_tensors(own / "animate.safetensors"))
    network = read_network(CLIPVisionModel, folder / "clip", dtype=torch.float32)
    encoder = ImageEncoder(network, LAST, stretch_to_square, mean=HALF, std=HALF, empty_color=GREY)
    return components._replace(unet=components.unet.eval(), image_encoder=encoder)


class BuiltInModel(NamedTuple):
    """A model that is stored as changes of the pocket model.

    description  a few words for lists of models
    folder       its folder, relative to the pocket model's
    open         function of the pocket model's folder that returns the components
    """

    description: str
    folder: Path
    open: Callable[[Path], Components]


class BuiltInPart(NamedTuple):
    """An adapter or decoder that other models can be loaded with; the fields are those of `BuiltInModel`."""

    description: str
    folder: Path


MODELS: Mapping[str, BuiltInModel] = {
    "pocket-edit": BuiltInModel("InstructPix2Pix, small", Path(EDIT), open_pocket_edit),
    "pocket-video": BuiltInModel("VideoCrafter1 (text to video), small", Path(VIDEO), open_pocket_video),
    "pocket-animate": BuiltInModel("VideoCrafter1 (image to video), small", Path(ANIMATE), open_pocket_animate),
    "pocket-vidrd": BuiltInModel("VidRD, small, with its temporal decoder", Path(VIDRD), open_pocket_vidrd),
}
ADAPTERS: Mapping[str, BuiltInPart] = {
    "pocket-fox": BuiltInPart('a subject of pocket-video, "sks cat": for --adapter', Path(FOX))
}
DECODERS: Mapping[str, BuiltInPart] = {"pocket-vidrd": BuiltInPart("VidRD's temporal decoder", Path(VIDRD))}
LABORATORY_MODELS = ("pocket-video-degraded", "pocket-space-time")


def built_in_model(name: str) -> BuiltInModel:
    """Return a built-in model by its name. Raises InputError for one of the laboratory's, if that is not installed."""
    return MODELS.get(name) or load_plugin("models", name)


def built_in_names() -> tuple[str, ...]:
    """Return the names of all built-in models but the pocket model itself, including the laboratory's."""
    return (*MODELS, *dict.fromkeys((*LABORATORY_MODELS, *find_plugins("models"))))


def check_built_in(source: object, options: Mapping[str, Any]) -> None:
    """Raise InputError for the name of something built in that was given as another option of `load`."""
    kinds = {
        "model": {"pocket", *built_in_names()},
        "motion_module": {*built_in_names()},
        "adapter": {*ADAPTERS},
        "decoder": {*DECODERS},
    }
    for given_as, value in {"model": source, **options}.items():
        for name in _texts(value):
            uses = [f"`{option}`" for option, names in kinds.items() if name in names]
            if uses and f"`{given_as}`" not in uses:
                raise InputError(f"{name}, which is built in, is not for `{given_as}`: give it as {' or '.join(uses)}")


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a value: itself, or those in its items."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def part_folder(name: str, folder: Path) -> Path:
    """Return the folder of a built-in adapter or decoder. Raises InputError if it is not in this installation."""
    return _subfolder(folder, (ADAPTERS.get(name) or DECODERS[name]).folder)


def _subfolder(folder: Path, part: str | Path) -> Path:
    if not (folder / part).is_dir():
        raise InputError(
            f"pocket-{Path(part).name} is not in this installation ({folder} has no {part}): install it again"
        )
    return folder / part
