"""Provenance of generated videos: the model, its weights' fingerprints, library versions and the machine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kineograph.models.model import Model


def source_name(source: Any) -> str:
    """Return the name of a path, a repository or a live pipeline."""
    if not isinstance(source, str | Path):
        config = getattr(source, "config", None) or {}
        return str(config.get("_name_or_path") or type(source).__name__)
    path = Path(source).expanduser()
    return path.name if path.exists() else str(source)


def json_value(value: Any) -> Any:
    """Return a value with only the types of JSON."""
    if isinstance(value, Mapping):
        return {word: json_value(each) for word, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


LIBRARIES = ("kineograph", "torch", "diffusers", "transformers", "peft", "numpy")


def collect_provenance(model: Model, controls: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return everything that frames depend on beside the request, as JSON values.

    Args:
        controls: kinds of the ControlNets that were used.
    """
    nets = {f"controlnet {kind}": fingerprint(model.control(kind)) for kind in controls}
    return {
        "model": {
            "name": model.name,
            "load": dict(model.settings),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": fingerprints(model) | nets,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": {"processor": _processor(model.device), "threads": torch.get_num_threads()},
    }


def provenance_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference between the provenance of two videos."""
    return [f"{name} was {old}, is {new}" for name, old, new in _compared(before, after) if old != new]


def fingerprints(model: Model) -> dict[str, str]:
    """Return the fingerprint of each network's weights, by the network's name in a diffusers folder.

    The weights are hashed as they are in memory, with adapters: the same file in another dtype has another hash.
    """
    encoders = {
        f"text_encoder{f'_{k}' if k > 1 else ''}": each.network for k, each in enumerate(model.text_encoders, 1)
    }
    decoder = {} if model.temporal_decoder is None else {"temporal_decoder": model.temporal_decoder}
    networks = {"unet": model.net, "vae": model.vae, **decoder, **encoders}
    return {name: fingerprint(each) for name, each in networks.items()}


def fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of a network's weights."""
    weights = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as threads:  # hashlib releases the GIL
        for name, digest in zip(weights, threads.map(_digest, weights.values()), strict=True):
            whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def _digest(value: Tensor) -> str:
    plain = value.detach().cpu().contiguous().flatten()
    return f"{value.dtype} {list(value.shape)} {hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()}"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name and both values of everything that is recorded."""
    for part in ("versions", "machine"):
        for name, value in after[part].items():
            yield name, before[part].get(name), value
    for path, value in after.get("read", {}).items():
        yield f"the hash of {path}", before.get("read", {}).get(path, "none")[:12], value[:12]
    for model, owner in (("model", ""), ("video_model", "the video model's ")):
        if model in before and model in after:
            for name in ("device", "dtype"):
                yield f"{owner}{name}", before[model][name], after[model][name]
            for name, value in after[model]["weights"].items():
                yield f"the hash of {owner}{name}", before[model]["weights"].get(name, "none")[:12], value[:12]
