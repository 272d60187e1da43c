"""Adapter files: what was learnt beside a video model, in one small safetensors file that says what it is for.

motion_adapter.<layer along time>.lora_{A,B}.weight         a motion adapter, alone in its file
spatial_adapter.<image layer>.lora_{A,B}.weight             a spatial adapter, and with it
{unet,text_encoder}.<layer>.lora_{A,B}.weight               the LoRA of the customised image model, if it is one

The LoRA has diffusers' names, scales multiplied in, so that `pipeline.load_lora_weights` opens the file too: it asks
that all names have "lora" in them, and leaves those out that begin with no network of its own. The header's
`kineograph_adapter` is an `About`, as JSON. All is float16.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from math import isclose
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from kineograph import hub
from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.media.files import instead_of
from kineograph.models.formats import key_map, tensor_files
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.layer_names import TargetLayer, target_layers
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import known_configurations
from kineograph.models.temporal.adapters import AdapterConfig, MotionAdapter, SpatialAdapter
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

HEADER = "kineograph_adapter"
LORA_PREFIXES = ("unet.", "text_encoder.", "text_encoder_2.")
NAMES = {"motion": "motion_adapter", "customised": "spatial_adapter"}  # kind -> how the names of its branches begin
ARGUMENTS = {
    "motion": "a motion adapter: pass it as motion_adapter= (--motion-adapter)",
    "customised": "a customised subject or style: pass it as adapter= (--adapter)",
}

Kind = Literal["motion", "customised"]
Branches = TypeVar("Branches", MotionAdapter, SpatialAdapter)


# Rounding to half precision moves a norm by a hundredth of this; training on moves one of them at least by more.
NORM_TOLERANCE = 1e-3
IMAGE_ADAPTER_MARKS = ("encoder_hid_proj.", "processor.")  # in the names of what an IP-Adapter puts on a network


class WeightSignature(BaseModel):
    """What a network is called, and how its layers look.

    shapes  SHA-256 over their names and shapes
    norms   of their weights in half precision, in which the smallest round most, in the order of their names
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shapes: str
    norms: tuple[float, ...]

    def has_shapes_of(self, other: WeightSignature) -> bool:
        return self.shapes == other.shapes

    def is_of(self, other: WeightSignature) -> bool:
        """Whether both are of one network, by whatever names."""
        return self.has_shapes_of(other) and all(
            isclose(norm, its, rel_tol=NORM_TOLERANCE) for norm, its in zip(self.norms, other.norms, strict=True)
        )


def weight_signature(network: nn.Module, name: str) -> WeightSignature:
    """The likeness of an image network, or of layers along time."""
    found = {path: layer for path, layer in sorted(target_layers(network).items()) if not _is_of_pictures(path)}
    said = "\n".join(f"{path} {_shape(layer)}" for path, layer in found.items())
    norms = (float(f"{layer.weight.detach().half().float().norm().item():.5g}") for layer in found.values())
    return WeightSignature(name=name, shapes=hashlib.sha256(said.encode()).hexdigest(), norms=tuple(norms))


def _is_of_pictures(path: str) -> bool:
    return any(mark in path for mark in IMAGE_ADAPTER_MARKS)


def _shape(layer: TargetLayer) -> tuple[int, ...]:
    """As the layer says it, not as its weight is stored, which quantisation changes."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return (layer.out_features, layer.in_features)


class AdapterHeader(BaseModel):
    """What a file says about itself.

    branches  of its motion or spatial adapter
    temporal  the layers along time that those are for
    image     the image network that was customised
    subject   the words that ask for what it was customised to
    library   the version of Kineograph that wrote it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    branches: AdapterConfig
    temporal: WeightSignature
    image: WeightSignature | None = None
    subject: str | None = None
    library: str


class AdapterFile(NamedTuple):
    """The content of a file: branches by their names in it, and a LoRA by diffusers' names."""

    file: Path
    about: AdapterHeader
    branches: Tensors
    lora: Tensors


def save_motion_adapter(adapter: MotionAdapter, temporal: TemporalLayers, file: Path, *, name: str) -> Path:
    """Write a motion adapter for these layers along time, those of the model of this name. The path of the file.

    It is written beside and renamed, in place of what was there.
    """
    about = AdapterHeader(
        kind="motion", branches=adapter.config, temporal=weight_signature(temporal, name), library=version("kineograph")
    )
    return _written(file, about, _named(adapter, about.kind))


