"""ControlNets by name, from where they live: a folder, a file, the Hub, an open network, or the pocket model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Union

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.loading import single_file
from kineograph.models.loading.components import READ_ERRORS, read_json
from kineograph.models.placement import Placement
from kineograph.models.unet.controlnet import VideoControlNet

ControlNetSource = Union[str, Path, ControlNetModel]  # noqa: UP007 (| makes no type of diffusers' untyped class)
OpenControlNet = Callable[[], VideoControlNet]

ANY_CONTROL = ""  # the name of a ControlNet that was given without one: it serves whatever is asked for
FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
# what a ControlNet has in common with the U-Net that it adds to
SHAPE = ("cross_attention_dim", "block_out_channels", "layers_per_block", "transformer_layers_per_block")


def list_controlnets(
    controlnet: ControlNetSource | Mapping[str, ControlNetSource] | None,
) -> dict[str, ControlNetSource]:
    """The ControlNets that were asked for, by name."""
    if isinstance(controlnet, Mapping):
        return dict(controlnet)
    return {} if controlnet is None else {ANY_CONTROL: controlnet}


def load_controlnet(
    unet: UNet2DConditionModel,
    source: ControlNetSource,
    latent_channels: int,
    place: Placement,
    hub_options: HubOptions,
) -> OpenControlNet:
    """A ControlNet for this U-Net. Raises InputError when it is none, or one for another architecture."""
    net = source if isinstance(source, ControlNetModel) else _opened(source, unet, place, hub_options)
    for name in SHAPE:
        theirs, ours = _as_list(net.config[name]), _as_list(unet.config[name])
        if theirs != ours:
            raise InputError(
                f"{_name(source)} is a ControlNet for another architecture: its {name} is {_told(theirs)}, the "
                f"model's {_told(ours)}. Take one made for the model's family (SD 1.x, SD 2.x or SDXL)"
            )
    if net.config.in_channels != latent_channels:
        raise InputError(
            f"{_name(source)} reads latents of {net.config.in_channels} channels, and the model's have "
            f"{latent_channels}: take a ControlNet made for the model's family"
        )
    ready = VideoControlNet(_placed(net, place))
    return lambda: ready


def _opened(
    source: str | Path, unet: UNet2DConditionModel, place: Placement, hub_options: HubOptions
) -> ControlNetModel:
    path = hub.local_path(source) or hub.fetch_folder(str(source), FILES, hub_options._replace(revision=None))
    if path.is_file():
        return single_file.controlnet_from_file(path, unet, place.dtype)
    kind = read_json(path / "config.json").get("_class_name") if (path / "config.json").is_file() else "nothing"
    if kind != "ControlNetModel":
        raise InputError(
            f"{source} is no ControlNet: expected a folder with the config.json of a ControlNetModel and its weights, "
            f"diffusion_pytorch_model.safetensors, or a single file; found {kind}"
        )
    try:
        return ControlNetModel.from_pretrained(path, dtype=place.dtype, local_files_only=True)
    except READ_ERRORS as error:
        raise InputError(f"{source} is no ControlNet in diffusers layout, or damaged: {error}") from error


def pocket_controlnets(folder: Path, place: Placement) -> dict[str, OpenControlNet]:
    """The pocket model's own: each is made when it is first used, from the U-Net as it is shipped."""
    return {
        file.stem: cache(partial(_restored, file, folder, place)) for file in sorted((folder / "control").glob("*"))
    }


def _restored(file: Path, folder: Path, place: Placement) -> VideoControlNet:
    from kineograph.models.pocket.networks import initial_controlnet, restore_network

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32, local_files_only=True)
    return VideoControlNet(_placed(restore_network(initial_controlnet(unet), load_file(file)), place))


def _placed(net: ControlNetModel, place: Placement) -> ControlNetModel:
    return net.eval().to(place.device, place.dtype, memory_format=place.memory_format)


def _name(source: ControlNetSource) -> str:
    return "this network" if isinstance(source, ControlNetModel) else str(source)


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
