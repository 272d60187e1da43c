"""Kinds of LoRA files: the roles of their tensors, and the change of a layer that they stand for.

Sources: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), and LyCORIS (Yeh et al. 2024) for
LoCon, LoHa, LoKr and differences of whole weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

ADAPTER_NAME = r"(?:\.\w+)?"  # peft's, in state dicts of networks
# role of a tensor -> ending of its name: kohya's scripts, peft, diffusers before peft, LyCORIS
ROLES = {
    "down": rf"lora_down\.weight|lora_A{ADAPTER_NAME}\.weight|lora(?:_linear_layer)?\.down\.weight",
    "up": rf"lora_up\.weight|lora_B{ADAPTER_NAME}\.weight|lora(?:_linear_layer)?\.up\.weight",
    "mid": r"lora_mid\.weight",
    "up_bias": rf"lora_up\.bias|lora_B{ADAPTER_NAME}\.bias",
    "embedding_down": rf"lora_embedding_A{ADAPTER_NAME}",
    "embedding_up": rf"lora_embedding_B{ADAPTER_NAME}",
    "alpha": r"alpha",
    "dora_scale": r"dora_scale",
    "magnitude": rf"lora_magnitude_vector{ADAPTER_NAME}(?:\.weight)?",
    **{
        name: name + ADAPTER_NAME for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    **{
        f"lokr_{each}": f"lokr_{each}{ADAPTER_NAME}"
        for each in ("w1", "w1_a", "w1_b", "t1", "w2", "w2_a", "w2_b", "t2")
    },
    "diff": r"diff",
    "diff_b": r"diff_b",
    "w_norm": r"w_norm",
    "b_norm": r"b_norm",
}
ENDING = re.compile(rf"(?P<layer>.+?)[._](?:{'|'.join(f'(?P<{role}>{ending})' for role, ending in ROLES.items())})")


class UnsupportedKind(NamedTuple):
    """A kind of file that is refused. ending: of its tensors' names."""

    name: str
    ending: str
    reason: str


UNSUPPORTED = (
    UnsupportedKind(
        "OFT or BOFT", r"oft_blocks|oft_diag|oft_[rRs](\.\w+)?|boft_\w+(\.\w+)?",
        "rotations of the weights, which kohya, LyCORIS and peft define differently under the same names",
    ),
    UnsupportedKind(
        "GLoRA", r"[ab][12]\.weight|glora_\w+(\.\w+)*",
        "its formula has changed, and files do not say which one they are for",
    ),
    UnsupportedKind("(IA)^3", r"on_input|ia3_l(\.\w+)?", "IA3 scales activations, and changes no weights by a sum"),
    UnsupportedKind(
        "DyLoRA in training", r"(up|down)_list\.\d+", "its ranks are still apart: export it as a LoRA with its trainer"
    ),
    UnsupportedKind(
        "AdaLoRA", r"lora_E(\.\w+)?|ranknum(\.\w+)?",
        "singular values beside the matrices, of other ranks in each layer: merge it with peft",
    ),
    UnsupportedKind(
        "VeRA", r"vera_\w+(\.\w+)?", "the random matrices that it scales are not in the file: merge it with peft"
    ),
    UnsupportedKind(
        "weights of ComfyUI", r"set_weight|reshape_weight", "they replace weights, and are no change that has a scale"
    ),
    UnsupportedKind(
        "a sparse residual of LyCORIS", r"bias_(indices|values|size)",
        "a remainder of an extraction, which current LyCORIS no longer reads",
    ),
    UnsupportedKind(
        "a LoRA of cloneofsimo's scripts", r"(unet|text_encoder):\d+:(up|down)",
        "it numbers the layers instead of naming them: convert it with its scripts",
    ),
)  # fmt: skip
# in the names of LoRAs for other networks than U-Nets -> the models that they are for
OTHER_MODELS = {
    r"single_(transformer_)?blocks[._]|double_blocks[._]": "FLUX, or another transformer of its kind",
    r"joint_blocks[._]|attn[._]add_[qkv]_proj|^lora_te3_": "Stable Diffusion 3, or another transformer of its kind",
    r"^(lora_|base_model\.model\.|diffusion_model\.)?(transformer[._]|unet[._])?transformer_blocks[._]": (
        "PixArt, Stable Diffusion 3, or another transformer"
    ),
    r"blocks[._]\d+[._](self|cross)_attn[._]": "Wan, or another transformer of its kind",
    r"^lora_prior_|clip_txt_mapper": "Stable Cascade or Kandinsky",
}
# in the headers of LoRAs, the architectures that they are for
OTHER_ARCHITECTURES = re.compile(
    r"sd[-_.]?3|stable-diffusion-v?3|flux|kolors|pixart|hunyuan|stable-cascade|lumina|auraflow|wan|qwen|chroma", re.I
)
# peft's initialisations that change the network's own weights too
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MAX_REPEATS = 4  # in peft's patterns of names
PEFT_TYPES = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}

