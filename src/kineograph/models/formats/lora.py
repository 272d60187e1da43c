"""LoRA: small changes of many layers, as they are trained and shared.

A LoRA names the layers it changes in one of several ways. Here each is looked up among the names of the layers that
are there, so that it is found or known not to be: nothing is guessed, and nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
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
from kineograph.models.formats import tensor_files
from kineograph.models.formats.layer_names import TargetLayer, flatten_name, flattened_names, target_layers
from kineograph.models.temporal.config import TemporalLayers

LoraSource = str | Path | Sequence[str | Path | float | int]
LoraSources = LoraSource | Sequence[LoraSource]

CUSTOMISE_HEADER = "kineograph"  # of a LoRA's file: what a customising says about what it left
LORA_FILES = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"]
# how a name begins -> which network it means, the first that fits: kohya's scripts, diffusers, peft
BEGINNINGS = {
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
# how it ends -> what it holds: kohya's scripts, peft, diffusers before peft
ENDING = re.compile(
    r"(?P<layer>.+?)[._](?:"
    r"(?P<down>lora_down\.weight|lora_A(?:\.default)?\.weight|lora(?:_linear_layer)?\.down\.weight)|"
    r"(?P<up>lora_up\.weight|lora_B(?:\.default)?\.weight|lora(?:_linear_layer)?\.up\.weight)|"
    r"(?P<alpha>alpha))"
)


class LowRankUpdate(NamedTuple):
    """What a LoRA does to a layer: `weight + alpha / rank * up @ down` (Hu et al. 2021, section 4.1)."""

    down: Tensor
    up: Tensor
    alpha: float


MOTION = "motion_modules"  # in the names of AnimateDiff's motion LoRAs, which change layers along time

MatchedTensors = dict[str, dict[str, dict[str, Tensor]]]
"""network -> path of the layer -> "down", "up", "alpha" -> tensor"""


def list_loras(lora: LoraSources | None) -> list[tuple[str | Path, float]]:
    """LoRAs with their scales, however they were given; a scale not given is 1."""
    if lora is None:
        return []
    if isinstance(lora, str | Path):
        return [(lora, 1.0)]
    if len(lora) == 2 and isinstance(lora[1], int | float):
        return [(lora[0], float(lora[1]))]  # type: ignore[list-item]  # a pair is told from a list by what is second
    return [pair for each in lora for pair in list_loras(each)]  # type: ignore[arg-type]


def load_lora(networks: Mapping[str, nn.Module], lora: str | Path, scale: float, ask: HubOptions) -> None:
    """Put a LoRA on networks, given by their names in a pipeline, beside those that are on them already.

    Raises InputError when it is none, or made for another architecture; nothing is changed then. Warns of tensors
    that belong to no layer here.
    """
    file = hub.find_file(lora, LORA_FILES, ask)
    add_lora(file, tensor_files.read_tensors(file), networks, scale)


def add_lora(file: Path, tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module], scale: float) -> None:
    """Put the LoRA that a file holds in these tensors on networks, see `attach`."""
    found, unmatched = _sorted(tensors, networks)
    settings = _settings(file)
    changes = {part: _changes(file, networks[part], of, settings.get(part, {})) for part, of in found.items()}
    if not any(changes.values()):
        raise InputError(
            f"{file} is no LoRA, or a LoRA for another architecture: none of its {len(unmatched)} tensors belongs to "
            f"a layer of this model. They are called {tensor_files.preview_names(unmatched)}{_hint(unmatched, networks)}"
        )
    if unmatched:
        warnings.warn(
            f"{file}: {len(unmatched)} tensors belong to no layer of this model and are left out: "
            f"{tensor_files.preview_names(unmatched)}",
            InputWarning,
            stacklevel=4,
        )
    name = _new_name(file, networks)
    for part, of in changes.items():
        active = _active(networks[part])
        _attach(networks[part], of, name)
        _activate(networks[part], [*active, name], scale)


def read_learned_words(lora: str | Path, ask: HubOptions) -> list[str]:
    """The words that a LoRA of `kineograph.training.customise` taught; none for another's."""
    header = tensor_files.read_metadata(hub.find_file(lora, LORA_FILES, ask)).get(CUSTOMISE_HEADER)
    return [] if header is None else list(json.loads(header)["words"])


