"""A user's own video network, as a TorchScript file: the I3D of FVD, the C3D of the Inception Score, or any other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from kineograph.errors import InputError
from kineograph.metrics.features import FIRST, Extractor, Frames, Reading
from kineograph.models.conditioning.image_encoder import crop_to_size

Count = Annotated[int, Field(ge=1)]
SELF_SIZED = ("rescale", "resize", "return_features")  # arguments of StyleGAN-V's I3D, which does its own resizing


class ClipFormat(BaseModel):
    """What a network is given and gives; read from FILE.json beside FILE.

    frames         of a clip: the first of a video
    height, width  in pixels; None for as the video is
    fit            "cover": the middle of what covers the size; "squash": both sides, whatever the shape
    black, white   the values of those
    layout         the order of batch, colour, time, height and width
    gives          "features", or "classes": their logits, which serve as features too
    arguments      named ones of its `forward`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: Count = 16
    height: Count | None = 224
    width: Count | None = 224
    fit: Literal["cover", "squash"] = "cover"
    black: float = -1.0
    white: float = 1.0
    layout: Literal["bcthw", "btchw"] = "bcthw"
    gives: Literal["features", "classes"] = "features"
    arguments: dict[str, bool | int | float] = {}

    def describe(self) -> str:
        """How frames become what the network sees, in words."""
        size = (
            f"{'bicubic' if self.fit == 'cover' else 'bilinear'}, {self.fit}, to {self.height} x {self.width}"
            if self.height and self.width
            else "its own"
        )
        asked = "".join(f", {name}={value}" for name, value in sorted(self.arguments.items()))
        return f"{size}, {self.black:g} to {self.white:g}, {self.layout}, {self.gives}{asked}"


I3D = ClipFormat(height=None, width=None, black=0, white=255, arguments=dict.fromkeys(SELF_SIZED, True))


def open_torchscript(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The network in a TorchScript file, which runs as it is, like a program: open only what you trust.

    How clips are given to it is read from FILE.json, a `ClipFormat`; without one StyleGAN-V's I3D is known by its
    arguments, and another network gets 16 frames of 224 x 224 from -1 to 1.
    Raises InputError when either cannot be read.
    """
    path = Path(file).expanduser()
    network = _opened(path, device)
    told = _format(path, network)

    @torch.no_grad()
    def read(frames: Frames) -> Reading:
        clip = as_clip(frames, told).to(device)
        found = _one(path, told, lambda: network(clip, **told.arguments))
        return Reading(found, _softmax(found) if told.gives == "classes" else None)

    weights = hashlib.sha256(path.read_bytes()).hexdigest()
    return Extractor(path.stem, weights, told.describe(), told.frames, FIRST, told.frames, read)


def as_clip(frames: Frames, told: ClipFormat) -> Float[Tensor, "1 _ _ _ _"]:
    """Frames, uint8 [t h w 3], as a network wants them."""
    pictures = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
    if told.height and told.width:
        sized = crop_to_size if told.fit == "cover" else _squashed
        pictures = sized(pictures, told.height, told.width)
    values = told.black + (told.white - told.black) * pictures
    return (values.transpose(0, 1) if told.layout == "bcthw" else values)[None]


def _squashed(pictures: Tensor, height: int, width: int) -> Tensor:
    return interpolate(pictures, (height, width), mode="bilinear", antialias=True)


def _opened(path: Path, device: torch.device | str) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected a network saved by torch.jit.save")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} is no TorchScript file ({_first_line(error)}): save it by torch.jit.save") from error


def _format(path: Path, network: Any) -> ClipFormat:
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        known = {each.name for each in network.forward.schema.arguments}
        return I3D if known.issuperset(SELF_SIZED) else ClipFormat()
    try:
        return ClipFormat.model_validate_json(beside.read_text())
    except (OSError, ValidationError) as error:
        raise InputError(f"{beside} does not say how clips are given to {path.name}: {error}") from error


def _one(path: Path, told: ClipFormat, run: Callable[[], Any]) -> Float[np.ndarray, " d"]:
    """The row of numbers that a network gives for one clip."""
    try:
        found = run()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"{path.name} cannot read a clip of {told.frames} frames ({told.describe()}): {_first_line(error)}; say in "
            f"{path.name}.json what it takes"
        ) from error
    if not isinstance(found, Tensor) or found.shape[0] != 1 or found.numel() < 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{path.name} gives {shape} for a clip, expected a tensor with one row of numbers")
    return found.flatten().double().cpu().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
