"""Models from where they live: this package, a folder, the Hub, a single file, or a pipeline that is already open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models import placement
from kineograph.models.conditioning import textual_inversion as concepts
from kineograph.models.conditioning.textual_inversion import TextualInversions
from kineograph.models.formats import lora as adapters
from kineograph.models.formats import tensor_files, videocrafter, vidrd
from kineograph.models.formats.lora import LoraSources
from kineograph.models.loading import adapters as customised
from kineograph.models.loading import components, controlnets, motion_modules, single_file, video_checkpoints
from kineograph.models.loading import ip_adapter as ip_adapters
from kineograph.models.loading import video_checkpoints as vidrd_file
from kineograph.models.loading.components import INDEX, Components, Pipeline
from kineograph.models.loading.motion_modules import MotionSource
from kineograph.models.loading.provenance import json_value, source_name
from kineograph.models.loading.save import VOCABULARY
from kineograph.models.model import Model
from kineograph.models.placement import Placement
from kineograph.models.pocket import WEIGHTS, models
from kineograph.models.schedule import Schedule
from kineograph.models.vae import files as decoders
from kineograph.models.vae import files as vaes
from kineograph.models.vae.temporal_decoder import TemporalDecoder, check_decoder_fits

POCKET = WEIGHTS
POCKET_EDIT = "pocket-edit"
POCKETS = (None, "pocket", *models.built_in_names())
# files of video models: how one is known, and what opens it
VIDEO_FILES = (
    (videocrafter.is_videocrafter, video_checkpoints.components_from_videocrafter),
    (vidrd.is_vidrd, vidrd_file.components_from_vidrd),
)

ModelSource = str | Path | Pipeline
Part = TypeVar("Part")
LIVE = (Pipeline, MotionAdapter, AutoencoderKL, ControlNetModel, TemporalDecoder)  # of which nothing says where it is


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
    """A text-to-image model of the SD 1.x, 2.x or SDXL family, or a video model around one, ready to make videos.

    source: nothing, or "pocket", for the model that comes with Kineograph, and "pocket-video", "pocket-animate" and
        "pocket-edit" for those that make videos, show a picture moving, and edit; a folder in diffusers layout; a
        repository on the Hub; a `.safetensors` or `.ckpt` file, of which no code is run; or an open diffusers
        pipeline, whose networks are then shared: what is put on them here is on them there. A VideoCrafter
        or VidRD checkpoint, and a folder with ModelScope's or ZeroScope's network, are video models.
    motion: layers along time to put around the image model, and the noise schedule they were trained on: AnimateDiff's
        motion modules (a folder, repository or released file), or any video model, whose image network is left.
    motion_adapter: the file, folder or repository of a Still-Moving motion adapter, trained for these layers along
        time: then `kineograph.generate` takes a `motion_scale`. pocket-video comes with one.
    adapter: what `kineograph customise` left, dog.safetensors: a subject or a style of your own; or "pocket-fox", an
        example for the pocket video model, a fox that is asked for as "a sks cat".
    lora: a file, folder or repository, alone or as (lora, scale); or a list of those. AnimateDiff's motion LoRAs too.
    textual_inversion: a file, folder or repository; a list of those; or {word: file} to choose the words.
    ip_adapter: the file of an IP-Adapter, with its encoder in a folder `image_encoder` beside it, or a repository laid
        out like h94/IP-Adapter: then the model is shown pictures, see `kineograph.animate`.
    controlnet: {kind: folder, repository or network}, where the kind is any name, such as "canny"; or one alone, that
        serves whatever control is asked for. The pocket model comes with canny, depth and pose.
    vae: another VAE than the model's own: a file, folder, repository or network.
    decoder: a temporal decoder, which takes part when latents become frames: the folder or repository of a model that
        has one, VidRD's file or folder, a network, or "pocket-vidrd"; for a VAE of the same widths.
    config: for a single file, a folder or repository in diffusers layout with what the file does not hold.
    prediction_type: "epsilon", "v_prediction" or "sample", where the model does not say what its network predicts.
    device, dtype: chosen unless given, `placement.place` says why; `torch_dtype` is the older name of `dtype`.
    revision, variant, token, cache_dir, local_files_only: as for diffusers' `from_pretrained`.

    Raises InputError for what is missing, damaged, no model of the family, or made for another architecture.

    >>> import kineograph as kg
    >>> model = kg.load()
    >>> model = kg.load("path/to/checkpoint.safetensors", lora=("style.safetensors", 0.8))  # doctest: +SKIP
    """
    hub_options = HubOptions(revision, variant, token, cache_dir, local_files_only)
    wanted = dtype if dtype is not None else torch_dtype
    if isinstance(source, Pipeline):
        opened = components.components_from_pipeline(source)
        place = _place_of(opened, device, wanted)
    else:
        place = placement.choose_placement(device, wanted)
        opened = _opened(source or "pocket", config, prediction_type, place, hub_options)
    if motion is not None:
        opened = _moved(opened, motion, source, hub_options)
    if ip_adapter is not None:
        opened = ip_adapters.load_ip_adapter(opened, ip_adapter, hub_options)
    for each, scale in adapters.list_loras(lora):
        adapters.load_lora(opened.networks, each, scale, hub_options)
        opened = opened._replace(words=(*opened.words, *adapters.read_learned_words(each, hub_options)))
    for word, each in concepts.list_textual_inversions(textual_inversion):
        concepts.load_textual_inversion(opened.text, word, each, hub_options)
    video = source_name(motion or source or "pocket")
    if motion_adapter is not None:
        opened = customised.load_motion_adapter(opened, motion_adapter, video, hub_options)
    if adapter is not None:
        file = _shipped(adapter, models.ADAPTERS)
        opened = customised.load_customised_adapter(opened, file, source_name(source or "pocket"), video, hub_options)
    nets = {
        kind: controlnets.load_controlnet(opened.unet, each, opened.vae.config.latent_channels, place, hub_options)
        for kind, each in controlnets.list_controlnets(controlnet).items()
    }
    if source in POCKETS:
        nets = controlnets.pocket_controlnets(POCKET, place) | nets
    if vae is not None:
        opened = opened._replace(vae=vaes.open_vae(vae, opened.vae, hub_options))
    if decoder is not None:
        opened = opened._replace(
            temporal_decoder=decoders.open_temporal_decoder(_shipped(decoder, models.DECODERS), hub_options)
        )
    if opened.temporal_decoder is not None:
        check_decoder_fits(opened.temporal_decoder, opened.vae, str(decoder or source))
    if prediction_type is not None:
        opened = opened._replace(scheduler={**opened.scheduler, "prediction_type": prediction_type})
    arguments = {
        "source": source or "pocket",
        "motion": motion,
        "motion_adapter": motion_adapter,
        "adapter": adapter,
        "lora": adapters.list_loras(lora),
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
    return _model(opened, nets, place, arguments)


def _place_of(opened: Components, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Placement:
    """An open pipeline stays where and as it is, unless asked."""
    here = Placement(opened.unet.device, opened.unet.dtype, "as the pipeline is")
    return (
        here
        if device is None and dtype is None
        else placement.choose_placement(device or here.device, dtype or here.dtype)
    )


def _opened(
    source: str | Path,
    config: str | Path | None,
    prediction_type: str | None,
    place: Placement,
    hub_options: HubOptions,
) -> Components:
    path = _pocket() if source in POCKETS else hub.local_path(source, ["pocket", *models.built_in_names()])
    if source in models.built_in_names():
        opened = models.built_in_model(str(source)).open(_pocket())
    elif path is not None and path.is_file():
        tensors = tensor_files.read_tensors(path)
        open_parts = next((each for is_one, each in VIDEO_FILES if is_one(tensors)), single_file.components_from_file)
        opened = open_parts(path, tensors, config, prediction_type, place.dtype, hub_options)
    else:
        opened = components.components_from_folder(
            path or hub.fetch_pipeline(str(source), hub_options), place.dtype, hub_options.variant
        )
    for network in (opened.unet, opened.vae, *([opened.temporal] if opened.temporal else [])):
        network.to(memory_format=place.memory_format)
    return opened


def _moved(opened: Components, motion: MotionSource, source: ModelSource | None, hub_options: HubOptions) -> Components:
    moved = motion_modules.add_motion_module(opened, motion, hub_options)
    if isinstance(source, Pipeline):
        motion_modules.warn_of_changed_schedule(opened.scheduler, moved.scheduler, "the pipeline")
    return moved


def _shipped(part: Part, names: Iterable[str]) -> Part | Path:
    """The same; of a part that comes with Kineograph, and is given by one of these names, where it is."""
    if not isinstance(part, str) or part not in names:
        return part
    return models.part_folder(part, _pocket())


def _pocket() -> Path:
    if not (POCKET / INDEX).is_file():
        raise InputError(f"the pocket model is not in this installation ({POCKET} has no {INDEX}): install it again")
    return POCKET


def _model(
    opened: Components, nets: Mapping[str, controlnets.OpenControlNet], place: Placement, arguments: Mapping[str, Any]
) -> Model:
    for network in (*opened.networks.values(), opened.vae, *opened.beside):
        network.to(place.device)
        if getattr(network, "dtype", None) != place.dtype:
            network.to(place.dtype)
    named = (arguments[name] for name in ("source", "motion", "vae", "decoder"))
    given = [*named, *controlnets.list_controlnets(arguments["controlnet"]).values()]
    live = any(isinstance(each, LIVE) for each in given)
    vae = vaes.prevent_overflow(opened.vae)
    return Model(
        net=opened.net,
        vae=vae,
        text=opened.text,
        schedule=Schedule.from_config(opened.scheduler),
        name=source_name(arguments["source"]),
        device=place.device,
        dtype=place.dtype,
        force_zeros_for_empty_prompt=opened.force_zeros_for_empty_prompt,
        settings={} if live else {name: json_value(value) for name, value in arguments.items() if value},
        vocabulary=_vocabulary(arguments["source"], opened),
        image_encoder=opened.image_encoder,
        controls=nets,
        temporal_decoder=opened.temporal_decoder and opened.temporal_decoder.to(vae.device, vae.dtype),
        subject=opened.subject,
    )


def _vocabulary(source: ModelSource, opened: Components) -> frozenset[str] | None:
    """The words that a model has a list of, and those that it learnt since."""
    if isinstance(source, Pipeline):
        return None
    folder = POCKET if source in POCKETS else Path(source).expanduser()
    beside = (
        [folder / models.built_in_model(str(source)).part / VOCABULARY] if source in models.built_in_names() else []
    )
    files = [folder / VOCABULARY, *beside]
    words = [word for file in files if file.is_file() for word in json.loads(file.read_text())]
    return frozenset([*words, *opened.words, *(opened.subject or "").lower().split()]) if words else None
