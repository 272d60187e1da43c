"""Where the tensors of our networks are in released files, and the way there and back: none missing, none left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import Tensors, preview_names


class Entry(NamedTuple):
    """A tensor of a released file, or one of several equal parts of it, one under the other.

    ones: how many dimensions of size 1 the file's has behind ours.
    """

    name: str
    part: int = 0
    of: int = 1
    ones: int = 0


KeyMap = Mapping[str, Entry]
"""the name of each tensor of a network of ours -> its place"""


def identity_key_map(names: Iterable[str]) -> dict[str, Entry]:
    """The layout of files that call everything as we do."""
    return {name: Entry(name) for name in names}


def select_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def load_tensors(network: nn.Module, tensors: Tensors, layout: KeyMap, what: str) -> None:
    """Put a file's tensors in place of the network's own, which may be on the meta device.

    what: the file and what its tensors were taken for, for the error.
    Raises InputError that names what is missing, left over or of another shape.
    """
    shapes = {name: each.shape for name, each in network.state_dict().items()}
    state = _sorted_in(tensors, layout, shapes, what)
    network.load_state_dict(state, strict=False, assign=True)


def _sorted_in(tensors: Tensors, layout: KeyMap, shapes: Mapping[str, torch.Size], what: str) -> dict[str, Tensor]:
    wanted = {place.name for place in layout.values()}
    found = {name: place for name, place in layout.items() if place.name in tensors}
    misshapen = [
        f"{place.name} is {_written(tensors[place.name].shape)}, expected {_written(_whole(shapes[name], place))}"
        for name, place in found.items()
        if tensors[place.name].shape != _whole(shapes[name], place)
    ]
    wrong = {
        "missing": [name for name in sorted(wanted) if name not in tensors],
        "not known": [name for name in tensors if name not in wanted],
        "of another shape": list(dict.fromkeys(misshapen)),
    }
    if any(wrong.values()):
        said = [f"{len(names)} are {how} ({preview_names(names)})" for how, names in wrong.items() if names]
        raise InputError(f"{what}: of its {len(tensors)} tensors, or of those expected, {'; '.join(said)}")
    return {name: _part(tensors[place.name], place).reshape(shapes[name]) for name, place in found.items()}


def export_tensors(state: Tensors, layout: KeyMap) -> dict[str, Tensor]:
    """Tensors of ours as a released file has them: what `fill` does, backwards."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, place in layout.items():
        tensor = state[name]
        parts.setdefault(place.name, []).append((place.part, tensor.reshape(*tensor.shape, *[1] * place.ones)))
    return {name: _together([each for _, each in sorted(of, key=lambda one: one[0])]) for name, of in parts.items()}


def _together(parts: list[Tensor]) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()


def _part(tensor: Tensor, place: Entry) -> Tensor:
    return tensor.chunk(place.of)[place.part].clone() if place.of > 1 else tensor


def _whole(shape: torch.Size, place: Entry) -> torch.Size:
    return torch.Size([place.of * shape[0], *shape[1:], *[1] * place.ones])


def _written(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a single number"
