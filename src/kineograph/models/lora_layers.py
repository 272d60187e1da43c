"""LoRAs on networks: layers of peft for products of two matrices, and changed weights for all other kinds.

The original of a changed weight stays in the layer as a buffer outside of the state dict, which moves with the network.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from kineograph.errors import InputError
from kineograph.models.formats.layer_names import WeightedLayer
from kineograph.models.formats.lora_kinds import LowRankUpdate
from kineograph.models.hooks import hooked_modules
from kineograph.models.temporal.temporal_layers import TemporalLayers

CUSTOMISED = "customised-"  # in front of the names of LoRAs that belong to a customised adapter; no file's name has -
ORIGINAL = "original_"  # in front of the name of a changed parameter
CHANGES = "changed_by"  # attribute of a network: names of the LoRAs that changed weights


def lora_names(network: nn.Module) -> list[str]:
    """Return the names of a network's LoRAs, without that of a customised adapter."""
    names = [*getattr(network, "peft_config", {}), *getattr(network, CHANGES, ())]
    return [name for name in dict.fromkeys(names) if not name.startswith(CUSTOMISED)]


def has_loras(network: nn.Module) -> bool:
    """Return True if a network, or one inside it, has LoRAs, a customised adapter's too."""
    return any(isinstance(each, LoraLayer) or hasattr(each, CHANGES) for each in network.modules())


def original_weight(layer: WeightedLayer) -> Tensor:
    """Return a layer's weight without LoRAs."""
    return getattr(layer, ORIGINAL + "weight", layer.weight)


def original_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's weights without LoRAs, by the names of the network without them."""
    weights = {name: each for name, each in network.state_dict().items() if ".lora_" not in name}
    for path, layer in network.named_modules():
        for name, before in layer._buffers.items():
            if name.startswith(ORIGINAL):
                weights.pop(full := f"{path}.{name.removeprefix(ORIGINAL)}", None)
                weights |= {} if before is None else {full: before}
    return {name.replace(".base_layer.", "."): each for name, each in weights.items()}


def check_changeable(network: nn.Module, layer: WeightedLayer, path: str) -> None:
    """Raise InputError for a layer whose weight cannot be changed in place: a quantised, offloaded or hooked one."""
    if not layer.weight.is_floating_point():
        raise InputError(
            f"{path} is quantised, and this kind of LoRA changes weights: load the model without quantisation"
        )
    if layer.weight.is_meta or hooked_modules(network):
        raise InputError(
            f"{path} is offloaded, and this kind of LoRA changes weights: load the LoRA first, and switch on "
            "offloading afterwards"
        )
    if "forward" in vars(layer):  # bound to the weight of another network, where layers are copies
        raise InputError(f"{path} has another forward pass, and this kind of LoRA changes weights: take that off first")


@torch.no_grad()
def change_parameter(layer: WeightedLayer, name: str, change: Tensor) -> None:
    """Add to a layer's weight or bias, keeping the original; a layer without bias gets one."""
    before: Tensor | None = getattr(layer, name)
    if not hasattr(layer, ORIGINAL + name):
        layer.register_buffer(ORIGINAL + name, before, persistent=False)
    changed = change if before is None else before.to(change.dtype) + change
    setattr(layer, name, nn.Parameter(changed.to(layer.weight), requires_grad=False))


def note_changes(network: nn.Module, name: str) -> None:
    """Record the name of a LoRA that changed weights of a network."""
    setattr(network, CHANGES, [*getattr(network, CHANGES, ()), name])


def remove_loras(networks: Mapping[str, nn.Module]) -> None:
    """Remove all LoRAs from networks, except those of a customised adapter; weights are the same bits again."""
    for network in networks.values():
        _remove_peft_layers(network)
        for layer in network.modules():
            for buffer in [each for each in layer._buffers if each.startswith(ORIGINAL)]:
                before = layer._buffers.pop(buffer)
                layer._non_persistent_buffers_set.discard(buffer)
                if before is not None and not isinstance(before, nn.Parameter):  # after a move
                    before = nn.Parameter(before, requires_grad=False)
                setattr(layer, buffer.removeprefix(ORIGINAL), before)
        if hasattr(network, CHANGES):
            delattr(network, CHANGES)


def _remove_peft_layers(network: nn.Module) -> None:
    for path, layer in [each for each in network.named_modules() if isinstance(each[1], LoraLayer)]:
        kept = [name for name in layer.active_adapters if name.startswith(CUSTOMISED)]
        if not any(name.startswith(CUSTOMISED) for name in layer.scaling):
            network.set_submodule(path, layer.get_base_layer())
            continue
        layer.set_adapter(kept, inference_mode=True)
        for name in [name for name in layer.scaling if not name.startswith(CUSTOMISED)]:
            layer.delete_adapter(name)
    configs = getattr(network, "peft_config", {})
    for name in [name for name in configs if not name.startswith(CUSTOMISED)]:
        del configs[name]
    if not configs and hasattr(network, "peft_config"):
        del network.peft_config
        network._hf_peft_config_loaded = False  # type: ignore[assignment]  # of libraries' networks


def add_low_rank_updates(network: nn.Module, updates: Mapping[str, LowRankUpdate], name: str, scale: float) -> None:
    """Add a LoRA to a network's layers, by their paths; LoRAs that they have already stay active."""
    loras = (layer for layer in network.modules() if isinstance(layer, LoraLayer))
    active = dict.fromkeys(adapter for layer in loras for adapter in layer.active_adapters)
    trained = [each for each in network.parameters() if each.requires_grad]
    _add_adapter(network, updates, name)
    # a sum's rounding depends on the order: that of `load`, which adds a customised adapter last
    order = sorted([*active, name], key=lambda each: each.startswith(CUSTOMISED))
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            if name in layer.scaling:
                layer.set_scale(name, scale)
            layer.set_adapter(order, inference_mode=True)  # adding one deactivated the others
    for weight in trained:  # peft switches off all gradients, and weights may be shared with another network
        weight.requires_grad = True


def _add_adapter(
    network: UNet2DConditionModel | TemporalLayers | PreTrainedModel, updates: Mapping[str, LowRankUpdate], name: str
) -> None:
    config = _config(updates)
    state = {f"{path}.lora_A.weight": update.down for path, update in updates.items()}
    state |= {f"{path}.lora_B.weight": update.up for path, update in updates.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are intended
        if isinstance(network, UNet2DConditionModel):
            network.load_lora_adapter(state, prefix=None, adapter_name=name, metadata=config)
        elif isinstance(network, TemporalLayers):
            inject_adapter_in_model(LoraConfig(**config), network, adapter_name=name)
            set_peft_model_state_dict(network, state, adapter_name=name)
        else:
            network.load_adapter(adapter_state_dict=state, peft_config=LoraConfig(**config), adapter_name=name)


def _config(updates: Mapping[str, LowRankUpdate]) -> dict[str, Any]:
    """Return peft's settings: the most common rank and alpha; patterns, which are slow, for the other layers alone."""
    ranks = {path: len(update.down) for path, update in updates.items()}
    alphas = {path: update.alpha for path, update in updates.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(updates),
        "rank_pattern": {f"^{re.escape(path)}": each for path, each in ranks.items() if each != rank},
        "alpha_pattern": {f"^{re.escape(path)}": each for path, each in alphas.items() if each != alpha},
    }
