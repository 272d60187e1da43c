"""Adapter files: Still-Moving's motion adapters and customised subjects or styles, one safetensors file each.

motion_adapter.<temporal layer>.lora_{A,B}.weight           a motion adapter, alone in its file
spatial_adapter.<image layer>.lora_{A,B}.weight             a spatial adapter, and with it
{unet,text_encoder}.<layer>.lora_{A,B}.weight               the LoRA of the customised image model, if it is one

The LoRA has diffusers' names, with scales multiplied in, so that `pipeline.load_lora_weights` opens the file too: it
requires "lora" in all names, and ignores those whose prefix is not one of its networks. The metadata's
`kineograph_adapter` is an `AdapterHeader`, as JSON. All tensors are float16.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from math import isclose
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from diffusers import UNet2DConditionModel
from pydantic import BaseModel, ConfigDict
from torch import nn

from kineograph import hub
from kineograph.errors import InputError, parse_json
from kineograph.hub import HubOptions
from kineograph.media.files import replace_atomically
from kineograph.models.formats import key_map, known_configurations, tensor_files
from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.layer_names import TargetLayer, target_layers
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.lora_layers import original_weight
from kineograph.models.network_folders import validated
from kineograph.models.temporal.adapters import AdapterConfig, MotionAdapter, SpatialAdapter
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

HEADER = "kineograph_adapter"
LORA_PREFIXES = ("unet.", "text_encoder.", "text_encoder_2.")
PREFIXES = {"motion": "motion_adapter", "customised": "spatial_adapter"}  # kind -> first part of tensor names
ARGUMENTS = {
    "motion": "a motion adapter: pass it as `motion_adapter`",
    "customised": "a customised subject or style: pass it as `adapter`",
}

Kind = Literal["motion", "customised"]
Adapter = TypeVar("Adapter", MotionAdapter, SpatialAdapter)

# Rounding to half precision changes a norm by a hundredth of this; further training changes at least one by more.
NORM_TOLERANCE = 1e-3
IMAGE_ADAPTER_MARKS = ("encoder_hid_proj.", "processor.")  # in the names of an IP-Adapter's layers


class WeightSignature(BaseModel):
    """Signature of a network's weights that does not depend on dtype or adapters.

    name    name of the model
    shapes  SHA-256 of the names and shapes of its linear and convolutional layers
    norms   norms of their weights in half precision, in the order of their names
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shapes: str
    norms: tuple[float, ...]

    def same_weights(self, other: WeightSignature) -> bool:
        """Return True if the networks have the same layers and weights, whatever the models are called."""
        same_layers = self.shapes == other.shapes and len(self.norms) == len(other.norms)
        return same_layers and all(
            isclose(norm, its, rel_tol=NORM_TOLERANCE) for norm, its in zip(self.norms, other.norms, strict=True)
        )


def weight_signature(network: nn.Module, name: str) -> WeightSignature:
    """Return the weight signature of an image network or of temporal layers.

    The channels that an editing network reads besides the latents' do not count: an adapter changes none of them.
    """
    paths = sorted(target_layers(network).items())
    layers = [(path, layer) for path, layer in paths if not any(mark in path for mark in IMAGE_ADAPTER_MARKS)]
    shapes = "\n".join(f"{path} {_shape(layer, _latent_channels(network, path))}" for path, layer in layers)
    weights = (original_weight(layer).detach() for _, layer in layers)
    norms = (float(f"{weight.half().float().norm().item():.5g}") for weight in weights)
    return WeightSignature(name=name, shapes=hashlib.sha256(shapes.encode()).hexdigest(), norms=tuple(norms))


def _latent_channels(network: nn.Module, path: str) -> int | None:
    """Return the channels of the latents for the first layer of an image network, None for other layers."""
    return network.config.out_channels if path == "conv_in" and isinstance(network, UNet2DConditionModel) else None


def _shape(layer: TargetLayer, in_channels: int | None) -> tuple[int, ...]:
    # from the layer's attributes: quantisation changes the shape of the stored weight
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, in_channels or layer.in_channels, *layer.kernel_size)
    return (layer.out_features, layer.in_features)


class AdapterHeader(BaseModel):
    """Metadata of an adapter file.

    branches  configuration of its motion or spatial adapter
    temporal  signature of the temporal layers that the adapter is for
    image     signature of the image network that was customised
    subject   the prompt's words for the customised subject or style
    library   version of Kineograph that wrote the file
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    branches: AdapterConfig
    temporal: WeightSignature
    image: WeightSignature | None = None
    subject: str | None = None
    library: str


class AdapterFile(NamedTuple):
    """Content of an adapter file: tensors of the motion or spatial adapter, and a LoRA by diffusers' names."""

    path: Path
    header: AdapterHeader
    tensors: Tensors
    lora: Tensors


