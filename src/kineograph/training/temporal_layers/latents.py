"""Clips as the latents that training sees, encoded when they come or kept in a folder from the first time on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kineograph.errors import InputError
from kineograph.media.files import instead_of
from kineograph.media.training_clips import Clip
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model


class ClipRequest(NamedTuple):
    """A clip that may be cut: what tells it from all others, as JSON values, what it shows, and how to cut it."""

    key: tuple[Any, ...]
    caption: str
    cut: Callable[[], Clip]


class EncodedClip(NamedTuple):
    """What training sees of a clip. first: its first frame, for models that are shown pictures."""

    latents: Float[Tensor, "f c h w"]
    fps: float
    caption: str
    first: UInt8[Tensor, "3 H W"] | None = None


EncodeClip = Callable[[ClipRequest], EncodedClip]


def latent_encoder(model: Model) -> EncodeClip:
    """Every clip is cut and encoded anew."""

    def see(wanted: ClipRequest) -> EncodedClip:
        found = _developed(model, wanted.cut())
        return EncodedClip(found["latents"], float(found["fps"]), wanted.caption, found.get("first"))

    return see


def cached_latent_encoder(model: Model, folder: Path) -> EncodeClip:
    """Clips are cut and encoded the first time, and read from the folder, in half precision, from then on.

    Whoever trains with the same VAE may share the folder. Raises InputError when it cannot be written.
    """
    vae = fingerprint(model.vae)

    def see(wanted: ClipRequest) -> EncodedClip:
        name = hashlib.sha256(json.dumps([vae, *wanted.key]).encode()).hexdigest()
        path = folder / name[:2] / f"{name}.safetensors"
        found = _read(path)
        if not found or (model.reader and "first" not in found):
            found = _developed(model, wanted.cut())
            found["latents"] = found["latents"].half()
            _write(path, found)
        return EncodedClip(found["latents"].float(), float(found["fps"]), wanted.caption, found.get("first"))

    return see


def _developed(model: Model, clip: Clip) -> dict[str, Tensor]:
    """A clip as tensors. It is encoded alone, so that it does not matter what else is in the batch."""
    frames = torch.from_numpy(clip.frames.copy()).permute(0, 3, 1, 2)
    made = {"latents": model.encode(frames[None].float() / 255)[0], "fps": torch.tensor(clip.fps, dtype=torch.float64)}
    return made | ({"first": frames[0].contiguous()} if model.reader else {})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return {}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with instead_of(path) as part:
            save_file(tensors, part)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the latent_cache {path.parents[1]} cannot be written ({error}): make room, name another folder, or leave "
            "it out; the same command then goes on from the last checkpoint"
        ) from error