def save_customised_adapter(net: VideoUNet, lora: Tensors, file: Path, *, subject: str, image: str, video: str) -> Path:
    """Write a network's spatial adapter, and the LoRA that customised its image network. The path of the file.

    lora: by diffusers' names, scales multiplied in; empty for an image network that was customised as a whole.
    subject: the words that ask for it. image, video: what the image model and the layers along time are called.
    Raises InputError for a network without a spatial adapter, and for a LoRA with other names.
    """
    if net.temporal is None or net.spatial_adapter is None:
        raise InputError("expected a video network with a spatial adapter, see methods.still_moving.attach")
    if strange := [each for each in lora if not (each.startswith(LORA_PREFIXES) and ".lora_" in each)]:
        raise InputError(
            f"a LoRA's names are such as unet.<layer>.lora_A.weight, not {tensor_files.preview_names(strange)}"
        )
    about = AdapterHeader(
        kind="customised",
        branches=net.spatial_adapter.config,
        temporal=weight_signature(net.temporal, video),
        image=weight_signature(net.image_unet, image),
        subject=subject,
        library=version("kineograph"),
    )
    return _written(file, about, _named(net.spatial_adapter, about.kind) | dict(lora))


def _named(adapter: MotionAdapter | SpatialAdapter, kind: Kind) -> dict[str, Tensor]:
    return key_map.export_tensors(adapter.state_dict(), _layout(adapter, kind))


def _layout(adapter: MotionAdapter | SpatialAdapter, kind: Kind) -> dict[str, Entry]:
    """The branches' names here -> in a file: of the layers that they stand beside."""
    return {name: Entry(f"{NAMES[kind]}.{name.partition('.')[2]}") for name in adapter.state_dict()}


def _written(file: Path, about: AdapterHeader, tensors: Tensors) -> Path:
    halved = {name: each.detach().half().cpu().contiguous() for name, each in tensors.items()}
    with instead_of(file) as part:
        save_file(halved, part, metadata={"format": "pt", HEADER: about.model_dump_json(exclude_none=True)})
    return file


def read_adapter_file(source: str | Path, kind: Kind, hub_options: HubOptions) -> AdapterFile:
    """An adapter's file, or the one in a folder or repository.

    Raises InputError when it is none, damaged, or an adapter of the other kind.
    """
    file = hub.find_file(source, [f"{NAMES[kind]}.safetensors", "adapter.safetensors"], hub_options)
    tensors, header = tensor_files.read_tensors(file), tensor_files.read_metadata(file).get(HEADER)
    if header is None:
        raise InputError(
            f"{file} is no adapter that Kineograph wrote. {known_configurations.describe_tensors(tensors)}"
        )
    try:
        about = AdapterHeader.model_validate_json(header)
    except ValidationError as error:
        raise InputError(f"{file} is damaged, or from a newer Kineograph: {error}") from error
    if about.kind != kind:
        raise InputError(f"{file} holds {ARGUMENTS[about.kind]}")
    lora = {name: each for name, each in tensors.items() if name.startswith(LORA_PREFIXES)}
    return AdapterFile(file, about, {name: each for name, each in tensors.items() if name not in lora}, lora)


def build_motion_adapter(adapter: AdapterFile, temporal: TemporalLayers, name: str) -> MotionAdapter:
    """The motion adapter of a file, for these layers along time. Raises InputError when it is for others."""
    return _filled(MotionAdapter(_known(adapter, temporal, name), adapter.about.branches), adapter)


def build_spatial_adapter(adapter: AdapterFile, temporal: TemporalLayers, name: str) -> SpatialAdapter:
    """The spatial adapter of a file, for these layers along time. Raises InputError when it is for others."""
    return _filled(SpatialAdapter(_known(adapter, temporal, name), adapter.about.branches), adapter)


def _known(adapter: AdapterFile, temporal: TemporalLayers, name: str) -> TemporalLayers:
    made_for, here = adapter.about.temporal, weight_signature(temporal, name)
    if not here.is_of(made_for):
        how = "with other weights" if here.has_shapes_of(made_for) else "of other shapes"
        rest = "; what it knows of pictures alone can be loaded as lora=" if adapter.lora else ""
        raise InputError(
            f"{adapter.file} was made for the layers along time of {made_for.name}, and {name} has layers {how}: take "
            f"{made_for.name}, or an adapter made for {name}{rest}"
        )
    return temporal


def _filled(branches: Branches, adapter: AdapterFile) -> Branches:
    what = f"{adapter.file} does not hold the adapter that its header tells of"
    key_map.load_tensors(branches, adapter.branches, _layout(branches, adapter.about.kind), what)
    return branches.requires_grad_(requires_grad=False).eval()
