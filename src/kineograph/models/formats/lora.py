"""LoRA files of all trainers, added to the networks of a model.

Each tensor's name is looked up among all names of the networks' layers, so that a tensor without a layer is known and
reported. A file is applied whole, but for tensors of layers that the model has not, or it is refused.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kineograph import hub
from kineograph.errors import InputError, InputWarning, parse_json, shown
from kineograph.hub import HubOptions
from kineograph.models import lora_layers
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import known_configurations, lora_kinds, modelscope, tensor_files, videocrafter
from kineograph.models.formats.layer_names import (
    TargetLayer,
    WeightedLayer,
    flatten_name,
    flattened_names,
    weighted_layers,
)
from kineograph.models.formats.lora_kinds import LowRankUpdate, Scaling
from kineograph.models.network_folders import read_json

LoraScale = float | Mapping[str, float]  # of all networks, or by network, as in diffusers' set_adapters
LoraSource = str | Path | Sequence[str | Path | LoraScale]
LoraSources = LoraSource | Sequence[LoraSource]

CUSTOMISE_HEADER = "kineograph"  # metadata of LoRAs that `kineograph customise` trained
LORA_FILES = [
    "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin"
]  # fmt: skip
WRAPPERS = ("base_model.model.", "_orig_mod.")  # parts of names that peft and torch.compile add
IMAGE, TEXT, TEXT_2 = ("unet", "temporal"), ("text_encoder",), ("text_encoder_2",)
# prefix of a tensor's name -> the networks that it can be of, the first prefix that fits
NETWORK_PREFIXES = {
    "lora_unet_": IMAGE,  # kohya's scripts
    "lora_te1_": TEXT,
    "lora_te2_": TEXT_2,
    "lora_te_": TEXT,
    "lora_unet.": IMAGE,  # OneTrainer
    "lora_te1.": TEXT,
    "lora_te2.": TEXT_2,
    "lora_te.": TEXT,
    "unet.": IMAGE,  # diffusers, OMI
    "text_encoder_2.": TEXT_2,
    "text_encoder.": TEXT,
    "diffusion_model.": IMAGE,  # ComfyUI
    "model.diffusion_model.": IMAGE,
    "text_encoders.clip_l.transformer.": TEXT,
    "text_encoders.clip_h.transformer.": TEXT,
    "text_encoders.clip_g.transformer.": TEXT_2,
    "clip_l.transformer.": TEXT,
    "clip_h.transformer.": TEXT,
    "clip_g.transformer.": TEXT_2,
    "clip_l.": TEXT,
    "clip_h.": TEXT,
    "clip_g.": TEXT_2,
    "cond_stage_model.transformer.": TEXT,  # single files
    "conditioner.embedders.0.transformer.": TEXT,
    "lycoris_": (*IMAGE, *TEXT, *TEXT_2),  # LyCORIS on one network, which is not named
    "": (*IMAGE, *TEXT, *TEXT_2),  # peft, and diffusers' first layout
}
SCALED = ("unet", "text_encoder", "text_encoder_2")  # networks with scales of their own
MOTION = "motion_modules"  # in the names of AnimateDiff's motion LoRAs, which change temporal layers
EMBEDDINGS = "bundle_emb."  # in front of the names of textual inversions inside OneTrainer's LoRAs
FAMILIES = ("base_model_version", "modelspec.architecture")  # metadata with the architecture that a LoRA is for

Layer = tuple[str, str]  # network, path of the layer in it
Roles = dict[str, Tensor]  # tensors of one layer, by their roles in `lora_kinds.ROLES`


class Matches(NamedTuple):
    """Tensors of a file by layer and role, and names of the others.

    elsewhere: of no layer; unknown: of a layer, but of no known kind; repeated: with the role of another tensor.
    """

    layers: dict[Layer, Roles]
    elsewhere: list[str]
    unknown: list[str]
    repeated: list[str]


class LayerChange(NamedTuple):
    """Change of a layer at scale 1.

    tensors: in float32, by role; update: that of the weight, if it is by two matrices; in_place: if there is another.
    """

    tensors: Roles
    scale: Scaling
    update: LowRankUpdate | None
    in_place: bool


def list_loras(lora: LoraSources | None) -> list[tuple[str | Path, LoraScale]]:
    """Return each LoRA with its scale, 1 unless given. Raises InputError for a scale that is none."""
    if lora is None:
        return []
    if isinstance(lora, str | Path):
        return [(lora, 1.0)]
    if len(lora) == 2 and isinstance(lora[0], str | Path) and isinstance(lora[1], int | float | Mapping):
        return [(lora[0], check_scale(lora[1]))]
    for each in lora:
        if isinstance(each, int | float | Mapping):
            raise InputError(f"a LoRA is a file, or with its scale (file, 0.8), and {shown(each)} is beside no file")
    return [pair for each in lora for pair in list_loras(each)]  # type: ignore[arg-type]


def check_scale(scale: LoraScale) -> LoraScale:
    """Return a LoRA's scale as floats. Raises InputError for one of an unknown network, or that is no number."""
    by_network = dict(scale) if isinstance(scale, Mapping) else {SCALED[0]: scale}
    for name, value in by_network.items():
        if name not in SCALED:
            raise InputError(f"a LoRA has scales of {', '.join(SCALED)}, not of {name!r}")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"the scale of a LoRA is a finite number, such as 0.8, not {shown(value)}")
    return {name: float(each) for name, each in scale.items()} if isinstance(scale, Mapping) else float(scale)


