"""Provenance of generated videos: the model, its weights' fingerprints, library versions and the machine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from kineograph.errors import expand_user
from kineograph.models.hooks import has_weights
from kineograph.models.model import Model

LIBRARIES = ("kineograph", "torch", "diffusers", "transformers", "peft", "numpy")

_hashed: WeakKeyDictionary[nn.Module, tuple[list[Any], str]] = WeakKeyDictionary()  # network -> state, fingerprint


def source_name(source: Any) -> str:
    """Return the name of a path, a repository or a live pipeline."""
    if not isinstance(source, str | Path):
        config = getattr(source, "config", None) or {}
        return str(config.get("_name_or_path") or type(source).__name__)
    path = expand_user(source)
    return path.name if path.exists() else str(source)


def json_value(value: Any) -> Any:
    """Return a value with only the types of JSON."""
    if isinstance(value, Mapping):
        return {word: json_value(each) for word, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def collect_provenance(model: Model, controls: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return everything that frames depend on beside the request, as JSON values.

    controls: kinds of the ControlNets that were used.
    """
    cuda = model.device.type == "cuda"
    processor = torch.cuda.get_device_name(model.device) if cuda else platform.processor() or platform.machine()
    networks = {f"controlnet {kind}": model.control(kind) for kind in controls}
    nets = {name: fingerprint(each) for name, each in networks.items() if has_weights(each)}
    return {
        "model": {
            "name": model.name,
            "load": dict(model.settings),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": fingerprints(model) | nets,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"processor": processor, "threads": torch.get_num_threads()},
    }


def provenance_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a clause, "torch was 2.4, is 2.5", for each difference between the provenance of two videos."""
    compared = [
        (name, before[part].get(name), new) for part in ("versions", "machine") for name, new in after[part].items()
    ]
    for path, new in after.get("read", {}).items():
        compared.append((f"the hash of {path}", before.get("read", {}).get(path, "none")[:12], new[:12]))
    compared.append(("the number of videos in its batch", before.get("batch", 1), after.get("batch", 1)))
    for model, owner in (("model", ""), ("video_model", "the video model's ")):
        if model in before and model in after:
            old = before[model]
            compared += [(owner + name, old[name], after[model][name]) for name in ("device", "dtype")]
            for name, new in after[model]["weights"].items():
                compared.append((f"the hash of {owner}{name}", old["weights"].get(name, "none")[:12], new[:12]))
    return [f"{name} was {old}, is {new}" for name, old, new in compared if old != new]


def fingerprints(model: Model) -> dict[str, str]:
    """Return the fingerprint of each network's weights, by the network's name in a diffusers folder.

    The weights are hashed as they are in memory, with adapters: the same file in another dtype has another hash. Those
    of a network that a live pipeline offloads to elsewhere are left out.
    """
    encoders = {
        f"text_encoder{f'_{k}' if k > 1 else ''}": each.network for k, each in enumerate(model.text_encoders, 1)
    }
    decoder = {} if model.temporal_decoder is None else {"temporal_decoder": model.temporal_decoder}
    networks = {"unet": model.net, "vae": model.vae, **decoder, **encoders}
    return {name: fingerprint(each) for name, each in networks.items() if has_weights(each)}


def fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of a network's weights.

    It is computed again only after a change: torch counts those in place, and a few values of every weight are compared
    for those that it does not count, peft's merges and fused optimisers' steps. Not seen is an edit of single values
    through `weight.data`; call `torch.autograd.graph.increment_version(weight)` after it. Inference tensors, which have
    no count, are hashed every time.
    """
    weights = {name: each for name, each in network.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}
    if any(each.is_inference() for each in weights.values()):
        return hash_tensors(weights)
    state = [(name, *_state(each)) for name, each in weights.items()]
    before, digest = _hashed.get(network, (None, ""))
    if state != before:
        digest = hash_tensors(weights)
        _hashed[network] = state, digest
    return digest


def _state(weight: Tensor) -> tuple[Any, ...]:
    """Return what changes with a weight: identity, memory, count of changes, two or three values a dimension."""
    sample = weight.detach()[tuple(slice(None, None, max(1, size // 2)) for size in weight.shape)]
    # a weak reference, because freed memory may be allocated again at the same address
    memory = StorageWeakRef(weight.untyped_storage()), weight.data_ptr(), weight.device
    return id(weight), memory, weight.dtype, weight.shape, weight._version, sample.tolist()


def hash_tensors(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of tensors, in their order."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as threads:  # hashlib releases the GIL
        for name, digest in zip(weights, threads.map(_digest, weights.values()), strict=True):
            whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def _digest(value: Tensor) -> str:
    plain = value.detach().cpu().contiguous().flatten()
    return f"{value.dtype} {list(value.shape)} {hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()}"
