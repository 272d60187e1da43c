"""Loading a model: the built-in one, a folder, a repository on the Hub, a single file or a live pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Unpack

import torch
from torch import nn

from kineograph import hub
from kineograph.errors import InputError, InputWarning, check_integer, expand_user, load_json, shown
from kineograph.hub import HubOptions
from kineograph.models.changes import place, warn_of_slow_dtype, with_own_layers
from kineograph.models.conditioning.text_encoder import TextEncoder, check_depth, find_words
from kineograph.models.conditioning.textual_inversion import list_textual_inversions, load_textual_inversion
from kineograph.models.description import ANY_CONTROL
from kineograph.models.formats.lora import list_loras, load_lora, read_learned_words
from kineograph.models.formats.tensor_files import read_tensors
from kineograph.models.hooks import add_offloading, execution_device, refuse_offloaded
from kineograph.models.loading.adapters import load_customised_adapter, load_motion_adapter
from kineograph.models.loading.components import (
    INDEX,
    Components,
    Pipeline,
    components_from_folder,
    components_from_pipeline,
    quiet_loading,
)
from kineograph.models.loading.controlnets import (
    OpenControlNet,
    list_controlnets,
    load_controlnet,
    pocket_controlnets,
)
from kineograph.models.loading.describe import check_load_options
from kineograph.models.loading.ip_adapter import load_ip_adapter
from kineograph.models.loading.motion_modules import add_motion_module, warn_of_changed_schedule
from kineograph.models.loading.options import LoadOptions
from kineograph.models.loading.provenance import json_value, source_name
from kineograph.models.loading.save import CLIP_SKIP, VOCABULARY
from kineograph.models.loading.single_file import Checkpoint
from kineograph.models.loading.video_checkpoints import components_from_checkpoint
from kineograph.models.model import Model
from kineograph.models.network_folders import MAX_LAYERS, read_generation_config
from kineograph.models.placement import Placement, choose_placement, lay_out_weights, placed
from kineograph.models.pocket import WEIGHTS
from kineograph.models.pocket.models import (
    ADAPTERS,
    DECODERS,
    built_in_model,
    built_in_names,
    part_folder,
)
from kineograph.models.schedule import Schedule
from kineograph.models.vae.autoencoder import VAE, prevent_overflow
from kineograph.models.vae.temporal_decoder import check_decoder_fits
from kineograph.models.vae.vae_files import open_temporal_decoder, open_vae
from kineograph.options import declared, declares, validate

POCKET = WEIGHTS
POCKET_EDIT = "pocket-edit"
POCKETS = ("pocket", *built_in_names())
RECORDED = ("source", *(name for name, each in declared(LoadOptions).items() if each.recorded))

ModelSource = str | Path | Pipeline
Part = TypeVar("Part")


class Request(NamedTuple):
    """The source of a model, and the complete options of `load`."""

    source: ModelSource
    options: Mapping[str, Any]

    @property
    def hub(self) -> HubOptions:
        """The options of downloads."""
        return HubOptions(**{name: self.options[name] for name in HubOptions._fields})

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that return this model again, as JSON values; empty if one is a live object."""
        given = {"source": self.source, **self.options, "lora": list_loras(self.options["lora"])}
        sources = [given[name] for name in ("source", "motion_module", "vae", "decoder")]
        sources += list_controlnets(given["controlnet"]).values()
        if not all(isinstance(each, str | Path | None) for each in sources):
            return {}
        return {name: json_value(given[name]) for name in RECORDED if given[name] or given[name] == 0}


@declares(LoadOptions)
def load(source: ModelSource | None = None, **options: Unpack[LoadOptions]) -> Model:
    """Load a text-to-image model of the SD 1.x, 2.x or SDXL family, or a video model built on one.

    source: nothing or "pocket" for the built-in model; "pocket-video", "pocket-animate" and "pocket-edit" for those
        that generate videos, animate an image, and edit; a folder in diffusers layout; a repository on the Hub; a
        `.safetensors` or `.ckpt` file, read without running code; or a live diffusers pipeline, which stays as it is:
        its weights are shared, adapters are added to layers of the model's own, and networks in another dtype or on
        another device are copied. A VideoCrafter or VidRD checkpoint, and a folder with ModelScope's or ZeroScope's
        network, are video models.

    A LoRA with a scale is (lora, scale), or with one for each network (lora, {"unet": 0.8, "text_encoder": 0.5}), as in
    diffusers' `set_adapters`. Textual inversions with words of your choice are {word: file}. Networks may be live
    objects of diffusers too.

    Raises InputError if something is missing, damaged, no model of the family, or made for another architecture.

    >>> import kineograph as kg
    >>> model = kg.load()
    >>> model = kg.load("path/to/checkpoint.safetensors", lora=("style.safetensors", 0.8))  # doctest: +SKIP
    """
    if not isinstance(source, str | Path | Pipeline | None):
        raise InputError(f"a model is a name, a path or a pipeline of diffusers, not {shown(source)}")
    request = Request(source or "pocket", validate(options, LoadOptions))
    check_load_options(request.source, request.options)
    placement = _choose_placement(request)
    warn_of_slow_dtype(placement)
    with quiet_loading():
        opened = _replace_vae(_open_source(request, placement), request, placement)
        adapted = _add_adapters(_add_motion_module(opened, request), request)
        controls = _open_controlnets(adapted, request, placement)
        return _build_model(_replace_parts(adapted, request), controls, request, placement)


