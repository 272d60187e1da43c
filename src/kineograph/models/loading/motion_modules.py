"""Layers along time from where they live, to put around an image network that they were not trained with.

A source is AnimateDiff's motion modules (a diffusers folder or a released file), or any video model, whose layers along
time are then taken and its image network left. The noise that layers were trained on comes with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union

from accelerate import init_empty_weights
from diffusers import MotionAdapter, UNet2DConditionModel
from torch import nn

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.formats import animatediff, key_map, shapes, tensor_files, videocrafter, vidrd
from kineograph.models.formats.key_map import KeyMap
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import components, known_configurations, video_checkpoints, video_folder
from kineograph.models.loading.components import Components
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers

MotionSource = Union[str, Path, MotionAdapter]  # noqa: UP007 (| makes no type of diffusers' untyped class)
ADAPTER_WEIGHTS = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
READS = {
    (320, 640, 1280, 1280): 768,
    (320, 640, 1280): 2048,
}  # widths of blocks -> of tokens, where AnimateDiff is from
KINDS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
NOISE = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr", "signal_scale")


class TemporalWeights(NamedTuple):
    """Layers along time without a network.

    widths, reads   of the network that they were trained with: its blocks' from the top, and its tokens', if known
    layout          where the tensors are that these layers have, once they are around a network
    scheduler       of the noise that they were trained on
    """

    name: str
    config: TemporalConfig
    widths: tuple[int, ...]
    reads: int | None
    tensors: Tensors
    layout: Callable[[nn.Module, Tensors], KeyMap]
    scheduler: Mapping[str, Any]


def add_motion_module(opened: Components, source: MotionSource, hub_options: HubOptions) -> Components:
    """A model with these layers around its image network, and the noise schedule that they were trained on.

    Raises InputError when the source has none, or they are for a network of other widths; warns when that one was told
    other tokens.
    """
    motion, unet = read_temporal_weights(source, hub_options), opened.unet
    _refuse_other_widths(motion, unet)
    with init_empty_weights(include_buffers=False):
        layers = TemporalLayers(unet, motion.config)
    what = f"the layers along time of {motion.name} do not fit around this image network"
    key_map.load_tensors(layers, motion.tensors, motion.layout(layers, motion.tensors), what)
    _warn_of_other_tokens(motion, unet)
    scheduler = {**opened.scheduler, **motion.scheduler}
    return opened._replace(temporal=layers.eval(), motion_adapter=None, scheduler=scheduler)


def warn_of_changed_schedule(before: Mapping[str, Any], after: Mapping[str, Any], whose: str) -> None:
    """Warn that a schedule which somebody chose is no longer that."""
    changed = [name for name in NOISE if before.get(name) != after.get(name)]
    if changed:
        was, now = (", ".join(f"{name}={of.get(name)}" for name in changed) for of in (before, after))
        warnings.warn(
            f"{whose} has a scheduler with {was}, and the layers along time were trained with {now}, which is used",
            InputWarning,
            stacklevel=3,
        )


def read_temporal_weights(source: MotionSource, hub_options: HubOptions) -> TemporalWeights:
    """The layers along time of a source. Raises InputError when there are none."""
    if isinstance(source, MotionAdapter):
        return _from_adapter("the motion adapter", source.state_dict(), source.config)
    path = hub.local_path(source) or _fetched(str(source), hub_options._replace(revision=None, variant=None))
    return _from_file(path) if path.is_file() else _from_folder(path)


def _fetched(name: str, hub_options: HubOptions) -> Path:
    """A repository's folder with the weights that its configuration says are wanted."""
    folder = hub.fetch_folder(name, hub.CONFIGS, hub_options)
    if (folder / components.INDEX).is_file():
        return hub.fetch_pipeline(name, hub_options)
    return hub.fetch_folder(name, [*hub.CONFIGS, *ADAPTER_WEIGHTS], hub_options)