def save_motion_adapter(adapter: MotionAdapter, temporal: TemporalLayers, file: Path, *, name: str) -> Path:
    """Write a motion adapter for these temporal layers, in place of an older file, and return the file's path.

    name: the model that has the temporal layers.
    """
    header = AdapterHeader(
        kind="motion", branches=adapter.config, temporal=weight_signature(temporal, name), library=version("kineograph")
    )
    return _write(file, header, adapter, {})


def save_customised_adapter(net: VideoUNet, lora: Tensors, file: Path, *, subject: str, image: str, video: str) -> Path:
    """Write a network's spatial adapter, and the LoRA that customised its image network; return the file's path.

    Args:
        lora: tensors by diffusers' names, scales multiplied in; empty if the whole image network was customised.
        subject: the prompt's words for the subject or style.
        image, video: names of the image model and of the model that has the temporal layers.

    Raises InputError if the network has no spatial adapter, or the LoRA other names.
    """
    if net.temporal is None or net.spatial_adapter is None:
        raise InputError("expected a video network with a spatial adapter, see methods.still_moving.attach")
    if unknown := [each for each in lora if not (each.startswith(LORA_PREFIXES) and ".lora_" in each)]:
        names = tensor_files.preview_names(unknown)
        raise InputError(f"expected names of a LoRA such as unet.<layer>.lora_A.weight, got {names}")
    header = AdapterHeader(
        kind="customised",
        branches=net.spatial_adapter.config,
        temporal=weight_signature(net.temporal, video),
        image=weight_signature(net.image_unet, image),
        subject=subject,
        library=version("kineograph"),
    )
    return _write(file, header, net.spatial_adapter, lora)


def _key_map(adapter: MotionAdapter | SpatialAdapter, kind: Kind) -> dict[str, Entry]:
    # the first part of an adapter's names is the attribute that holds its branches
    return {name: Entry(f"{PREFIXES[kind]}.{name.partition('.')[2]}") for name in adapter.state_dict()}


def _write(file: Path, header: AdapterHeader, adapter: MotionAdapter | SpatialAdapter, lora: Tensors) -> Path:
    tensors = key_map.export_tensors(adapter.state_dict(), _key_map(adapter, header.kind)) | dict(lora)
    halved = {name: each.half() for name, each in tensors.items()}
    with replace_atomically(file) as part:
        tensor_files.write_tensors(halved, part, {HEADER: header.model_dump_json(exclude_none=True)})
    return file


def read_adapter_file(source: str | Path, kind: Kind, hub_options: HubOptions) -> AdapterFile:
    """Read an adapter file, or the one in a folder or repository.

    Raises InputError if it is no adapter file, damaged, or of the other kind.
    """
    path = hub.find_file(source, [f"{PREFIXES[kind]}.safetensors", "adapter.safetensors"], hub_options)
    tensors, metadata = tensor_files.read_tensors(path), tensor_files.read_metadata(path).get(HEADER)
    if metadata is None:
        found = known_configurations.describe_tensors(tensors)
        raise InputError(f"{path} is no adapter that Kineograph wrote. {found}")
    header = validated(AdapterHeader, parse_json(metadata, f"the header of {path}"), str(path))
    if header.kind != kind:
        raise InputError(f"{path} holds {ARGUMENTS[header.kind]}")
    lora = {name: each for name, each in tensors.items() if name.startswith(LORA_PREFIXES)}
    return AdapterFile(path, header, {name: each for name, each in tensors.items() if name not in lora}, lora)


def build_motion_adapter(file: AdapterFile, temporal: TemporalLayers, name: str) -> MotionAdapter:
    """Return the motion adapter in a file, for these temporal layers. Raises InputError if it is for others."""
    return _build(MotionAdapter, file, temporal, name)


def build_spatial_adapter(file: AdapterFile, temporal: TemporalLayers, name: str) -> SpatialAdapter:
    """Return the spatial adapter in a file, for these temporal layers. Raises InputError if it is for others."""
    return _build(SpatialAdapter, file, temporal, name)


def _build(kind: type[Adapter], file: AdapterFile, temporal: TemporalLayers, name: str) -> Adapter:
    expected, found = file.header.temporal, weight_signature(temporal, name)
    if not found.same_weights(expected):
        difference = "with other weights" if found.shapes == expected.shapes else "of other shapes"
        advice = "; its LoRA, for the image network alone, can be loaded as `lora`" if file.lora else ""
        raise InputError(
            f"{file.path} was made for the temporal layers of {expected.name}, and {name} has layers {difference}: "
            f"take {expected.name}, or an adapter made for {name}{advice}"
        )

    adapter = kind(temporal, file.header.branches)
    what = f"{file.path} does not hold the adapter that its metadata describes"
    key_map.load_tensors(adapter, file.tensors, _key_map(adapter, file.header.kind), what)
    return adapter.requires_grad_(requires_grad=False).eval()
