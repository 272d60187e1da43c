"""Changes of a loaded model, its device and dtype, and its LoRAs: each returns a new model with the same weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats.lora import LoraScale, check_scale, load_lora, read_learned_words
from kineograph.models.hooks import is_offloaded, refuse_offloaded
from kineograph.models.loading.components import Components, quiet_loading
from kineograph.models.loading.controlnets import move_controlnet
from kineograph.models.lora_layers import remove_loras
from kineograph.models.model import Model
from kineograph.models.placement import DTYPES, Placement, choose_placement
from kineograph.models.vae.autoencoder import prevent_overflow

Network = TypeVar("Network", bound=nn.Module)


def place(networks: Iterable[nn.Module], placement: Placement) -> None:
    """Move networks to a device and dtype, in place; those of a live pipeline whose hooks move them stay."""
    for network in networks:
        if is_offloaded(network):
            continue
        network.to(placement.device)
        if getattr(network, "dtype", None) != placement.dtype:
            network.to(placement.dtype)


def warn_of_slow_dtype(placement: Placement) -> None:
    """Warn of float16 on a CPU, which computes it slowly."""
    if placement.device.type == "cpu" and placement.dtype == torch.float16:
        warnings.warn(
            "float16 is slow on a CPU, which has no units for it: take `dtype` bfloat16, or float32",
            InputWarning,
            stacklevel=3,
        )


def move(
    model: Model, arguments: Iterable[Any], device: str | torch.device | None, dtype: str | torch.dtype | None
) -> Model:
    """Move a model's networks; see `Model.to`."""
    for each in arguments:
        if isinstance(each, torch.dtype) or str(each).removeprefix("torch.") in DTYPES:
            dtype = each
        elif isinstance(each, str | torch.device):
            device = each
        else:
            raise InputError(f"a model moves to a device, a dtype or both, as in model.to('cuda'), not to {each!r}")
    refuse_offloaded(model.networks, "a model whose networks are offloaded cannot move")
    placement = choose_placement(model.device if device is None else device, model.dtype if dtype is None else dtype)
    warn_of_slow_dtype(placement)
    image_encoder = None if model.image_encoder is None else model.image_encoder.network
    others = (model.vae, image_encoder, model.net.motion_adapter, model.net.spatial_adapter)
    with quiet_loading():
        place([*model.networks.values(), *(each for each in others if each is not None)], placement)
        vae = prevent_overflow(model.vae)
        for network in (model.net.image_unet, vae, model.net.temporal):
            if network is not None:
                network.to(memory_format=placement.memory_format)  # type: ignore[call-overload]  # of torch's stub
        if model.temporal_decoder is not None:
            model.temporal_decoder.to(vae.device, vae.dtype)
        controls = {kind: move_controlnet(each, placement) for kind, each in model.controls.items()}
    return replace(model, vae=vae, controls=controls, device=placement.device, dtype=placement.dtype)


def add_lora_to_model(model: Model, source: str | Path, scale: LoraScale) -> Model:
    """Add a LoRA; see `Model.load_lora_weights`."""
    scale = check_scale(scale)
    changed, hub_options = _with_own_layers(model), HubOptions()
    networks = changed.networks
    with quiet_loading():
        load_lora(networks, source, scale, hub_options)
    place(networks.values(), Placement(model.device, model.dtype, "as the model is"))
    settings = dict(model.settings)
    if settings:
        settings["lora"] = [*settings.get("lora", []), [str(source), scale]]
    words = (*model.learned_words, *read_learned_words(source, hub_options))
    return replace(changed, settings=settings, learned_words=words)


def remove_loras_from_model(model: Model) -> Model:
    """Remove all LoRAs; see `Model.unload_lora_weights`."""
    changed = _with_own_layers(model)
    remove_loras(changed.networks)
    settings = {name: value for name, value in model.settings.items() if name != "lora"}
    return replace(changed, settings=settings, learned_words=())


def with_own_layers(components: Components) -> Components:
    """Return a live pipeline's components with layers and tokenizers of their own, to which adapters can be added.

    Weights are shared, but for the embeddings of words, which a textual inversion resizes in place.
    """
    encoders = [(copy.deepcopy(each.tokenizer), _copy_layers(each.network)) for each in components.text_encoders]
    for _, network in encoders:
        words: Any = network.get_input_embeddings()
        words.weight = nn.Parameter(words.weight.detach().clone(), requires_grad=words.weight.requires_grad)
    return components._replace(
        unet=_copy_layers(components.unet), text_encoders=tuple(TextEncoder(*each) for each in encoders)
    )


def _with_own_layers(model: Model) -> Model:
    """Return the model with layers of its own, which have the same weights: changes of layers leave the other as is."""
    refuse_offloaded(model.networks, "LoRAs cannot change a model whose networks are offloaded")
    encoders = tuple(TextEncoder(each.tokenizer, _copy_layers(each.network)) for each in model.text_encoders)
    return replace(model, net=_copy_layers(model.net), text_encoders=encoders)


def _copy_layers(network: Network) -> Network:
    weights: dict[int, Any] = {id(each): each for each in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, weights)  # which copies nothing that is in this table
