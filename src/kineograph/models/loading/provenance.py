"""What a model is called, and how the arguments that it was loaded with are written down."""

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
    """What people call a path, a repository or an open pipeline."""
    if not isinstance(source, str | Path):
        config = getattr(source, "config", None) or {}
        return str(config.get("_name_or_path") or type(source).__name__)
    path = Path(source).expanduser()
    return path.name if path.exists() else str(source)


def json_value(value: Any) -> Any:
    """A value as JSON would bring it back."""
    if isinstance(value, Mapping):
        return {word: json_value(each) for word, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


LIBRARIES = ("kineograph", "torch", "diffusers", "transformers", "peft", "numpy")


def collect_provenance(model: Model, controls: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """All that the frames depend on and that is not asked for, as JSON values; `controls` are those that were used."""
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
    """How one video's origin differs from another's, in words."""
    return [f"{name} was {was}, is {now}" for name, was, now in _pairs(before, after) if was != now]


def fingerprints(model: Model) -> dict[str, str]:
    """SHA-256 of each network's weights, by the network's name in a diffusers folder.

    They are hashed as they are in memory, adapters included: the same file in another dtype has another hash.
    """
    texts = {f"text_encoder{f'_{k}' if k > 1 else ''}": each.network for k, each in enumerate(model.text, 1)}
    decoder = {} if model.temporal_decoder is None else {"temporal_decoder": model.temporal_decoder}
    nets = {"unet": model.net, "vae": model.vae, **decoder, **texts}
    return {name: fingerprint(each) for name, each in nets.items()}


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a network's weights."""
    weights = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    whole = hashlib.sha256()
    with ThreadPoolExecutor() as threads:  # hashing lets go of Python's lock
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


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for part in ("versions", "machine"):
        for name, now in after[part].items():
            yield name, before[part].get(name), now
    for path, now in after.get("read", {}).items():
        yield f"the hash of {path}", before.get("read", {}).get(path, "none")[:12], now[:12]
    for model, whose in (("model", ""), ("video_model", "the video model's ")):
        if model in before and model in after:
            for name in ("device", "dtype"):
                yield f"{whose}{name}", before[model][name], after[model][name]
            for name, now in after[model]["weights"].items():
                yield f"the hash of {whose}{name}", before[model]["weights"].get(name, "none")[:12], now[:12]
