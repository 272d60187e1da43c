"""LoRA weights in the layouts of kohya's scripts, diffusers and peft, added to the networks of a model.

Each tensor's name is looked up among all names of the network's layers, so that a tensor without a layer is known and
reported.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import tensor_files
from kineograph.models.formats.layer_names import TargetLayer, flatten_name, flattened_names, target_layers
from kineograph.models.temporal.temporal_layers import TemporalLayers

LoraSource = str | Path | Sequence[str | Path | float | int]
LoraSources = LoraSource | Sequence[LoraSource]

CUSTOMISE_HEADER = "kineograph"  # metadata of LoRAs that `kineograph customise` trained
LORA_FILES = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"]
# prefix of a tensor's name -> network, the first that fits: kohya's scripts, diffusers, peft
NETWORK_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
    "": "unet",
}
# ending of a tensor's name -> its role: kohya's scripts, peft, diffusers before peft
ENDING = re.compile(
    r"(?P<layer>.+?)[._](?:"
    r"(?P<down>lora_down\.weight|lora_A(?:\.default)?\.weight|lora(?:_linear_layer)?\.down\.weight)|"
    r"(?P<up>lora_up\.weight|lora_B(?:\.default)?\.weight|lora(?:_linear_layer)?\.up\.weight)|"
    r"(?P<alpha>alpha))"
)


class LowRankUpdate(NamedTuple):
    """A LoRA's update of one layer to `weight + alpha / rank * up @ down` (Hu et al. 2021, section 4.1)."""

    down: Tensor
    up: Tensor
    alpha: float


CUSTOMISED = "customised-"  # in front of the names of LoRAs that belong to a customised adapter; no file's name has -
MOTION = "motion_modules"  # in the names of AnimateDiff's motion LoRAs, which change temporal layers

MatchedTensors = dict[str, dict[str, dict[str, Tensor]]]  # network -> path of the layer -> role in ENDING -> tensor


def list_loras(lora: LoraSources | None) -> list[tuple[str | Path, float]]:
    """Return each LoRA with its scale, 1 unless given."""
    if lora is None:
        return []
    if isinstance(lora, str | Path):
        return [(lora, 1.0)]
    if len(lora) == 2 and isinstance(lora[1], int | float):
        return [(lora[0], float(lora[1]))]  # type: ignore[list-item]  # a number as second item makes it a pair
    return [pair for each in lora for pair in list_loras(each)]  # type: ignore[arg-type]


def load_lora(networks: Mapping[str, nn.Module], lora: str | Path, scale: float, hub_options: HubOptions) -> None:
    """Add a LoRA from a file, folder or repository to networks; LoRAs that they have already stay active.

    networks: by their names in a pipeline. Raises InputError if it is no LoRA, or one for another architecture; nothing
    is changed then. Warns of tensors that belong to no layer of the networks.
    """
    file = hub.find_file(lora, LORA_FILES, hub_options)
    add_lora(file, tensor_files.read_tensors(file), networks, scale)


def add_lora(
    file: Path, tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module], scale: float, *, prefix: str = ""
) -> None:
    """Add the LoRA that a file holds in these tensors to networks, see `load_lora`. prefix: of its name on them."""
    matched, unmatched = _match_tensors(tensors, networks)
    settings = _peft_settings(file)
    updates: dict[str, dict[str, LowRankUpdate]] = {}
    for part, found in matched.items():
        layers, config = target_layers(networks[part]), settings.get(part, {})
        updates[part] = {path: _update(file, path, layers[path], each, config) for path, each in found.items()}
    if not any(updates.values()):
        names, is_motion_lora = tensor_files.preview_names(unmatched), any(MOTION in name for name in unmatched)
        advice = ". It is for a motion module: load the model with that motion module, `motion_module`"
        raise InputError(
            f"{file} is no LoRA, or a LoRA for another architecture: none of its {len(unmatched)} tensors belongs to "
            f"a layer of this model. They are called {names}"
            f"{advice if is_motion_lora and 'temporal' not in networks else ''}"
        )
    if unmatched:
        warnings.warn(
            f"{file}: {len(unmatched)} tensors belong to no layer of this model and are left out: "
            f"{tensor_files.preview_names(unmatched)}",
            InputWarning,
            stacklevel=5,
        )
    name = prefix + _new_name(file, networks)
    for part, changes in updates.items():
        loras = (layer for layer in networks[part].modules() if isinstance(layer, LoraLayer))
        active = dict.fromkeys(adapter for layer in loras for adapter in layer.active_adapters)
        _add_adapter(networks[part], changes, name)
        _set_scale(networks[part], name, scale)
        # a sum's rounding depends on the order: that of `load`, which adds a customised adapter last
        _activate(networks[part], sorted([*active, name], key=lambda each: each.startswith(CUSTOMISED)))


