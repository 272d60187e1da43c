"""By what a network is known again, whatever number format it is in and whatever adapters are on it."""

from __future__ import annotations

import hashlib
from math import isclose

from pydantic import BaseModel, ConfigDict
from torch import nn

from kineograph.models.layer_names import Layer, layers

# Rounding to half precision moves a norm by a hundredth of this; training on moves one of them at least by more.
NEAR = 1e-3
OF_PICTURES = ("encoder_hid_proj.", "processor.")  # in the names of what an IP-Adapter puts on a network


class Likeness(BaseModel):
    """What a network is called, and how its layers look.

    shapes  SHA-256 over their names and shapes
    norms   of their weights in half precision, in which the smallest round most, in the order of their names
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shapes: str
    norms: tuple[float, ...]

    def has_shapes_of(self, other: Likeness) -> bool:
        return self.shapes == other.shapes

    def is_of(self, other: Likeness) -> bool:
        """Whether both are of one network, by whatever names."""
        return self.has_shapes_of(other) and all(
            isclose(norm, its, rel_tol=NEAR) for norm, its in zip(self.norms, other.norms, strict=True)
        )


def likeness(network: nn.Module, name: str) -> Likeness:
    """The likeness of an image network, or of layers along time."""
    found = {path: layer for path, layer in sorted(layers(network).items()) if not _is_of_pictures(path)}
    said = "\n".join(f"{path} {_shape(layer)}" for path, layer in found.items())
    norms = (float(f"{layer.weight.detach().half().float().norm().item():.5g}") for layer in found.values())
    return Likeness(name=name, shapes=hashlib.sha256(said.encode()).hexdigest(), norms=tuple(norms))


def _is_of_pictures(path: str) -> bool:
    return any(mark in path for mark in OF_PICTURES)


def _shape(layer: Layer) -> tuple[int, ...]:
    """As the layer says it, not as its weight is stored, which quantisation changes."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return (layer.out_features, layer.in_features)
