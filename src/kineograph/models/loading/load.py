"""Loading a model: the built-in one, a folder, a repository on the Hub, a single file or a live pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.textual_inversion import (
    TextualInversions,
    list_textual_inversions,
    load_textual_inversion,
)
from kineograph.models.formats.lora import LoraSources, list_loras, load_lora, read_learned_words
from kineograph.models.formats.tensor_files import read_tensors
from kineograph.models.loading import controlnets
from kineograph.models.loading.adapters import load_customised_adapter, load_motion_adapter
from kineograph.models.loading.components import (
    INDEX,
    Components,
    Pipeline,
    components_from_folder,
    components_from_pipeline,
)
from kineograph.models.loading.ip_adapter import load_ip_adapter
from kineograph.models.loading.motion_modules import MotionSource, add_motion_module, warn_of_changed_schedule
from kineograph.models.loading.provenance import json_value, source_name
from kineograph.models.loading.save import VOCABULARY
from kineograph.models.loading.single_file import Checkpoint
from kineograph.models.loading.video_checkpoints import components_from_checkpoint
from kineograph.models.model import Model
from kineograph.models.placement import Placement, choose_placement
from kineograph.models.pocket import WEIGHTS
from kineograph.models.pocket.models import ADAPTERS, DECODERS, built_in_model, built_in_names, part_folder
from kineograph.models.schedule import Schedule
from kineograph.models.vae.autoencoder import prevent_overflow
from kineograph.models.vae.temporal_decoder import TemporalDecoder, check_decoder_fits
from kineograph.models.vae.vae_files import open_temporal_decoder, open_vae

POCKET = WEIGHTS
POCKET_EDIT = "pocket-edit"
POCKETS = (None, "pocket", *built_in_names())

ModelSource = str | Path | Pipeline
Part = TypeVar("Part")
LIVE_OBJECTS = (Pipeline, diffusers.MotionAdapter, AutoencoderKL, ControlNetModel, TemporalDecoder)  # not recorded


def load(
    source: ModelSource | None = None,
    *,
    motion: MotionSource | None = None,
    motion_adapter: str | Path | None = None,
    adapter: str | Path | None = None,
    lora: LoraSources | None = None,
    textual_inversion: TextualInversions | None = None,
    ip_adapter: str | Path | None = None,
    controlnet: controlnets.ControlNetSource | Mapping[str, controlnets.ControlNetSource] | None = None,
    vae: str | Path | AutoencoderKL | None = None,
    decoder: str | Path | TemporalDecoder | None = None,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Model:
    """Load a text-to-image model of the SD 1.x, 2.x or SDXL family, or a video model built on one.

    source: nothing or "pocket" for the built-in model; "pocket-video", "pocket-animate" and "pocket-edit" for those
        that generate videos, animate an image, and edit; a folder in diffusers layout; a repository on the Hub; a
        `.safetensors` or `.ckpt` file, read without running code; or a live diffusers pipeline, whose networks are then
        shared: adapters added here are on the pipeline too. A VideoCrafter or VidRD checkpoint, and a folder with
        ModelScope's or ZeroScope's network, are video models.
    motion: temporal layers for the image model, with the noise schedule they were trained on: AnimateDiff's motion
        modules (a folder, repository or released file), or a video model, of which only the temporal layers are used.
    motion_adapter: file, folder or repository of a Still-Moving motion adapter that was trained for the temporal
        layers; `kineograph.generate` then takes a `motion_scale`. pocket-video comes with one.
    adapter: a file of `kineograph customise`, such as dog.safetensors: your own subject or style; or "pocket-fox", an
        example for the pocket video model, a fox that prompts call "a sks cat".
    lora: a file, folder or repository, alone or as (lora, scale); or a list of those. Motion LoRAs of AnimateDiff too.
    textual_inversion: a file, folder or repository; a list of those; or {word: file} to choose the words.
    ip_adapter: the file of an IP-Adapter, with its encoder in a folder `image_encoder` beside it, or a repository laid
        out like h94/IP-Adapter; the model then takes images, see `kineograph.animate`.
    controlnet: {kind: folder, repository or network}, where the kind is any name, such as "canny"; or one alone, used
        for every kind of control. The pocket model comes with canny, depth and pose.
    vae: a VAE instead of the model's own: a file, folder, repository or network.
    decoder: a temporal decoder for the VAE: the folder or repository of a model that has one, VidRD's file or folder, a
        network, or "pocket-vidrd"; for a VAE of the same widths.
    config: for a single file, a folder or repository in diffusers layout with the configuration that the file lacks.
    prediction_type: "epsilon", "v_prediction" or "sample", if the model does not state its prediction type.
    device, dtype: chosen unless given, see `choose_placement`; `torch_dtype` is the older name of `dtype`.
    revision, variant, token, cache_dir, local_files_only: as for diffusers' `from_pretrained`.

    Raises InputError if something is missing, damaged, no model of the family, or made for another architecture.

    >>> import kineograph as kg
    >>> model = kg.load()
    >>> model = kg.load("path/to/checkpoint.safetensors", lora=("style.safetensors", 0.8))  # doctest: +SKIP
    """
    hub_options = HubOptions(revision, variant, token, cache_dir, local_files_only)
    dtype = torch_dtype if dtype is None else dtype
    if isinstance(source, Pipeline):
        components = components_from_pipeline(source)
        placement = Placement(components.unet.device, components.unet.dtype, "as the pipeline is")
        if device is not None or dtype is not None:
            placement = choose_placement(device or placement.device, dtype or placement.dtype)
    else:
        placement = choose_placement(device, dtype)
        components = _open_source(source or "pocket", config, prediction_type, placement, hub_options)

    if motion is not None:
        schedule = components.scheduler
        components = add_motion_module(components, motion, hub_options)
        if isinstance(source, Pipeline):
            warn_of_changed_schedule(schedule, components.scheduler, "the pipeline")
    if ip_adapter is not None:
        components = load_ip_adapter(components, ip_adapter, hub_options)
    for each, scale in list_loras(lora):
        load_lora(components.networks, each, scale, hub_options)
        words = (*components.learned_words, *read_learned_words(each, hub_options))
        components = components._replace(learned_words=words)
    for word, each in list_textual_inversions(textual_inversion):
        load_textual_inversion(components.text_encoders, word, each, hub_options)
    image_name, video_name = source_name(source or "pocket"), source_name(motion or source or "pocket")
    if motion_adapter is not None:
        components = load_motion_adapter(components, motion_adapter, video_name, hub_options)
    if adapter is not None:
        file = _built_in_part(adapter, ADAPTERS)
        components = load_customised_adapter(components, file, image_name, video_name, hub_options)

    controls = controlnets.pocket_controlnets(POCKET, placement) if source in POCKETS else {}
    for kind, each in controlnets.list_controlnets(controlnet).items():
        controls[kind] = controlnets.load_controlnet(components, each, placement, hub_options)
    if vae is not None:
        components = components._replace(vae=open_vae(vae, components.vae, hub_options))
    if decoder is not None:
        opened = open_temporal_decoder(_built_in_part(decoder, DECODERS), hub_options)
        components = components._replace(temporal_decoder=opened)
    if components.temporal_decoder is not None:
        check_decoder_fits(components.temporal_decoder, components.vae, str(decoder or source))
    if prediction_type is not None:
        components = components._replace(scheduler={**components.scheduler, "prediction_type": prediction_type})

    arguments = {
        "source": source or "pocket",
        "motion": motion,
        "motion_adapter": motion_adapter,
        "adapter": adapter,
        "lora": list_loras(lora),
        "textual_inversion": textual_inversion,
        "ip_adapter": ip_adapter,
        "controlnet": controlnet,
        "vae": vae,
        "decoder": decoder,
        "config": config,
        "prediction_type": prediction_type,
        "revision": revision,
        "variant": variant,
    }
    return _build_model(components, controls, placement, arguments)


def _open_source(
    source: str | Path,
    config: str | Path | None,
    prediction_type: str | None,
    placement: Placement,
    hub_options: HubOptions,
) -> Components:
    path = _pocket_folder() if source in POCKETS else hub.local_path(source, ["pocket", *built_in_names()])
    if source in built_in_names():
        components = built_in_model(str(source)).open(_pocket_folder())
    elif path is not None and path.is_file():
        file = Checkpoint(path, read_tensors(path), config, prediction_type, placement.dtype, hub_options)
        components = components_from_checkpoint(file)
    else:
        folder = path or hub.fetch_pipeline(str(source), hub_options)
        components = components_from_folder(folder, placement.dtype, hub_options.variant)
    networks: list[Any] = [components.unet, components.vae, components.temporal]
    for network in networks:
        if network is not None:
            network.to(memory_format=placement.memory_format)
    return components


def _built_in_part(part: Part, names: Iterable[str]) -> Part | Path:
    """Return the folder of a part that comes with Kineograph, if this is one of their names; else the argument."""
    return part_folder(part, _pocket_folder()) if isinstance(part, str) and part in names else part


def _pocket_folder() -> Path:
    """Return the pocket model's folder. Raises InputError if it is not in this installation."""
    if not (POCKET / INDEX).is_file():
        raise InputError(f"the pocket model is not in this installation ({POCKET} has no {INDEX}): install it again")
    return POCKET


