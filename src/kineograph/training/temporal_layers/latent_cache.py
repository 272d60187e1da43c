"""Training clips as VAE latents, encoded each time or cached in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kineograph.errors import InputError
from kineograph.media.files import replace_atomically
from kineograph.media.training_clips import Clip
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.models.loading.provenance import fingerprint, hash_tensors
from kineograph.models.model import Model

DIGEST = "sha256"  # key of the files' metadata: of the tensors
NO_METADATA: Mapping[str, str] = MappingProxyType({})


class ClipRequest(NamedTuple):
    """A clip to be cut and encoded.

    key: JSON values that identify it among all clips. caption: its caption. cut: reads its frames.
    """

    key: tuple[Any, ...]
    caption: str
    cut: Callable[[], Clip]


class EncodedClip(NamedTuple):
    """A training clip as latents. first: its first frame, for models with an image encoder."""

    latents: Float[Tensor, "f c h w"]
    fps: float
    caption: str
    first: UInt8[Tensor, "3 H W"] | None = None


EncodeClip = Callable[[ClipRequest], EncodedClip]


def latent_encoder(model: Model) -> EncodeClip:
    """Return the function that cuts and encodes a clip, without a cache."""

    def encode(request: ClipRequest) -> EncodedClip:
        found = _encode(model, request.cut())
        return EncodedClip(found["latents"], float(found["fps"]), request.caption, found.get("first"))

    return encode


def cached_latent_encoder(model: Model, folder: Path) -> EncodeClip:
    """Return the function that cuts and encodes a clip the first time, and reads it from the folder after that.

    The folder holds half precision and may be shared by trainings with the same VAE. The function raises InputError
    when it cannot be written.
    """
    vae = fingerprint(model.vae)

    def encode(request: ClipRequest) -> EncodedClip:
        name = hashlib.sha256(json.dumps([vae, *request.key]).encode()).hexdigest()
        path = folder / name[:2] / f"{name}.safetensors"
        found = _read(path)
        if not found or (model.image_encoder and "first" not in found):
            found = _encode(model, request.cut())
            found["latents"] = found["latents"].half()
            _write(path, found)
        return EncodedClip(found["latents"].float(), float(found["fps"]), request.caption, found.get("first"))

    return encode


def _encode(model: Model, clip: Clip) -> dict[str, Tensor]:
    """Return a clip as tensors. It is encoded alone, so that it does not depend on the rest of the batch."""
    frames = torch.from_numpy(clip.frames.copy()).permute(0, 3, 1, 2)
    latents = model.encode(frames[None].float() / 255)[0]
    tensors = {"latents": latents, "fps": torch.tensor(clip.fps, dtype=torch.float64)}
    return tensors | ({"first": frames[0].contiguous()} if model.image_encoder else {})


def _read(path: Path) -> dict[str, Tensor]:
    """Return a cached clip; nothing where there is none, or it is damaged."""
    try:
        found = read_whole(path)
        latents, fps, first = found["latents"], found["fps"], found.get("first")
    except (OSError, SafetensorError, KeyError):
        return {}
    valid = latents.ndim == 4 and latents.is_floating_point() and bool(latents.isfinite().all())
    valid = valid and fps.numel() == 1 and bool((fps > 0) & fps.isfinite())
    return found if valid and (first is None or (first.ndim == 3 and first.dtype == torch.uint8)) else {}


def read_whole(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by `write_whole`; nothing where there is none, or it is damaged."""
    try:
        with safe_open(path, "pt") as opened:
            digest = (opened.metadata() or {}).get(DIGEST)
            found = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    except (OSError, SafetensorError):
        return {}
    return found if digest in (None, hash_tensors(found)) else {}  # files of earlier versions have none


def write_whole(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = NO_METADATA) -> None:
    """Write tensors with their SHA-256, atomically. Raises OSError."""
    with replace_atomically(path) as part:
        write_tensors(tensors, part, {**metadata, DIGEST: hash_tensors(dict(sorted(tensors.items())))})


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        write_whole(path, tensors)
    except OSError as error:
        raise InputError(
            f"the latent_cache {path.parents[1]} cannot be written ({error}): make room, name another folder, or leave "
            "it out; the same command then continues from the last checkpoint"
        ) from error
