"""ControlNets from a folder, a file, the Hub or a live network, and those of the pocket model."""

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
from kineograph.models.description import ANY_CONTROL
from kineograph.models.loading import single_file
from kineograph.models.loading.components import READ_ERRORS, Components, quiet_loading, read_json
from kineograph.models.placement import Placement
from kineograph.models.unet.controlnet import VideoControlNet

ControlNetSource = Union[str, Path, ControlNetModel]  # noqa: UP007 (| fails on diffusers' untyped class)
OpenControlNet = Callable[[], VideoControlNet]

FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
# settings that a ControlNet and its U-Net have in common
SHARED_SETTINGS = ("cross_attention_dim", "block_out_channels", "layers_per_block", "transformer_layers_per_block")


def list_controlnets(
    controlnet: ControlNetSource | Mapping[str, ControlNetSource] | None,
) -> dict[str, ControlNetSource]:
    """Return the sources of ControlNets by kind of control."""
    if isinstance(controlnet, Mapping):
        return dict(controlnet)
    return {} if controlnet is None else {ANY_CONTROL: controlnet}


def load_controlnet(
    components: Components, source: ControlNetSource, placement: Placement, hub_options: HubOptions
) -> OpenControlNet:
    """Return a ControlNet for a model's U-Net. Raises InputError if it is none, or one for another architecture."""
    unet, latent_channels = components.unet, components.vae.config.latent_channels
    net = source if isinstance(source, ControlNetModel) else _read(source, unet, placement.dtype, hub_options)
    name = "this network" if net is source else str(source)
    for setting in SHARED_SETTINGS:
        found, expected = (_setting_text(each.config[setting]) for each in (net, unet))
        if found != expected:
            raise InputError(
                f"{name} is a ControlNet for another architecture: its {setting} is {found}, the model's "
                f"{expected}. Take one made for the model's family (SD 1.x, SD 2.x or SDXL)"
            )
    if net.config.in_channels != latent_channels:
        raise InputError(
            f"{name} reads latents of {net.config.in_channels} channels, and the model's have "
            f"{latent_channels}: take a ControlNet made for the model's family"
        )
    controlnet = VideoControlNet(_place(net, placement))
    return lambda: controlnet


def _read(
    source: str | Path, unet: UNet2DConditionModel, dtype: torch.dtype, hub_options: HubOptions
) -> ControlNetModel:
    path = hub.local_path(source) or hub.fetch_folder(str(source), FILES, hub_options._replace(revision=None))
    if path.is_file():
        return single_file.controlnet_from_file(path, unet, dtype)
    kind = read_json(path / "config.json").get("_class_name") if (path / "config.json").is_file() else "nothing"
    if kind != "ControlNetModel":
        raise InputError(
            f"{source} is no ControlNet: expected a folder with the config.json of a ControlNetModel and its weights, "
            f"diffusion_pytorch_model.safetensors, or a single file; found {kind}"
        )
    try:
        return ControlNetModel.from_pretrained(path, dtype=dtype, local_files_only=True)
    except READ_ERRORS as error:
        raise InputError(f"{source} is no ControlNet in diffusers layout, or damaged: {error}") from error


def pocket_controlnets(folder: Path, placement: Placement) -> dict[str, OpenControlNet]:
    """Return the pocket model's ControlNets by kind; each is restored when it is first used, see `pocket.networks`."""
    files = sorted((folder / "control").glob("*"))
    return {file.stem: cache(partial(_restore, file, folder, placement)) for file in files}


def _restore(file: Path, folder: Path, placement: Placement) -> VideoControlNet:
    from kineograph.models.pocket.networks import initial_controlnet, restore_network

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32, local_files_only=True)
    return VideoControlNet(_place(restore_network(initial_controlnet(unet), load_file(file)), placement))


def move_controlnet(control: OpenControlNet, placement: Placement) -> OpenControlNet:
    """Move a ControlNet, at once or when it is first used; return the function that returns it there."""
    moved = cache(partial(_open_and_place, control, placement))
    is_restored_later = hasattr(control, "cache_info") and control.cache_info().currsize == 0
    if not is_restored_later:
        moved()
    return moved


def _open_and_place(control: OpenControlNet, placement: Placement) -> VideoControlNet:
    net = control()
    _place(net.controlnet, placement)
    return net


def _place(net: ControlNetModel, placement: Placement) -> ControlNetModel:
    with quiet_loading():
        return net.eval().to(placement.device, placement.dtype, memory_format=placement.memory_format)


def _setting_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
