"""A VidRD checkpoint: its video network, around which the rest is the model's that it was trained from."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from kineograph.errors import InputError, InputWarning
from kineograph.models import architecture, decoders, hub, parts, places, vidrd_layout
from kineograph.models.hub import Hub
from kineograph.models.parts import Parts
from kineograph.models.tensor_files import Tensors, some
from kineograph.models.text import TextEncoder

TEXT = "text_encoder."


def open_parts(
    path: Path, tensors: Tensors, config: str | Path | None, prediction_type: str | None, dtype: torch.dtype, ask: Hub
) -> Parts:
    """The parts of a checkpoint, with the VAE of the model that it was trained from, and the text encoder if need be.

    Where the file holds a temporal decoder, that is among them.
    config: that model, in diffusers layout.
    Raises InputError when it is not given, and when tensors of the file are missing, left over or of another shape.
    """
    if config is None:
        raise InputError(
            f"{path} is a VidRD checkpoint, which holds a video network without a VAE: pass config= the folder or "
            "repository of Stable Diffusion 2.1 base in diffusers layout, from which it was trained"
        )
    folder = hub.local(config) or hub.fetch_pipeline(str(config), ask)
    net = vidrd_layout.network(tensors, str(path), architecture.unsaid(folder))
    beside = parts.from_folder(folder, dtype)
    if left := [name for name in tensors if not name.startswith((vidrd_layout.UNET, TEXT, decoders.VAE))]:
        warnings.warn(
            f"{path}: {len(left)} tensors are of neither U-Net, VAE nor text encoder and are left out: {some(left)}",
            InputWarning,
            stacklevel=2,
        )
    decoders.fill_vae(beside.vae, tensors, str(path))
    if decoders.has_one(tensors):
        beside = beside._replace(decoder=decoders.released(tensors, str(path)))
    if own := places.below(TEXT, tensors):
        beside = beside._replace(text=(_with_own(beside.text[0], own, path),))
    return beside._replace(unet=net.image_unet, temporal=net.temporal)


def _with_own(encoder: TextEncoder, own: Tensors, path: Path) -> TextEncoder:
    plain = {name.removeprefix("text_model."): each for name, each in own.items() if not name.endswith("position_ids")}
    layout = {name: places.Place(name.removeprefix("text_model.")) for name in encoder.network.state_dict()}
    places.fill(encoder.network, plain, layout, f"the text encoder in {path} is not like the one in config")
    return encoder