def _choose_placement(request: Request) -> Placement:
    device, dtype = (request.options[name] for name in ("device", "dtype"))
    dtype = request.options["torch_dtype"] if dtype is None else dtype
    if not isinstance(request.source, Pipeline):
        return choose_placement(device, dtype)
    networks = {name: each for name, each in request.source.components.items() if isinstance(each, nn.Module)}
    unet: Any = networks["unet"]
    if device is None and dtype is None:
        return Placement(execution_device(unet), unet.dtype, "as the pipeline is")
    refuse_offloaded(networks, "`device` and `dtype` do nothing for a pipeline whose networks are offloaded")
    return choose_placement(device or unet.device, dtype or unet.dtype)


def _open_source(request: Request, placement: Placement) -> Components:
    source, options = request.source, request.options
    given_apart = () if options["vae"] is None else ("vae",)
    if isinstance(source, Pipeline):
        return _place_live(components_from_pipeline(source), request, placement)
    path = _pocket_folder() if source in POCKETS else hub.local_path(source, POCKETS)
    if source in built_in_names():
        built_in = built_in_model(str(source))
        components = built_in.open(_pocket_folder())
        own = read_generation_config(_pocket_folder() / built_in.folder)
        components = components._replace(recommended={**components.recommended, **own})
    elif path is not None and path.is_file():
        tensors, prediction_type = read_tensors(path), options["prediction_type"]
        components = components_from_checkpoint(
            Checkpoint(path, tensors, options["config"], prediction_type, placement.dtype, request.hub, given_apart)
        )
    else:
        folder = path or hub.fetch_pipeline(str(source), request.hub)
        components = components_from_folder(folder, placement.dtype, options["variant"], given_apart=given_apart)
    networks: list[Any] = [components.unet, components.vae, components.temporal]
    for network in networks:
        if network is not None:
            lay_out_weights(network, placement.memory_format)
    return components


def _place_live(components: Components, request: Request, placement: Placement) -> Components:
    """Return the components of a live pipeline on a device and in a dtype, as copies where the pipeline's are not."""
    encoder = components.image_encoder
    return components._replace(
        unet=placed(components.unet, placement),
        vae=placed(components.vae, _vae_placement(components.vae, request, placement)),
        text_encoders=tuple(
            TextEncoder(each.tokenizer, placed(each.network, placement)) for each in components.text_encoders
        ),
        image_encoder=None if encoder is None else replace(encoder, network=placed(encoder.network, placement)),
    )


def _vae_placement(vae: VAE, request: Request, placement: Placement) -> Placement:
    """Return the placement of a VAE: beside a live pipeline it has a dtype of its own, unless one is given."""
    given = [request.options[name] for name in ("dtype", "torch_dtype")]
    own_dtype = isinstance(request.source, Pipeline) and not any(given)
    return placement._replace(dtype=vae.dtype) if own_dtype else placement


def _replace_vae(components: Components, request: Request, placement: Placement) -> Components:
    if (vae := request.options["vae"]) is None:
        return components
    opened = open_vae(vae, components.vae, placement.dtype, request.hub)
    is_live = not isinstance(vae, str | Path)
    return components._replace(vae=placed(opened, _vae_placement(opened, request, placement)) if is_live else opened)


def _add_motion_module(components: Components, request: Request) -> Components:
    if (motion := request.options["motion_module"]) is None:
        return components
    moving = add_motion_module(components, motion, request.hub)
    if isinstance(request.source, Pipeline):
        warn_of_changed_schedule(components.scheduler, moving.scheduler, "the pipeline")
    return moving


def _add_adapters(components: Components, request: Request) -> Components:
    """Add the IP-Adapter, LoRAs, textual inversions and Still-Moving's adapters, in this order."""
    source, options, hub_options = request.source, request.options, request.hub
    given = [name for name in ("ip_adapter", "lora", "textual_inversion", "adapter") if options[name]]
    if given:
        refuse_offloaded(components.networks, f"`{given[0]}` cannot change a pipeline whose networks are offloaded")
    if given and isinstance(source, Pipeline):
        components = with_own_layers(components)
    if options["ip_adapter"] is not None:
        components = load_ip_adapter(components, options["ip_adapter"], hub_options)
    loras = list_loras(options["lora"])
    for lora, scale in loras:
        load_lora(components.networks, lora, scale, hub_options)
    words = [word for lora, _ in loras for word in read_learned_words(lora, hub_options)]
    components = components._replace(learned_words=(*components.learned_words, *words))
    for word, file in list_textual_inversions(options["textual_inversion"]):
        load_textual_inversion(components.text_encoders, word, file, hub_options)
    image_name, video_name = source_name(source), source_name(options["motion_module"] or source)
    if options["motion_adapter"] is not None:
        components = load_motion_adapter(components, options["motion_adapter"], video_name, hub_options)
    if options["adapter"] is not None:
        file = _built_in_part(options["adapter"], ADAPTERS)
        components = load_customised_adapter(components, file, image_name, video_name, hub_options)
    return components


