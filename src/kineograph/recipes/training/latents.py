"""Clips as the latents that training sees, encoded when they come or kept in a folder from the first time on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.data.clips import Clip
from kineograph.data.files import instead_of
from kineograph.errors import InputError
from kineograph.models.model import Model
from kineograph.models.origin import fingerprint


class Wanted(NamedTuple):
    """A clip that may be cut: what tells it from all others, as JSON values, what it shows, and how to cut it."""

    key: tuple[Any, ...]
    caption: str
    cut: Callable[[], Clip]


class Sight(NamedTuple):
    """What training sees of a clip."""

    latents: Float[Tensor, "f c h w"]
    fps: float
    caption: str


See = Callable[[Wanted], Sight]


def encoded(model: Model) -> See:
    """Every clip is cut and encoded anew."""

    def see(wanted: Wanted) -> Sight:
        clip = wanted.cut()
        return Sight(_encoded(model, clip), clip.fps, wanted.caption)

    return see


def kept(model: Model, folder: Path) -> See:
    """Clips are cut and encoded the first time, and read from the folder, in half precision, from then on.

    Whoever trains with the same VAE may share the folder. Raises InputError when it cannot be written.
    """
    vae = fingerprint(model.vae)

    def see(wanted: Wanted) -> Sight:
        name = hashlib.sha256(json.dumps([vae, *wanted.key]).encode()).hexdigest()
        path = folder / name[:2] / f"{name}.safetensors"
        found = _read(path)
        if found is None:
            clip = wanted.cut()
            found = {"latents": _encoded(model, clip).half(), "fps": torch.tensor(clip.fps, dtype=torch.float64)}
            _write(path, found)
        return Sight(found["latents"].float(), float(found["fps"]), wanted.caption)

    return see


def _encoded(model: Model, clip: Clip) -> Float[Tensor, "f c h w"]:
    """Alone, so that it does not matter what else is in the batch."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None].float() / 255
    return model.encode(frames)[0]


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with instead_of(path) as part:
            save_file(tensors, part)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the latent_cache {path.parents[1]} cannot be written ({error}): make room, name another folder, or leave "
            "it out; the same command then goes on from the last checkpoint"
        ) from error