def _from_file(path: Path) -> TemporalWeights:
    tensors = tensor_files.read_tensors(path)
    if animatediff.is_animatediff(tensors):
        return _from_adapter(str(path), animatediff.to_diffusers_names(tensors), {})
    if videocrafter.is_videocrafter(tensors):
        net = videocrafter.video_unet_from_videocrafter(tensors, str(path))
        noise = video_checkpoints.videocrafter_scheduler(tensors, net.temporal)
        return _from_network(str(path), net.image_unet, net.temporal, noise)
    if vidrd.is_vidrd(tensors):
        net = vidrd.video_unet_from_vidrd(tensors, str(path))
        return _from_network(str(path), net.image_unet, net.temporal, video_checkpoints.VIDEOCRAFTER_SCHEDULER)
    raise InputError(
        f"{path} has no layers along time that are known here. {known_configurations.describe_tensors(tensors)}"
    )


def _from_folder(folder: Path) -> TemporalWeights:
    if (folder / components.INDEX).is_file():
        unet, temporal = components.read_unet(folder, components.read_index(folder), {"local_files_only": True})
        if temporal is not None:
            noise = components.read_json(folder / "scheduler" / "scheduler_config.json")
            return _from_network(str(folder), unet, temporal, noise)
    elif (folder / "config.json").is_file():
        return _from_weights(folder, components.read_json(folder / "config.json"))
    there = tensor_files.preview_names(sorted(each.name for each in folder.iterdir()))
    raise InputError(
        f"{folder} has no layers along time: expected the folder of a motion adapter (config.json and "
        f"{ADAPTER_WEIGHTS[0]}) or of a video model ({components.INDEX}); it holds {there}. One of several files is "
        "passed by its own path"
    )


def _from_weights(folder: Path, config: Mapping[str, Any]) -> TemporalWeights:
    """Of a folder with one network: motion modules as diffusers saves them, or our own `temporal`."""
    if config.get("_class_name") != "MotionAdapter" and (folder.parent / components.INDEX).is_file():
        return _from_folder(folder.parent)
    tensors = tensor_files.read_tensors(hub.find_file(folder, ADAPTER_WEIGHTS, HubOptions()))
    if config.get("_class_name") == "MotionAdapter":
        return _from_adapter(str(folder), tensors, config)
    told = video_folder.read_temporal_config(folder)
    return TemporalWeights(str(folder), told, (), None, tensors, _as_here, {})


def _from_adapter(name: str, tensors: Tensors, said: Mapping[str, Any]) -> TemporalWeights:
    with shapes.report_missing_tensors(tensors, f"{name} looks like AnimateDiff's motion modules"):
        config, widths = animatediff.animatediff_config(tensors, said), animatediff.block_widths(tensors)
    scheduler = animatediff.ANIMATEDIFF_SCHEDULER
    return TemporalWeights(name, config, widths, READS.get(widths), tensors, animatediff.animatediff_key_map, scheduler)


def _from_network(
    name: str, unet: UNet2DConditionModel, temporal: TemporalLayers | None, scheduler: Mapping[str, Any]
) -> TemporalWeights:
    assert temporal is not None
    widths, reads = tuple(unet.config.block_out_channels), unet.config.cross_attention_dim
    noise = {name: scheduler.get(name) for name in NOISE}
    return TemporalWeights(name, temporal.config, widths, reads, temporal.state_dict(), _as_here, noise)


def _as_here(layers: nn.Module, _: Tensors) -> KeyMap:
    return key_map.identity_key_map(layers.state_dict())


def _refuse_other_widths(motion: TemporalWeights, unet: UNet2DConditionModel) -> None:
    widths = tuple(unet.config.block_out_channels)
    if motion.widths and motion.widths != widths:
        raise InputError(
            f"the layers along time of {motion.name} are for {_network(motion.widths, motion.reads)}, and this is "
            f"{_network(widths, unet.config.cross_attention_dim)}: take layers made for it, or another image model"
        )


def _warn_of_other_tokens(motion: TemporalWeights, unet: UNet2DConditionModel) -> None:
    reads = unet.config.cross_attention_dim
    if motion.reads not in (None, reads):
        warnings.warn(
            f"the layers along time of {motion.name} were trained with {_network(motion.widths, motion.reads)}, and "
            f"this is {_network(motion.widths, reads)}: they fit, but may not move it well",
            InputWarning,
            stacklevel=4,
        )


def _network(widths: tuple[int, ...], reads: int | None) -> str:
    told = f" that reads tokens {reads} wide" if reads else ""
    kind = f" ({KINDS[reads]})" if reads in KINDS else ""
    return f"an image network with blocks {', '.join(map(str, widths))} wide{told}{kind}"