def network_scale(scale: LoraScale, part: str) -> float:
    """Return the scale on a network: that of all, or its own, 1 unless given. Temporal layers have the U-Net's."""
    return scale.get(IMAGE[0] if part in IMAGE else part, 1.0) if isinstance(scale, Mapping) else scale


def load_lora(networks: Mapping[str, nn.Module], lora: str | Path, scale: LoraScale, hub_options: HubOptions) -> None:
    """Add a LoRA from a file, folder or repository to networks; LoRAs that they have already stay active.

    networks: by their names in a pipeline. Raises InputError if it is no LoRA, one for another architecture or of a
    kind that is not supported; nothing is changed then. Warns of tensors that belong to no layer of the networks.
    """
    file = hub.find_file(lora, LORA_FILES, hub_options)
    add_lora(file, tensor_files.read_tensors(file), networks, scale)


def add_lora(
    file: Path, tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module], scale: LoraScale, *, prefix: str = ""
) -> None:
    """Add the LoRA that a file holds in these tensors to networks, see `load_lora`. prefix: of its name on them."""
    settings = _peft_settings(file, tensors)
    _refuse_unsupported(file, tensors, settings)
    _refuse_numberless(file, tensors)
    _check_architecture(file, networks)
    matches = match_tensors(tensors, networks)
    _refuse_unknown(file, matches.unknown, tensors)
    if matches.repeated:
        names = tensor_files.preview_names(matches.repeated)
        raise InputError(f"{file} has several tensors for the same part of a layer, by other names too: {names}")
    layers = {part: weighted_layers(network) for part, network in networks.items()}
    changes: dict[str, dict[str, LayerChange]] = {}
    for (part, path), roles in matches.layers.items():
        change = _layer_change(file, path, layers[part][path], roles, settings.get(part, {}))
        if change.in_place:
            lora_layers.check_changeable(networks[part], layers[part][path], path)
        changes.setdefault(part, {})[path] = change
    if not changes:
        raise _error_of_no_layer(file, tensors, networks)
    _refuse_other_image_network(file, changes, matches.elsewhere)
    _warn_of_left_out(file, matches.elsewhere, len(tensors))
    _warn_of_no_effect(file, changes)
    name = prefix + _new_name(file, networks)
    for part, of_network in changes.items():
        own_scale = network_scale(scale, part)
        _change_weights(networks[part], layers[part], of_network, name, own_scale)
        updates = {path: change.update for path, change in of_network.items() if change.update is not None}
        if updates:
            lora_layers.add_low_rank_updates(networks[part], updates, name, own_scale)


def named_networks(
    unet: nn.Module, text_encoders: Iterable[TextEncoder], temporal: nn.Module | None
) -> dict[str, nn.Module]:
    """Return the networks that LoRAs can change, by their names in a pipeline, and the temporal layers."""
    encoders = (each.network for each in text_encoders)
    named = dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    return {"unet": unet, **named, **({} if temporal is None else {"temporal": temporal})}


def read_learned_words(lora: str | Path, hub_options: HubOptions) -> list[str]:
    """Return the words that a LoRA of `kineograph customise` was trained for; none for another LoRA."""
    header = tensor_files.read_metadata(hub.find_file(lora, LORA_FILES, hub_options)).get(CUSTOMISE_HEADER)
    return [] if header is None else list(json.loads(header)["words"])