PRODUCT_ROLES = {"down", "up", "mid", "alpha", "up_bias", "diff_b", "b_norm"}  # of a product, and of a bias beside it

# role -> those that stand for the same part of a layer
ALTERNATIVES = {"magnitude": {"dora_scale"}} | {
    f"lokr_w{n}": {f"lokr_w{n}_a", f"lokr_w{n}_b", f"lokr_t{n}"} for n in (1, 2)
}

Tensors = Mapping[str, Tensor]  # of one layer, by role
Scaling = Callable[[int | None], float]  # rank of a product -> its factor, alpha / rank; None for whole matrices


class LowRankUpdate(NamedTuple):
    """A LoRA's update of one layer to `weight + alpha / rank * up @ down` (Hu et al. 2021, section 4.1)."""

    down: Tensor
    up: Tensor
    alpha: float


def unsupported_kind(name: str) -> UnsupportedKind | None:
    """Return the kind of file that a tensor's name is of, if it is one that is refused."""
    return next((kind for kind in UNSUPPORTED if re.search(rf"(?:^|[._])(?:{kind.ending})$", name)), None)


def other_model(names: Iterable[str]) -> str | None:
    """Return the models that a LoRA is for by the names of its tensors, if they have no U-Net of Stable Diffusion's."""
    found = (model for pattern, model in OTHER_MODELS.items() if any(re.search(pattern, name) for name in names))
    return next(found, None)


def conflicts(roles: Collection[str]) -> list[str]:
    """Return the roles of a layer's tensors that stand for the same part of it."""
    found = ([role, *sorted(others & {*roles})] for role, others in ALTERNATIVES.items() if role in roles)
    return next((each for each in found if len(each) > 1), [])


def damage(role: str, tensor: Tensor) -> str | None:
    """Return what is wrong with a tensor in itself, as far as its role tells; None for nothing."""
    if not tensor.is_floating_point() and (role != "alpha" or tensor.dtype in (torch.bool, torch.complex64)):
        return f"holds {str(tensor.dtype).removeprefix('torch.')} where floating-point numbers are expected"
    if role == "alpha" and tensor.numel() != 1:
        return f"holds {tensor.numel()} numbers where one is expected"
    return "is empty" if tensor.numel() == 0 else "is a single number" if role != "alpha" and tensor.ndim == 0 else None


