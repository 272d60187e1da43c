"""Motion modules: temporal layers for an image network that they were not trained with.

They come from AnimateDiff's motion modules (a diffusers folder or a released file), or from any video model, without
its image network. The noise schedule that they were trained with replaces the image model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

import diffusers
from diffusers import UNet2DConditionModel
from torch import nn

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.formats import (
    animatediff,
    architecture,
    key_map,
    known_configurations,
    tensor_files,
    videocrafter,
    vidrd,
)
from kineograph.models.formats.key_map import KeyMap
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import video_checkpoints, video_folder
from kineograph.models.loading.components import INDEX, Components, read_index, read_scheduler, read_unet
from kineograph.models.network_folders import check_config, empty_weights, read_json
from kineograph.models.pocket import WEIGHTS
from kineograph.models.pocket.models import built_in_model, built_in_names
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers

MotionSource = Union[str, Path, diffusers.MotionAdapter]  # noqa: UP007 (| fails on diffusers' untyped class)
ADAPTER_WEIGHTS = [
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin",
]  # fmt: skip
# block channels -> token channels of the image networks that AnimateDiff was trained with
ANIMATEDIFF_TOKENS = {(320, 640, 1280, 1280): 768, (320, 640, 1280): 2048}

SCHEDULE_SETTINGS = (
    "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr", "signal_scale",
)  # fmt: skip


class TemporalWeights(NamedTuple):
    """Weights of temporal layers without an image network.

    block_widths    channels of the blocks of the image network that they were trained with, highest resolution first;
                    empty if unknown
    token_width     channels of the tokens of that network; None if unknown
    key_map         function of the temporal layers and these tensors that returns their key map
    scheduler       settings of the noise schedule that they were trained with
    motion_adapter  trained for these layers; None if the video model has none
    """

    name: str
    config: TemporalConfig
    block_widths: tuple[int, ...]
    token_width: int | None
    tensors: Tensors
    key_map: Callable[[nn.Module, Tensors], KeyMap]
    scheduler: Mapping[str, Any]
    motion_adapter: MotionAdapter | None = None


def add_motion_module(components: Components, source: MotionSource, hub_options: HubOptions) -> Components:
    """Return a model's components with other temporal layers and the noise schedule that those were trained with.

    Raises InputError if the source has no temporal layers, or they are for an image network of other widths. Warns if
    they were trained with tokens of another width.
    """
    motion, unet = read_temporal_weights(source, hub_options), components.unet
    widths, token_width = tuple(unet.config.block_out_channels), unet.config.cross_attention_dim
    if motion.block_widths and motion.block_widths != widths:
        raise InputError(
            f"the temporal layers of {motion.name} are for {_network(motion.block_widths, motion.token_width)}, and "
            f"this is {_network(widths, token_width)}: take layers made for it, or another image model"
        )
    betas = any(motion.scheduler.get(name) is not None for name in ("beta_schedule", "trained_betas"))
    if betas and Schedule.from_config(components.scheduler).log_timesteps:
        raise InputError(
            f"the image model has the continuous noise levels of EDM, and the temporal layers of {motion.name} were "
            "trained with the betas of a discrete schedule: take an image model with such a schedule, as Stable "
            "Diffusion has"
        )
    with empty_weights():
        layers = TemporalLayers(unet, motion.config)
    what = f"the temporal layers of {motion.name} do not fit this image network"
    key_map.load_tensors(layers, motion.tensors, motion.key_map(layers, motion.tensors), what)
    if motion.token_width not in (None, token_width):
        warnings.warn(
            f"the temporal layers of {motion.name} were trained with "
            f"{_network(motion.block_widths, motion.token_width)}, and this is "
            f"{_network(motion.block_widths, token_width)}: they fit, but the motion may be poor",
            InputWarning,
            stacklevel=4,
        )
    scheduler = {**components.scheduler, **motion.scheduler}
    return components._replace(temporal=layers.eval(), motion_adapter=motion.motion_adapter, scheduler=scheduler)


def warn_of_changed_schedule(before: Mapping[str, Any], after: Mapping[str, Any], whose: str) -> None:
    """Warn if the noise schedule of temporal layers replaces another one. whose: owner of the schedule before."""
    changed = [name for name in SCHEDULE_SETTINGS if before.get(name) != after.get(name)]
    if changed:
        was, now = (", ".join(f"{name}={of.get(name)}" for name in changed) for of in (before, after))
        warnings.warn(
            f"{whose} has a scheduler with {was}, and the temporal layers were trained with {now}, which is used",
            InputWarning,
            stacklevel=4,
        )


def read_temporal_weights(source: MotionSource, hub_options: HubOptions) -> TemporalWeights:
    """Return the temporal layers of a source. Raises InputError if it has none."""
    if isinstance(source, diffusers.MotionAdapter):
        return _from_adapter("the motion adapter", source.state_dict(), source.config)
    if source in built_in_names():
        return _from_built_in_model(str(source))
    path, hub_options = hub.local_path(source, built_in_names()), hub_options._replace(revision=None, variant=None)
    if path is None:
        path = hub.fetch_folder(str(source), hub.CONFIGS, hub_options)
        if (path / INDEX).is_file():
            path = hub.fetch_pipeline(str(source), hub_options)
        else:
            path = hub.fetch_folder(str(source), [*hub.CONFIGS, *ADAPTER_WEIGHTS], hub_options)
    return _from_file(path) if path.is_file() else _from_folder(path)


def _from_built_in_model(name: str) -> TemporalWeights:
    model = built_in_model(name).open(WEIGHTS)
    if model.temporal is None:
        raise InputError(f"{name} has no temporal layers: take a video model, such as pocket-video")
    return _from_network(name, model.unet, model.temporal, model.scheduler, model.motion_adapter)


def _from_file(path: Path) -> TemporalWeights:
    tensors = tensor_files.read_tensors(path)
    if animatediff.is_animatediff(tensors):
        if animatediff.has_image_network(tensors):
            warnings.warn(
                f"{path} holds an image network with the temporal layers, and these alone are used", InputWarning, 4
            )
        with architecture.report_missing_tensors(tensors, f"{path} looks like AnimateDiff's motion modules"):
            renamed = animatediff.to_diffusers_names(tensors)
        return _from_adapter(str(path), renamed, {})
    if videocrafter.is_videocrafter(tensors):
        net = videocrafter.video_unet_from_videocrafter(tensors, str(path))
        noise = video_checkpoints.videocrafter_scheduler(tensors, net.temporal)
        return _from_network(str(path), net.image_unet, net.temporal, noise)
    if vidrd.is_vidrd(tensors):
        net = vidrd.video_unet_from_vidrd(tensors, str(path))
        return _from_network(str(path), net.image_unet, net.temporal, video_checkpoints.VIDEOCRAFTER_SCHEDULER)
    raise InputError(
        f"{path} has no temporal layers of a supported kind. "
        f"{known_configurations.describe_tensors(tensors, 'motion_module')}"
    )


def _from_folder(folder: Path) -> TemporalWeights:
    """Return the temporal layers of a pipeline, or of a folder with one network: motion modules or our `temporal`."""
    if not (folder / INDEX).is_file() and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        is_motion_adapter = config.get("_class_name") == "MotionAdapter"
        if is_motion_adapter or not (folder.parent / INDEX).is_file():
            tensors = tensor_files.read_tensors(hub.find_file(folder, ADAPTER_WEIGHTS, HubOptions()))
            if is_motion_adapter:
                check_config(config, [diffusers.MotionAdapter], folder / "config.json")
                return _from_adapter(str(folder), tensors, config)
            own = video_folder.read_temporal_config(folder)
            return TemporalWeights(str(folder), own, (), None, tensors, _identity_key_map, {})
        folder = folder.parent
    if (folder / INDEX).is_file():
        unet, temporal = read_unet(folder, read_index(folder))
        if temporal is not None:
            noise = read_scheduler(folder)
            adapter = video_folder.read_motion_adapter(folder, temporal)
            return _from_network(str(folder), unet, temporal, noise, adapter)
    there = tensor_files.preview_names(sorted(each.name for each in folder.iterdir()))
    raise InputError(
        f"{folder} has no temporal layers: expected the folder of a motion adapter (config.json and "
        f"{ADAPTER_WEIGHTS[0]}) or of a video model ({INDEX}); it holds {there}. To choose one of several "
        "files, pass its own path"
    )


def _from_adapter(name: str, tensors: Tensors, config: Mapping[str, Any]) -> TemporalWeights:
    with architecture.report_missing_tensors(tensors, f"{name} looks like AnimateDiff's motion modules"):
        temporal, widths = animatediff.animatediff_config(tensors, config), animatediff.block_widths(tensors)
    names, schedule = animatediff.animatediff_key_map, animatediff.ANIMATEDIFF_SCHEDULER
    return TemporalWeights(name, temporal, widths, ANIMATEDIFF_TOKENS.get(widths), tensors, names, schedule)


def _from_network(
    name: str,
    unet: UNet2DConditionModel,
    temporal: TemporalLayers | None,
    scheduler: Mapping[str, Any],
    motion_adapter: MotionAdapter | None = None,
) -> TemporalWeights:
    assert temporal is not None
    schedule = {name: scheduler.get(name) for name in SCHEDULE_SETTINGS}
    widths, token_width = tuple(unet.config.block_out_channels), unet.config.cross_attention_dim
    weights = temporal.state_dict()
    return TemporalWeights(
        name, temporal.config, widths, token_width, weights, _identity_key_map, schedule, motion_adapter
    )


def _identity_key_map(layers: nn.Module, _: Tensors) -> KeyMap:
    return key_map.identity_key_map(layers.state_dict())


def _network(widths: tuple[int, ...], token_width: int | None) -> str:
    tokens = f" that reads tokens {token_width} wide" if token_width else ""
    families = {family.cross_attention: f" ({family.name})" for family in known_configurations.FAMILIES}
    family = "" if token_width is None else families.get(token_width, "")
    return f"an image network with blocks {', '.join(map(str, widths))} wide{tokens}{family}"