def remove_loras(networks: Mapping[str, nn.Module]) -> None:
    """Remove all LoRAs from networks, except those of a customised adapter."""
    for network in networks.values():
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


def named_networks(
    unet: nn.Module, text_encoders: Iterable[TextEncoder], temporal: nn.Module | None
) -> dict[str, nn.Module]:
    """Return the networks that LoRAs can change, by their names in a pipeline, and the temporal layers."""
    encoders = (each.network for each in text_encoders)
    named = dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    return {"unet": unet, **named, **({} if temporal is None else {"temporal": temporal})}


def lora_names(network: nn.Module) -> list[str]:
    """Return the names of a network's LoRAs, without that of a customised adapter."""
    return [name for name in getattr(network, "peft_config", {}) if not name.startswith(CUSTOMISED)]


def read_learned_words(lora: str | Path, hub_options: HubOptions) -> list[str]:
    """Return the words that a LoRA of `kineograph customise` was trained for; none for another LoRA."""
    header = tensor_files.read_metadata(hub.find_file(lora, LORA_FILES, hub_options)).get(CUSTOMISE_HEADER)
    return [] if header is None else list(json.loads(header)["words"])


def unmatched_names(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of a LoRA's tensors that belong to no layer of these networks."""
    return _match_tensors(tensors, networks)[1]


def _match_tensors(
    tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]
) -> tuple[MatchedTensors, list[str]]:
    """Return the tensors by network and layer, and the names of those that belong to no layer."""
    names = {part: flattened_names(network) for part, network in networks.items()}
    found: MatchedTensors = {}
    owners: dict[str, tuple[str, str]] = {}
    for key, tensor in tensors.items():
        prefix = next(each for each in NETWORK_PREFIXES if key.startswith(each))
        ending = ENDING.fullmatch(key.removeprefix(prefix))
        part = "temporal" if MOTION in key else NETWORK_PREFIXES[prefix]
        path = names.get(part, {}).get(flatten_name(ending["layer"])) if ending else None
        if ending and path:
            role = next(role for role in ("down", "up", "alpha") if ending[role])
            found.setdefault(part, {}).setdefault(path, {})[role] = tensor
            owners[key] = part, path
    matched = {
        part: {path: roles for path, roles in layers.items() if {"down", "up"} <= set(roles)}
        for part, layers in found.items()
    }
    complete = {(part, path) for part, layers in matched.items() for path in layers}
    return matched, [key for key in tensors if owners.get(key) not in complete]


def _update(
    file: Path, path: str, layer: TargetLayer, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> LowRankUpdate:
    down, up, weight = tensors["down"], tensors["up"], layer.weight
    rank = len(down)
    if down.numel() != rank * weight[0].numel() or up.numel() != rank * len(weight):
        raise InputError(
            f"{file} is a LoRA for another architecture: it changes {path} from {tuple(down.shape)} to "
            f"{tuple(up.shape)}, where this model has {tuple(weight.shape)}"
        )
    alpha = tensors["alpha"].item() if "alpha" in tensors else _alpha(settings, path, rank)
    # files mix up 1 x 1 convolutions and linear layers
    return LowRankUpdate(
        down.reshape(rank, *weight.shape[1:]), up.reshape(len(weight), rank, *[1] * (weight.ndim - 2)), alpha
    )


def _peft_settings(file: Path) -> dict[str, dict[str, Any]]:
    """Return peft's settings of the training, by network: from the file's header or adapter_config.json beside it."""
    beside = file.with_name("adapter_config.json")
    header = tensor_files.read_metadata(file).get("lora_adapter_metadata")
    if header is None:
        return {"unet": json.loads(beside.read_text())} if beside.is_file() else {}
    settings: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(header).items():
        prefix = next(each for each in NETWORK_PREFIXES if name.startswith(each))
        settings.setdefault(NETWORK_PREFIXES[prefix], {})[name.removeprefix(prefix)] = value
    return settings


def _alpha(settings: Mapping[str, Any], path: str, rank: int) -> float:
    """Return the alpha that peft used for a layer; without settings the rank, which scales by 1."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    matches = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path))
    alpha = next(matches, settings.get("lora_alpha", rank))
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _new_name(file: Path, networks: Mapping[str, nn.Module]) -> str:
    """Return an adapter name that is not taken; torch allows no dots in it."""
    taken = {name for network in networks.values() for name in getattr(network, "peft_config", {})}
    name = re.sub(r"\W", "_", file.stem)
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if each not in taken)


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


def _activate(network: nn.Module, names: list[str]) -> None:
    """Activate these adapters, because adding one deactivates the others."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(names, inference_mode=True)


def _set_scale(network: nn.Module, name: str, scale: float) -> None:
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and name in layer.scaling:
            layer.set_scale(name, scale)
