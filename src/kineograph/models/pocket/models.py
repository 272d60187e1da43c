"""The models that come with Kineograph beside the pocket model: changes of it, put on when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPVisionModel

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning import resampler
from kineograph.models.conditioning.image_encoder import GREY, LAST, ImageEncoder, stretch_to_square
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.loading import adapter_files, components, video_folder
from kineograph.models.loading.components import Components
from kineograph.models.pocket.networks import restore_video_unet, restore_vidrd_unet
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plugins import find_plugins, load_plugin

# folders beside the pocket model
VIDEO, ANIMATE, EDIT, VIDRD, FOX = "video", "animate", "edit", "vidrd", "fox"
HALF = (0.5, 0.5, 0.5)


def open_pocket_edit(folder: Path) -> Components:
    """The pocket model as one that edits."""
    from kineograph.models.pocket.networks import initial_editing_unet, restore_network

    opened = components.components_from_folder(folder, torch.float32)
    changes = load_file(folder / EDIT / "edit.safetensors")
    return opened._replace(unet=restore_network(initial_editing_unet(opened.unet), changes).eval())


def open_pocket_video(folder: Path) -> Components:
    """The pocket model with layers along time, transformers and a text tower that know words for motion."""

    opened = components.components_from_folder(folder, torch.float32)
    own = _folder(folder, VIDEO)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    net = restore_video_unet(opened.unet, config, load_file(own / "video.safetensors"))
    tower = CLIPTextModel.from_pretrained(own / "text_encoder", dtype=torch.float32, local_files_only=True)
    text = (TextEncoder(opened.text_encoders[0].tokenizer, tower.eval()),)
    temporal = net.temporal
    assert temporal is not None
    levels = json.loads((own / "scheduler" / "scheduler_config.json").read_text())
    return opened._replace(
        unet=net.image_unet.eval(),
        temporal=temporal.eval(),
        text_encoders=text,
        scheduler=levels,
        motion_adapter=_motion_adapter(folder, VIDEO, temporal),
    )


def _motion_adapter(folder: Path, part: str | Path, temporal: TemporalLayers) -> MotionAdapter | None:
    file = folder / part / video_folder.MOTION_ADAPTER_WEIGHTS
    if not file.is_file():
        return None
    return adapter_files.build_motion_adapter(
        adapter_files.read_adapter_file(file, "motion", HubOptions()), temporal, f"pocket-{Path(part).name}"
    )


def open_pocket_vidrd(folder: Path) -> Components:
    """The video model with VidRD's layers along time, and VidRD's temporal decoder."""
    decoder = video_folder.read_temporal_decoder(_folder(folder, VIDRD) / video_folder.TEMPORAL_DECODER).float()
    return open_with_temporal_layers(folder, VIDRD)._replace(temporal_decoder=decoder)


def open_with_temporal_layers(folder: Path, part: str | Path) -> Components:
    """The video model with other layers along time in place of its own, and their motion adapter if they have one."""

    opened, own = open_pocket_video(folder), _folder(folder, part)
    config = TemporalConfig.model_validate_json((own / "config.json").read_text())
    net = restore_vidrd_unet(
        VideoUNet(opened.unet, opened.temporal), config, load_file(own / f"{own.name}.safetensors")
    )
    temporal = net.temporal
    assert temporal is not None
    return opened._replace(
        unet=net.image_unet.eval(),
        temporal=temporal.eval(),
        motion_adapter=_motion_adapter(folder, part, temporal),
    )


def open_pocket_animate(folder: Path) -> Components:
    """The video model, shown a picture."""
    opened = open_pocket_video(folder)
    own = _folder(folder, ANIMATE)
    sizes = ResamplerConfig.model_validate_json((own / "resampler.json").read_text())
    resampler.add_resampler(opened.unet, sizes)
    _fill(VideoUNet(opened.unet, opened.temporal), own / "animate.safetensors")
    encoder = CLIPVisionModel.from_pretrained(folder / "clip", dtype=torch.float32, local_files_only=True).eval()
    reader = ImageEncoder(encoder, LAST, stretch_to_square, mean=HALF, std=HALF, blank=GREY)
    return opened._replace(unet=opened.unet.eval(), image_encoder=reader)


class BuiltInModel(NamedTuple):
    """A model that is stored as changes of the pocket model.

    description  a few words for lists of models
    part         its folder, below the pocket model's unless absolute
    open         the pocket model's folder -> its components
    """

    description: str
    part: Path
    open: Callable[[Path], Components]


MODELS: Mapping[str, BuiltInModel] = {
    "pocket-edit": BuiltInModel("InstructPix2Pix, small", Path(EDIT), open_pocket_edit),
    "pocket-video": BuiltInModel("VideoCrafter1 (text to video), small", Path(VIDEO), open_pocket_video),
    "pocket-animate": BuiltInModel("VideoCrafter1 (image to video), small", Path(ANIMATE), open_pocket_animate),
    "pocket-vidrd": BuiltInModel("VidRD, small, with its temporal decoder", Path(VIDRD), open_pocket_vidrd),
}
LABORATORY_MODELS = ("pocket-video-degraded", "pocket-space-time")


def built_in_model(name: str) -> BuiltInModel:
    """Return a built-in model by its name. Raises InputError for one of the laboratory's, if that is not installed."""
    return MODELS.get(name) or load_plugin("models", name)


def built_in_names() -> tuple[str, ...]:
    """Return the names of all built-in models but the pocket model itself, the laboratory's among them."""
    return (*MODELS, *dict.fromkeys((*LABORATORY_MODELS, *find_plugins("models"))))


# parts for other models
DECODERS: Mapping[str, str] = {"pocket-vidrd": VIDRD}
ADAPTERS: Mapping[str, str] = {"pocket-fox": FOX}


def part_folder(part: str, folder: Path) -> Path:
    """Where a part lies. Raises InputError when it is not in this installation."""
    return _folder(folder, {**DECODERS, **ADAPTERS}[part])


def _folder(folder: Path, part: str | Path) -> Path:
    if not (folder / part).is_dir():
        raise InputError(
            f"pocket-{Path(part).name} is not in this installation ({folder} has no {part}): install it again"
        )
    return folder / part


def _fill(net: VideoUNet, file: Path) -> None:
    """Weights in place of the network's own, all of which it must have."""
    unknown = net.load_state_dict({name: each.float() for name, each in load_file(file).items()}, strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys
