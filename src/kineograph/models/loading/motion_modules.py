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
from kineograph.hub import Hub
from kineograph.models.formats import animatediff, key_map, shapes, tensor_files, videocrafter, vidrd
from kineograph.models.formats.key_map import Layout
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import components, known_configurations, video_checkpoints, video_folder
from kineograph.models.loading.components import Parts
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers

MotionSource = Union[str, Path, MotionAdapter]  # noqa: UP007 (| makes no type of diffusers' untyped class)
ADAPTER_WEIGHTS = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
READS = {
    (320, 640, 1280, 1280): 768,
    (320, 640, 1280): 2048,
}  # widths of blocks -> of tokens, where AnimateDiff is from
KINDS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
NOISE = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr", "signal_scale")


class Motion(NamedTuple):
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
    layout: Callable[[nn.Module, Tensors], Layout]
    scheduler: Mapping[str, Any]


def put_around(opened: Parts, source: MotionSource, ask: Hub) -> Parts:
    """A model with these layers around its image network, and the noise schedule that they were trained on.

    Raises InputError when the source has none, or they are for a network of other widths; warns when that one was told
    other tokens.
    """
    motion, unet = open_motion(source, ask), opened.unet
    _refuse_other_widths(motion, unet)
    with init_empty_weights(include_buffers=False):
        layers = TemporalLayers(unet, motion.config)
    what = f"the layers along time of {motion.name} do not fit around this image network"
    key_map.fill(layers, motion.tensors, motion.layout(layers, motion.tensors), what)
    _warn_of_other_tokens(motion, unet)
    scheduler = {**opened.scheduler, **motion.scheduler}
    return opened._replace(temporal=layers.eval(), motion_adapter=None, scheduler=scheduler)


def warn_of_other_noise(before: Mapping[str, Any], after: Mapping[str, Any], whose: str) -> None:
    """Warn that a schedule which somebody chose is no longer that."""
    changed = [name for name in NOISE if before.get(name) != after.get(name)]
    if changed:
        was, now = (", ".join(f"{name}={of.get(name)}" for name in changed) for of in (before, after))
        warnings.warn(
            f"{whose} has a scheduler with {was}, and the layers along time were trained with {now}, which is used",
            InputWarning,
            stacklevel=3,
        )


def open_motion(source: MotionSource, ask: Hub) -> Motion:
    """The layers along time of a source. Raises InputError when there are none."""
    if isinstance(source, MotionAdapter):
        return _from_adapter("the motion adapter", source.state_dict(), source.config)
    path = hub.local(source) or _fetched(str(source), ask._replace(revision=None, variant=None))
    return _from_file(path) if path.is_file() else _from_folder(path)


def _fetched(name: str, ask: Hub) -> Path:
    """A repository's folder with the weights that its configuration says are wanted."""
    folder = hub.fetch_folder(name, hub.CONFIGS, ask)
    if (folder / components.INDEX).is_file():
        return hub.fetch_pipeline(name, ask)
    return hub.fetch_folder(name, [*hub.CONFIGS, *ADAPTER_WEIGHTS], ask)


def _from_file(path: Path) -> Motion:
    tensors = tensor_files.read(path)
    if animatediff.is_one(tensors):
        return _from_adapter(str(path), animatediff.renamed(tensors), {})
    if videocrafter.is_one(tensors):
        net = videocrafter.network(tensors, str(path))
        noise = video_checkpoints.scheduler(tensors, net.temporal)
        return _from_network(str(path), net.image_unet, net.temporal, noise)
    if vidrd.is_one(tensors):
        net = vidrd.network(tensors, str(path))
        return _from_network(str(path), net.image_unet, net.temporal, video_checkpoints.SCHEDULER)
    raise InputError(f"{path} has no layers along time that are known here. {known_configurations.guess(tensors)}")


def _from_folder(folder: Path) -> Motion:
    if (folder / components.INDEX).is_file():
        unet, temporal = components.open_unet(folder, components.read_index(folder), {"local_files_only": True})
        if temporal is not None:
            noise = components.read_json(folder / "scheduler" / "scheduler_config.json")
            return _from_network(str(folder), unet, temporal, noise)
    elif (folder / "config.json").is_file():
        return _from_weights(folder, components.read_json(folder / "config.json"))
    there = tensor_files.some(sorted(each.name for each in folder.iterdir()))
    raise InputError(
        f"{folder} has no layers along time: expected the folder of a motion adapter (config.json and "
        f"{ADAPTER_WEIGHTS[0]}) or of a video model ({components.INDEX}); it holds {there}. One of several files is "
        "passed by its own path"
    )


def _from_weights(folder: Path, config: Mapping[str, Any]) -> Motion:
    """Of a folder with one network: motion modules as diffusers saves them, or our own `temporal`."""
    if config.get("_class_name") != "MotionAdapter" and (folder.parent / components.INDEX).is_file():
        return _from_folder(folder.parent)
    tensors = tensor_files.read(hub.find_file(folder, ADAPTER_WEIGHTS, Hub()))
    if config.get("_class_name") == "MotionAdapter":
        return _from_adapter(str(folder), tensors, config)
    told = video_folder.temporal_config(folder)
    return Motion(str(folder), told, (), None, tensors, _as_here, {})


def _from_adapter(name: str, tensors: Tensors, said: Mapping[str, Any]) -> Motion:
    with shapes.told_from(tensors, f"{name} looks like AnimateDiff's motion modules"):
        config, widths = animatediff.config(tensors, said), animatediff.widths(tensors)
    scheduler = animatediff.SCHEDULER
    return Motion(name, config, widths, READS.get(widths), tensors, animatediff.layout, scheduler)


def _from_network(
    name: str, unet: UNet2DConditionModel, temporal: TemporalLayers | None, scheduler: Mapping[str, Any]
) -> Motion:
    assert temporal is not None
    widths, reads = tuple(unet.config.block_out_channels), unet.config.cross_attention_dim
    noise = {name: scheduler.get(name) for name in NOISE}
    return Motion(name, temporal.config, widths, reads, temporal.state_dict(), _as_here, noise)


def _as_here(layers: nn.Module, _: Tensors) -> Layout:
    return key_map.same(layers.state_dict())


def _refuse_other_widths(motion: Motion, unet: UNet2DConditionModel) -> None:
    widths = tuple(unet.config.block_out_channels)
    if motion.widths and motion.widths != widths:
        raise InputError(
            f"the layers along time of {motion.name} are for {_network(motion.widths, motion.reads)}, and this is "
            f"{_network(widths, unet.config.cross_attention_dim)}: take layers made for it, or another image model"
        )


def _warn_of_other_tokens(motion: Motion, unet: UNet2DConditionModel) -> None:
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