def unmatched_names(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> list[str]:
    """The names of the tensors of a LoRA that belong to no layer of these networks."""
    return _sorted(tensors, networks)[1]


def _hint(unmatched: list[str], networks: Mapping[str, nn.Module]) -> str:
    moves = "temporal" not in networks and any(MOTION in name for name in unmatched)
    return ". It changes layers along time: load the model with those it was made for, motion=..." if moves else ""


def _sorted(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> tuple[MatchedTensors, list[str]]:
    """The tensors by the layers that they belong to, and the names of those that belong to none."""
    names = {part: flattened_names(network) for part, network in networks.items()}
    found: MatchedTensors = {}
    owners: dict[str, tuple[str, str]] = {}
    for key, tensor in tensors.items():
        beginning = next(each for each in BEGINNINGS if key.startswith(each))
        ending = ENDING.fullmatch(key.removeprefix(beginning))
        part = "temporal" if MOTION in key else BEGINNINGS[beginning]
        path = names.get(part, {}).get(flatten_name(ending["layer"])) if ending else None
        if ending and path:
            kind = next(kind for kind in ("down", "up", "alpha") if ending[kind])
            found.setdefault(part, {}).setdefault(path, {})[kind] = tensor
            owners[key] = part, path
    whole = {(part, path) for part, of in found.items() for path, kinds in of.items() if {"down", "up"} <= set(kinds)}
    found = {part: {path: of[path] for path in of if (part, path) in whole} for part, of in found.items()}
    return found, [key for key in tensors if owners.get(key) not in whole]


def _changes(
    file: Path, network: nn.Module, found: Mapping[str, Mapping[str, Tensor]], settings: Mapping[str, Any]
) -> dict[str, LowRankUpdate]:
    here = target_layers(network)
    return {path: _change(file, path, here[path], tensors, settings) for path, tensors in found.items()}


def _change(
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
    # a 1 x 1 convolution and a linear layer are the same thing, and files mix them up
    return LowRankUpdate(
        down.reshape(rank, *weight.shape[1:]), up.reshape(len(weight), rank, *[1] * (weight.ndim - 2)), alpha
    )


def _settings(file: Path) -> dict[str, dict[str, Any]]:
    """network -> what peft was set to when the LoRA was trained: from the file's header, or from beside it."""
    beside = file.with_name("adapter_config.json")
    header = tensor_files.read_metadata(file).get("lora_adapter_metadata")
    if header is None:
        return {"unet": json.loads(beside.read_text())} if beside.is_file() else {}
    settings: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(header).items():
        beginning = next(each for each in BEGINNINGS if name.startswith(each))
        settings.setdefault(BEGINNINGS[beginning], {})[name.removeprefix(beginning)] = value
    return settings


def _alpha(settings: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha that peft used for a layer; without any word of it, the rank, which scales by 1."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    fits = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path))
    alpha = next(fits, settings.get("lora_alpha", rank))
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _new_name(file: Path, networks: Mapping[str, nn.Module]) -> str:
    """A name for the adapter that no other has; torch allows no dots in it."""
    taken = {name for network in networks.values() for name in getattr(network, "peft_config", {})}
    name = re.sub(r"\W", "_", file.stem)
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if each not in taken)


def _attach(
    network: UNet2DConditionModel | TemporalLayers | PreTrainedModel, changes: Mapping[str, LowRankUpdate], name: str
) -> None:
    config = _config(changes)
    state = {f"{path}.lora_A.weight": change.down for path, change in changes.items()}
    state |= {f"{path}.lora_B.weight": change.up for path, change in changes.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several at once are what is wanted
        if isinstance(network, UNet2DConditionModel):
            network.load_lora_adapter(state, prefix=None, adapter_name=name, metadata=config)
        elif isinstance(network, TemporalLayers):
            inject_adapter_in_model(LoraConfig(**config), network, adapter_name=name)
            set_peft_model_state_dict(network, state, adapter_name=name)
        else:
            network.load_adapter(adapter_state_dict=state, peft_config=LoraConfig(**config), adapter_name=name)


def _config(changes: Mapping[str, LowRankUpdate]) -> dict[str, Any]:
    """peft's settings: the commonest rank and alpha, and which layers differ, since it looks those up one by one."""
    ranks = {path: len(change.down) for path, change in changes.items()}
    alphas = {path: change.alpha for path, change in changes.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(changes),
        "rank_pattern": {f"^{re.escape(path)}": each for path, each in ranks.items() if each != rank},
        "alpha_pattern": {f"^{re.escape(path)}": each for path, each in alphas.items() if each != alpha},
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _active(network: nn.Module) -> list[str]:
    """The adapters of a network that are on."""
    names = [name for layer in network.modules() if isinstance(layer, LoraLayer) for name in layer.active_adapters]
    return list(dict.fromkeys(names))


def _activate(network: nn.Module, names: list[str], scale: float) -> None:
    """Switch these adapters on, since a new one switches the others off, and scale the last."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(names, inference_mode=True)
            if names[-1] in layer.scaling:
                layer.set_scale(names[-1], scale)