def _build_model(
    components: Components,
    controls: Mapping[str, controlnets.OpenControlNet],
    placement: Placement,
    arguments: Mapping[str, Any],
) -> Model:
    """Place the components and return them as a model. arguments: of `load`, recorded unless one is a live object."""
    for network in (*components.networks.values(), components.vae, *components.other_networks):
        network.to(placement.device)
        if getattr(network, "dtype", None) != placement.dtype:
            network.to(placement.dtype)
    sources = [arguments[name] for name in ("source", "motion", "vae", "decoder")]
    sources += controlnets.list_controlnets(arguments["controlnet"]).values()
    reloadable = not any(isinstance(each, LIVE_OBJECTS) for each in sources)
    vae = prevent_overflow(components.vae)
    return Model(
        net=components.net,
        vae=vae,
        text_encoders=components.text_encoders,
        schedule=Schedule.from_config(components.scheduler),
        name=source_name(arguments["source"]),
        device=placement.device,
        dtype=placement.dtype,
        force_zeros_for_empty_prompt=components.force_zeros_for_empty_prompt,
        settings={name: json_value(value) for name, value in arguments.items() if value} if reloadable else {},
        vocabulary=_vocabulary(arguments["source"], components),
        image_encoder=components.image_encoder,
        controls=controls,
        temporal_decoder=components.temporal_decoder and components.temporal_decoder.to(vae.device, vae.dtype),
        subject=components.subject,
    )


def _vocabulary(source: ModelSource, components: Components) -> frozenset[str] | None:
    """Return the words in a model's vocabulary files and those that were added to them; None without such a file."""
    if isinstance(source, Pipeline):
        return None
    folder = POCKET if source in POCKETS else Path(source).expanduser()
    files = [folder / VOCABULARY]
    if source in built_in_names():
        files.append(folder / built_in_model(str(source)).folder / VOCABULARY)
    words = [word for file in files if file.is_file() for word in json.loads(file.read_text())]
    return (
        frozenset([*words, *components.learned_words, *(components.subject or "").lower().split()]) if words else None
    )