def _open_controlnets(components: Components, request: Request, placement: Placement) -> dict[str, OpenControlNet]:
    own = pocket_controlnets(POCKET, placement) if request.source in POCKETS else {}
    given = list_controlnets(request.options["controlnet"], request.source)
    if given and request.options["controlnet"] is None:
        kind = type(given[ANY_CONTROL]).__name__
        warnings.warn(
            f"the {kind} of this pipeline has an effect with `control` alone, a control video of any kind",
            InputWarning,
            stacklevel=4,
        )
    return own | {kind: load_controlnet(components, each, placement, request.hub) for kind, each in given.items()}


def _replace_parts(components: Components, request: Request) -> Components:
    """Replace the temporal decoder and the prediction type."""
    decoder, prediction_type = (request.options[name] for name in ("decoder", "prediction_type"))
    if decoder is not None:
        opened = open_temporal_decoder(_built_in_part(decoder, DECODERS), request.hub)
        components = components._replace(temporal_decoder=opened)
    if components.temporal_decoder is not None:
        check_decoder_fits(components.temporal_decoder, components.vae, str(decoder or request.source))
    if prediction_type is not None:
        components = components._replace(scheduler={**components.scheduler, "prediction_type": prediction_type})
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
    components: Components, controls: Mapping[str, OpenControlNet], request: Request, placement: Placement
) -> Model:
    """Place the components and return them as a model."""
    offload, decoder = request.options["offload"], components.temporal_decoder
    kept = placement if offload is None else placement._replace(device=torch.device("cpu"))
    place((*components.networks.values(), *components.other_networks), kept)
    place([components.vae], _vae_placement(components.vae, request, kept))
    vae = prevent_overflow(components.vae)
    if offload is not None:
        place(components.added_networks, placement)
        encoders = [each.network for each in components.text_encoders]
        images = [] if components.image_encoder is None else [components.image_encoder.network]
        add_offloading([*encoders, *images, components.unet, vae], placement.device, offload)
    return Model(
        net=components.net,
        vae=vae,
        text_encoders=components.text_encoders,
        schedule=Schedule.from_config(components.scheduler),
        name=source_name(request.source),
        device=placement.device,
        dtype=placement.dtype,
        clip_skip=_clip_skip(request.options["clip_skip"], components),
        force_zeros_for_empty_prompt=components.force_zeros_for_empty_prompt,
        settings=request.settings,
        vocabulary=_vocabulary(request.source, components),
        image_encoder=components.image_encoder,
        controls=controls,
        temporal_decoder=decoder and placed(decoder, placement._replace(device=execution_device(vae), dtype=vae.dtype)),
        subject=components.subject,
        learned_words=components.learned_words,
        recommended=components.recommended,
    )


def _clip_skip(given: int | None, components: Components) -> int:
    """Return the number of layers to skip: the given one, or that of a saved model, which is in its configuration."""
    skip = getattr(components.text_encoders[0].network.config, CLIP_SKIP, 0) if given is None else given
    check_integer("`clip_skip`", skip, 0, MAX_LAYERS)
    last = 1 if components.unet.config.addition_embed_type is None else 2
    for encoder in components.text_encoders:
        check_depth(encoder, skip + last)
    return skip


def _vocabulary(source: ModelSource, components: Components) -> frozenset[str] | None:
    """Return the words in a model's vocabulary file and those of its subject; None without such a file.

    The built-in models share theirs: a prompt that is meant for one of them makes sense to the others.
    """
    if isinstance(source, Pipeline):
        return None
    words = [word for phrases in read_vocabulary(source).values() for word in find_words(" ".join(phrases))]
    return frozenset([*words, *(components.subject or "").lower().split()]) if words else None


def read_vocabulary(source: str | Path) -> dict[str, list[str]]:
    """Return the words and phrases that a model was trained on, by what they say; empty without a vocabulary file."""
    files = [*POCKET.rglob(VOCABULARY)] if source in POCKETS else [expand_user(source) / VOCABULARY]
    found: dict[str, list[str]] = {}
    for file in sorted(each for each in files if each.is_file()):
        phrases = load_json(file)
        groups = {"words": phrases} if isinstance(phrases, list) else phrases  # as in models that `save` wrote
        if not isinstance(groups, dict) or not all(_is_list_of_texts(each) for each in groups.values()):
            raise InputError(f"{file} is damaged: expected a list of words, or several by name. Fetch it again")
        for name, each in groups.items():
            found[name] = list(dict.fromkeys([*found.get(name, []), *each]))
    return found


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
