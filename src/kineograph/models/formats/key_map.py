"""Key maps: the tensor of a released file that belongs to each tensor of a network, in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import Tensors, preview_names


class Entry(NamedTuple):
    """A tensor of a released file, or one of several equal parts of it along the first dimension.

    part           index of the part
    num_parts      number of parts
    trailing_ones  number of dimensions of size 1 that the file's tensor has after those of the network's tensor
    """

    name: str
    part: int = 0
    num_parts: int = 1
    trailing_ones: int = 0


KeyMap = Mapping[str, Entry]
"""name of each tensor of a network -> the file's tensor"""


def identity_key_map(names: Iterable[str]) -> dict[str, Entry]:
    """Return the key map of files that use the network's own names."""
    return {name: Entry(name) for name in names}


def select_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def load_tensors(network: nn.Module, tensors: Tensors, key_map: KeyMap, what: str) -> None:
    """Replace the tensors of a network, which may be on the meta device, by those of a file.

    what: the file and the kind of its content, for the error. Raises InputError if tensors are missing, left over or
    have another shape; it names them.
    """
    shapes = {name: each.shape for name, each in network.state_dict().items()}
    floating = {name: each.is_floating_point() for name, each in network.state_dict().items()}
    expected = {entry.name for entry in key_map.values()}
    found = {name: entry for name, entry in key_map.items() if entry.name in tensors}
    misshapen = [
        f"{entry.name} is {_shape(tensors[entry.name].shape)}, expected {_shape(_file_shape(shapes[name], entry))}"
        for name, entry in found.items()
        if _without_ones(tensors[entry.name].shape) != _without_ones(_file_shape(shapes[name], entry))
    ]
    wrong = {
        "missing": [name for name in sorted(expected) if name not in tensors],
        "not known": [name for name in tensors if name not in expected],
        "of another shape": list(dict.fromkeys(misshapen)),
        "of another type": [
            entry.name
            for name, entry in found.items()
            if floating[name] and not tensors[entry.name].is_floating_point()
        ],
    }
    if any(wrong.values()):
        problems = [f"{len(names)} are {how} ({preview_names(names)})" for how, names in wrong.items() if names]
        raise InputError(f"{what}: of its {len(tensors)} tensors, or of those expected, {'; '.join(problems)}")
    chosen = {}
    for name, entry in found.items():
        tensor = tensors[entry.name]
        part = tensor.chunk(entry.num_parts)[entry.part].clone() if entry.num_parts > 1 else tensor
        chosen[name] = part.reshape(shapes[name])
    network.load_state_dict(chosen, strict=False, assign=True)


def export_tensors(state: Tensors, key_map: KeyMap) -> dict[str, Tensor]:
    """Return a network's tensors as a released file holds them: the inverse of `load_tensors`."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, entry in key_map.items():
        tensor = state[name]
        tensor = tensor.reshape(*tensor.shape, *[1] * entry.trailing_ones)
        parts.setdefault(entry.name, []).append((entry.part, tensor))
    exported = {}
    for name, numbered in parts.items():
        ordered = [tensor for _, tensor in sorted(numbered, key=lambda pair: pair[0])]
        exported[name] = (ordered[0] if len(ordered) == 1 else torch.cat(ordered)).contiguous()
    return exported


def _file_shape(shape: torch.Size, entry: Entry) -> torch.Size:
    return torch.Size([entry.num_parts * shape[0], *shape[1:], *[1] * entry.trailing_ones])


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without its trailing ones: some files have linear layers as 1 x 1 convolutions, or inversely."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _shape(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a single number"
