"""Extractors from TorchScript files: the I3D of FVD, the C3D of the Inception Score, or any other video network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate

from kineograph.errors import InputError, expand_user, in_one_line
from kineograph.media.files import file_sha256
from kineograph.metrics.features import FROM_START, Extractor, Frames, VideoFeatures
from kineograph.models.conditioning.image_encoder import crop_to_size

Count = Annotated[int, Field(ge=1)]
I3D_ARGUMENTS = ("rescale", "resize", "return_features")  # of StyleGAN-V's I3D, which resizes its input itself


class ClipFormat(BaseModel):
    """Input and output format of a network; read from FILE.json beside FILE.

    frames         number of frames, the first of a video
    height, width  in pixels; null for those of the video
    fit            "cover": resize and crop the centre; "squash": resize both sides, whatever the aspect ratio
    black, white   values of black and white pixels
    layout         order of batch, colour, time, height and width
    gives          "features", or "classes": class logits, which serve as features too
    arguments      keyword arguments of `forward`
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
        """Return the preprocessing in words, for the protocol."""
        size = (
            f"{'bicubic' if self.fit == 'cover' else 'bilinear'}, {self.fit}, to {self.height} x {self.width}"
            if self.height and self.width
            else "its own"
        )
        arguments = "".join(f", {name}={value}" for name, value in sorted(self.arguments.items()))
        return f"{size}, {self.black:g} to {self.white:g}, {self.layout}, {self.gives}{arguments}"


I3D = ClipFormat(height=None, width=None, black=0, white=255, arguments=dict.fromkeys(I3D_ARGUMENTS, True))


def load_torchscript(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """Load the network in a TorchScript file. Such a file runs its own code, like a program: open only what you trust.

    The input format is read from FILE.json, a `ClipFormat`. Without that file, StyleGAN-V's I3D is recognised by its
    arguments, and another network gets 16 frames of 224 x 224 with values from -1 to 1.

    Raises InputError when the file or FILE.json cannot be read.
    """
    path = expand_user(file)
    network = _load_network(path, device)
    clip_format = _read_format(path, network)

    @torch.no_grad()
    def forward(frames: Frames) -> VideoFeatures:
        clip = format_clip(frames, clip_format).to(device)
        output = _run_network(path, clip_format, lambda: network(clip, **clip_format.arguments))
        return VideoFeatures(output, _softmax(output) if clip_format.gives == "classes" else None)

    weights = file_sha256(path)
    count = clip_format.frames
    return Extractor(path.stem, weights, clip_format.describe(), count, FROM_START, count, forward)


def format_clip(frames: Frames, clip_format: ClipFormat) -> Float[Tensor, "1 _ _ _ _"]:
    """Convert frames, uint8 [t h w 3], to a network's input format."""
    images = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
    if clip_format.height and clip_format.width:
        size = clip_format.height, clip_format.width
        squash = clip_format.fit == "squash"
        images = interpolate(images, size, mode="bilinear", antialias=True) if squash else crop_to_size(images, *size)
    values = clip_format.black + (clip_format.white - clip_format.black) * images
    return (values.transpose(0, 1) if clip_format.layout == "bcthw" else values)[None]


def _load_network(path: Path, device: torch.device | str) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected a network saved by torch.jit.save")
    try:
        return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} is no TorchScript file ({_last_line(error)}): save it by torch.jit.save") from error


def _read_format(path: Path, network: Any) -> ClipFormat:
    file = path.with_name(f"{path.name}.json")
    if not file.is_file():
        arguments = {argument.name for argument in network.forward.schema.arguments}
        return I3D if arguments.issuperset(I3D_ARGUMENTS) else ClipFormat()
    try:
        return ClipFormat.model_validate_json(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} does not describe the input format of {path.name}: {in_one_line(error)}") from error


def _run_network(path: Path, clip_format: ClipFormat, run: Callable[[], Any]) -> Float[np.ndarray, " d"]:
    """Run a network on one clip and return its output as one row of numbers."""
    try:
        output = run()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"{path.name} cannot read a clip of {clip_format.frames} frames ({clip_format.describe()}): "
            f"{_last_line(error)}; set its input format in {path.name}.json"
        ) from error
    if not isinstance(output, Tensor) or output.shape[0] != 1 or output.numel() < 2:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"{path.name} gives {shape} for a clip, expected a tensor with one row of numbers")
    return output.flatten().cpu().double().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