def wrong_setting(settings: Mapping[str, Any]) -> str | None:
    """Return the name of one of peft's settings that is damaged; None if all are right."""
    patterns = {name: settings.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    damaged = [
        name for name, each in patterns.items()
        if not isinstance(each, Mapping) or not all(map(_is_pattern, each)) or not all(map(_is_number, each.values()))
    ]  # fmt: skip
    numbers = {name: settings[name] for name in ("r", "lora_alpha", "alpha") if settings.get(name) is not None}
    damaged += [name for name, each in numbers.items() if not _is_number(each) or (name == "r" and each <= 0)]
    return next(iter(damaged), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(text: str) -> bool:
    """Return True for a regular expression that is matched in little time."""
    try:
        re.compile(text)
    except re.error:
        return False
    return len(re.findall(r"[*+{]", text)) <= MAX_REPEATS and re.search(r"\)[*+{]", text) is None


def unsupported_settings(settings: Mapping[str, Any]) -> str | None:
    """Return the name of, and reason against, a kind of adapter by peft's settings; None if it is supported."""
    kind = str(settings.get("peft_type") or "LORA")
    if kind not in PEFT_TYPES:
        return f"an adapter of peft's kind {kind}, and of those LoRA, LoHa and LoKr are supported: merge it with peft"
    start = str(settings.get("init_lora_weights"))
    if start.startswith(CHANGED_BASE):
        return f"{start}, which changed the network's own weights too: save it as a plain LoRA with peft"
    others = [
        name
        for name in ("use_qalora", "alora_invocation_tokens", "arrow_config", "layer_replication")
        if settings.get(name)
    ]
    return f"a LoRA with `{others[0]}`: merge it with peft" if others else None


def scaling(tensors: Tensors, settings: Mapping[str, Any], path: str) -> Scaling:
    """Return the factor of a layer's products: by the file's alpha, or else by peft's settings, or else 1."""

    def scale(rank: int | None) -> float:
        if "alpha" in tensors:
            return 1.0 if rank is None else tensors["alpha"].item() / rank
        rank = rank or _setting(settings, "rank_pattern", path, settings.get("r"))
        alpha = _setting(settings, "alpha_pattern", path, settings.get("lora_alpha", settings.get("alpha")))
        if rank is None or alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    return scale


def _setting(settings: Mapping[str, Any], name: str, path: str, default: Any) -> Any:
    """Return the value of the first pattern, as peft writes them, that fits a layer, or else the default."""
    patterns: Mapping[str, Any] = settings.get(name) or {}
    return next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", path)), default)


def low_rank_update(tensors: Tensors, scale: Scaling) -> LowRankUpdate | None:
    """Return the update by two matrices; None if the tensors stand for another change of the weight.

    Raises KeyError, of a role, if a matrix is missing.
    """
    if not tensors.keys() & {"down", "up"} or tensors.keys() - PRODUCT_ROLES:
        return None
    down, up = _down(tensors), tensors["up"]
    return LowRankUpdate(down, up, scale(len(down)) * len(down))


def weight_difference(tensors: Tensors, scale: Scaling) -> Tensor | None:
    """Return the sum of all differences of a layer's weight, rows of outputs; None if there are none.

    Raises KeyError, of a role, if a tensor is missing, and RuntimeError if shapes do not fit one another.
    """
    given = tensors.keys()
    changes: list[Tensor] = []
    if given & {"down", "up", "mid"}:
        down, up = _down(tensors).flatten(1), tensors["up"].flatten(1)
        changes.append(scale(len(down)) * (up @ down))
    if given & {"embedding_down", "embedding_up"}:
        down, up = tensors["embedding_down"], tensors["embedding_up"]
        changes.append(scale(len(down)) * (up @ down).T)
    if any(role.startswith("hada") for role in given):
        first, second = (_factor(tensors, f"hada_w{n}", f"hada_t{n}").flatten(1) for n in (1, 2))
        changes.append(scale(len(tensors["hada_w1_b"])) * (first * second))
    if any(role.startswith("lokr") for role in given):
        changes.append(_kronecker(tensors, scale))
    changes += [tensors[role] for role in ("diff", "w_norm") if role in given]
    if not changes:
        return None
    total = changes[0]
    for change in changes[1:]:
        total = total + change.reshape(total.shape)
    return total


def bias_difference(tensors: Tensors, scale: Scaling) -> Tensor | None:
    """Return the sum of all differences of a layer's bias; None if there are none."""
    changes = [tensors[role] for role in ("diff_b", "b_norm") if role in tensors]
    if "up_bias" in tensors:
        changes.append(scale(len(tensors["down"])) * tensors["up_bias"])
    return sum(changes[1:], changes[0]) if changes else None


def decompose(weight: Tensor, tensors: Tensors) -> Tensor:
    """Return a changed weight with DoRA's magnitudes: m W / |W| (Liu et al. 2024, eq. 5); without them, the weight.

    The norm is over all but the outputs, or, if the magnitudes are those of the inputs, over all but these (LyCORIS's
    `dora_scale` without `wd_on_output`). As in peft, the weight is that with the LoRA at its scale.
    """
    magnitude = tensors.get("magnitude", tensors.get("dora_scale"))
    if magnitude is None:
        return weight
    by_output = "magnitude" in tensors or len(magnitude) == len(weight)
    axis = 0 if by_output else 1
    others = [each for each in range(weight.ndim) if each != axis]
    norm = torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return weight * (magnitude.reshape(norm.shape) / norm)


def _down(tensors: Tensors) -> Tensor:
    """Return a LoRA's first matrix or convolution, with the middle one of a Tucker decomposition multiplied in."""
    if "mid" not in tensors:
        return tensors["down"]
    return torch.einsum("ij...,jk->ik...", tensors["mid"], tensors["down"].flatten(1))


def _factor(tensors: Tensors, name: str, core: str) -> Tensor:
    """Return a matrix or convolution that is whole, a product of two, or a Tucker decomposition."""
    if name in tensors:
        return tensors[name]
    rows, columns = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return torch.einsum("ij...,ip,jq->pq...", tensors[core], rows, columns) if core in tensors else rows @ columns


def _kronecker(tensors: Tensors, scale: Scaling) -> Tensor:
    first, second = (_factor(tensors, f"lokr_w{n}", f"lokr_t{n}") for n in (1, 2))
    dimensions = max(first.ndim, second.ndim)
    first, second = (each.reshape(*each.shape, *[1] * (dimensions - each.ndim)) for each in (first, second))
    products = [tensors[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
    return scale(len(products[0]) if products else None) * torch.kron(first.contiguous(), second.contiguous())