def match_tensors(tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> Matches:
    """Return a file's tensors by the layers of networks that they change."""
    names = layer_paths(networks)
    matches = Matches({}, [], [], [])
    for key, tensor in tensors.items():
        parts, rest = _split_prefix(key)
        ending = lora_kinds.ENDING.fullmatch(rest)
        if ending is None:
            pieces = rest.split(".")
            stems = (flatten_name(".".join(pieces[:count])) for count in range(len(pieces) - 1, 0, -1))
            known = any(stem in names.get(part, {}) for stem in stems for part in parts)
            (matches.unknown if known else matches.elsewhere).append(key)
            continue
        flat = flatten_name(ending["layer"])
        part = next((each for each in parts if flat in names.get(each, {})), None)
        if part is None:
            matches.elsewhere.append(key)
            continue
        roles = matches.layers.setdefault((part, names[part][flat]), {})
        role = next(role for role in lora_kinds.ROLES if ending[role])
        if role in roles:
            matches.repeated.append(key)
        roles[role] = tensor
    return matches


def layer_paths(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """Return the path of every layer that a LoRA can change, by network and by each of its flattened names."""
    names = {part: flattened_names(network) for part, network in networks.items()}
    unet = networks.get("unet")
    if "temporal" in networks and isinstance(unet, UNet2DConditionModel):
        # the names of ModelScope's and VideoCrafter's networks
        for part, prefix in (("temporal", "temporal"), ("unet", "image_unet")):
            for path in weighted_layers(networks[part]):
                full = f"{prefix}.{path}.weight"
                released = videocrafter.videocrafter_entry(unet, full).name.removeprefix(videocrafter.UNET)
                for name in (released, modelscope.modelscope_entry(full).name):
                    names[part].setdefault(flatten_name(name.removesuffix(".weight")), path)
    return names


def _split_prefix(key: str) -> tuple[tuple[str, ...], str]:
    """Return the networks that a tensor can belong to by its name, and the rest of the name."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    prefix = next(each for each in NETWORK_PREFIXES if key.startswith(each))
    return NETWORK_PREFIXES[prefix], key.removeprefix(prefix)


def check_kind(file: Path) -> None:
    """Raise InputError for a file of a kind that is not supported, as far as its header tells; no weights are read."""
    header = tensor_files.read_header(file)
    if header is not None:
        _refuse_unsupported(file, header, _peft_settings(file, header))


def _refuse_unsupported(file: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]]) -> None:
    for name in tensors:
        if kind := lora_kinds.unsupported_kind(name):
            raise InputError(f"{file} holds {kind.name} ({name}), which is not supported: {kind.reason}")
    if model := lora_kinds.other_model(tensors):
        raise InputError(
            f"{file} is a LoRA for another architecture, {model}: expected one for a U-Net of the SD 1.x, 2.x or SDXL "
            f"family. Its tensors are called {tensor_files.preview_names(tensors)}"
        )
    for of_network in settings.values():
        if wrong := lora_kinds.wrong_setting(of_network):
            raise InputError(
                f"the settings of {file} are damaged: {wrong} is {shown(of_network[wrong])}. Fetch it again"
            )
        if reason := lora_kinds.unsupported_settings(of_network):
            raise InputError(f"{file} is {reason}")


def _refuse_numberless(file: Path, tensors: Mapping[str, Tensor]) -> None:
    damaged = [name for name, each in tensors.items() if each.is_floating_point() and not each.float().isfinite().all()]
    if damaged:
        names = tensor_files.preview_names(damaged)
        raise InputError(
            f"{file} holds values that are no numbers, in {names}: its training diverged, or it is damaged"
        )


def _check_architecture(file: Path, networks: Mapping[str, nn.Module]) -> None:
    """Raise InputError if the file's header names another family of models."""
    unet, metadata = networks.get("unet"), tensor_files.read_metadata(file)
    if not isinstance(unet, UNet2DConditionModel):
        return
    is_xl = unet.config.addition_embed_type == "text_time"
    for name, value in metadata.items():
        if name.removeprefix("ss_") in FAMILIES and lora_kinds.OTHER_ARCHITECTURES.match(value):
            raise InputError(f"{file} is a LoRA for another architecture, {shown(value)}: expected SD 1.x, 2.x or SDXL")
        of_family = name.removeprefix("ss_") in FAMILIES and value.startswith(("sd", "stable-diffusion"))
        if of_family and ("xl" in value) != is_xl:
            ours = "of SDXL's" if is_xl else "of Stable Diffusion 1.x's or 2.x's"
            raise InputError(f"{file} is a LoRA for another architecture: for {value}, and this model is {ours}")


def _refuse_unknown(file: Path, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    if not names:
        return
    known_configurations.refuse_other_kind(file, tensors, "lora")
    preview = tensor_files.preview_names(names)
    if all(name.endswith((".weight", ".bias")) for name in names):
        raise InputError(
            f"{file} holds whole weights of {len(names)} layers ({preview}), as a checkpoint does, or peft's "
            "modules_to_save: a LoRA holds changes of weights. Load a checkpoint as the model"
        )
    raise InputError(
        f"{file} is of a kind that is not known: {preview} would change layers of this model. Expected a LoRA, LoCon, "
        "LoHa, LoKr, DoRA or differences of weights"
    )


def _layer_change(
    file: Path, path: str, layer: WeightedLayer, tensors: Roles, settings: Mapping[str, Any]
) -> LayerChange:
    """Return the change of a layer. Raises InputError if tensors of it are missing, or of another shape."""
    for role, each in tensors.items():
        if wrong := lora_kinds.damage(role, each):
            raise InputError(f"{file} is damaged, or quantised: {role} of {path} {wrong}")
    if settings.get("use_dora") is True and not {"dora_scale", "magnitude"} & tensors.keys():
        raise InputError(f"{file} is damaged: its settings say DoRA, and {path} has no magnitudes. Fetch it again")
    if several := lora_kinds.conflicts(tensors):
        raise InputError(f"{file} has several tensors for the same part of {path}: {', '.join(several)}")
    tensors = {role: each.float() for role, each in tensors.items()}
    scale = lora_kinds.scaling(tensors, settings, path)
    empty = {role: each if role == "alpha" else each.to("meta") for role, each in tensors.items()}
    weight = torch.empty(_shape(layer), device="meta")
    try:
        change = lora_kinds.weight_difference(empty, scale)
        bias = lora_kinds.bias_difference(empty, scale)
        if change is not None:
            lora_kinds.decompose(weight + _fit(change, weight), empty)
        elif bias is None or {"dora_scale", "magnitude"} & tensors.keys():
            raise KeyError("lora_down")
        if bias is not None:
            bias.reshape(len(weight))
        update = lora_kinds.low_rank_update(tensors, scale) if isinstance(layer, TargetLayer) else None
    except KeyError as error:
        raise InputError(
            f"{file} is damaged: of {path} it has {', '.join(tensors)}, and no {error.args[0]}: fetch it again"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{file} is a LoRA for another architecture: it changes {path} {_shapes(tensors)}, where this model has "
            f"{tuple(weight.shape)}"
        ) from error
    if update is not None:  # files mix up 1 x 1 convolutions and linear layers
        rank = len(update.down)
        update = LowRankUpdate(
            update.down.reshape(rank, *weight.shape[1:]), update.up.reshape(-1, rank, *[1] * (weight.ndim - 2)),
            update.alpha,
        )  # fmt: skip
    return LayerChange(tensors, scale, update, update is None or bias is not None)


def _shape(layer: WeightedLayer) -> tuple[int, ...]:
    """Return the shape of a layer's weight, which is stored in another one when it is quantised."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


def _fit(change: Tensor, weight: Tensor) -> Tensor:
    """Return a change in the shape of a weight with as many outputs."""
    if len(change) != len(weight):
        raise ValueError("another number of outputs")
    return change.reshape(weight.shape)


def _shapes(tensors: Roles) -> str:
    if tensors.keys() >= {"down", "up"}:
        return f"from {tuple(tensors['down'].shape)} to {tuple(tensors['up'].shape)}"
    return "by " + ", ".join(f"{role} {tuple(each.shape)}" for role, each in tensors.items() if role != "alpha")


def _error_of_no_layer(file: Path, tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> InputError:
    is_motion_lora = any(MOTION in name for name in tensors)
    advice = ". It is for a motion module: load the model with that motion module, `motion_module`"
    return InputError(
        f"{file} is no LoRA, or a LoRA for another architecture: none of its {len(tensors)} tensors belongs to "
        f"a layer of this model. {known_configurations.describe_tensors(tensors, 'lora')}"
        f"{advice if is_motion_lora and 'temporal' not in networks else ''}"
    )


def _refuse_other_image_network(file: Path, changed: Iterable[str], elsewhere: Sequence[str]) -> None:
    """Raise InputError for a LoRA of an image network of which nothing fits, beside a text encoder's that does."""
    names = [each for each in elsewhere if set(IMAGE) & set(_split_prefix(each)[0]) and _ending(each)]
    if names and not set(IMAGE) & set(changed):
        raise InputError(
            f"{file} is a LoRA for another architecture: none of its {len(names)} tensors for the image network "
            f"({tensor_files.preview_names(names)}) belongs to a layer of this model, only those for the text encoder"
        )


def _ending(key: str) -> re.Match[str] | None:
    return lora_kinds.ENDING.fullmatch(_split_prefix(key)[1])


def _warn_of_left_out(file: Path, names: Sequence[str], count: int) -> None:
    embeddings = [name for name in names if name.startswith(EMBEDDINGS)]
    others = [name for name in names if name not in embeddings]
    reasons = []
    if others:
        reasons.append(f"{len(others)} belong to no layer of this model ({tensor_files.preview_names(others)})")
    if embeddings:
        words = tensor_files.preview_names(dict.fromkeys(name.split(".")[1] for name in embeddings))
        reasons.append(f"{len(embeddings)} are textual inversions ({words}), which `textual_inversion` takes as files")
    if reasons:
        warnings.warn(
            f"{file}: {len(names)} of {count} tensors are left out: {', and '.join(reasons)}",
            InputWarning,
            stacklevel=6,
        )


def _warn_of_no_effect(file: Path, changes: Mapping[str, Mapping[str, LayerChange]]) -> None:
    every = [each for of_network in changes.values() for each in of_network.values()]
    if none := [each for each in every if each.scale(1) == 0]:
        warnings.warn(
            f"{file}: the alpha of {len(none)} of {len(every)} layers is 0, with which they change nothing",
            InputWarning,
            stacklevel=6,
        )


@torch.no_grad()
def _change_weights(
    network: nn.Module, layers: Mapping[str, WeightedLayer], changes: Mapping[str, LayerChange], name: str, scale: float
) -> None:
    """Change weights and biases of a network in place, but for updates by two matrices."""
    in_place = {path: change for path, change in changes.items() if change.in_place}
    for path, change in in_place.items():
        layer = layers[path]
        tensors = {role: each.to(layer.weight.device) for role, each in change.tensors.items()}
        if change.update is None and (difference := lora_kinds.weight_difference(tensors, change.scale)) is not None:
            weight = lora_layers.original_weight(layer).float()
            moved = lora_kinds.decompose(weight + scale * _fit(difference, weight), tensors)
            lora_layers.change_parameter(layer, "weight", moved - weight)
        if (difference := lora_kinds.bias_difference(tensors, change.scale)) is not None:
            lora_layers.change_parameter(layer, "bias", scale * difference.flatten())
    if in_place:
        lora_layers.note_changes(network, name)


def _peft_settings(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return peft's settings of the training, by network: from the file's header or adapter_config.json beside it."""
    beside, header = (
        file.with_name("adapter_config.json"),
        tensor_files.read_metadata(file).get("lora_adapter_metadata"),
    )
    try:
        if header is not None:
            return _settings_by_network(parse_json(header, str(file)))
        if beside.is_file() and any(name.startswith(WRAPPERS[0]) for name in tensors):
            settings = dict(read_json(beside))
            return dict.fromkeys((*IMAGE, *TEXT, *TEXT_2), settings)
    except (InputError, AttributeError) as error:
        where = beside if header is None else file
        raise InputError(f"the settings of {where} are damaged: fetch it again") from error
    return {}


def _settings_by_network(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {}
    for name, value in header.items():
        parts, rest = _split_prefix(name)
        for part in parts:
            settings.setdefault(part, {})[rest] = value
    return settings


def _new_name(file: Path, networks: Mapping[str, nn.Module]) -> str:
    """Return an adapter name that is not taken; torch allows no dots in it."""
    taken = {name for network in networks.values() for name in lora_layers.lora_names(network)}
    name = re.sub(r"\W", "_", file.stem)
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if each not in taken)
