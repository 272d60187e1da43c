"""What a training would do and take, told before it begins: `kineograph train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import nn

from kineograph.data.clips import clip
from kineograph.data.dataset import Dataset
from kineograph.data.layouts import Item
from kineograph.data.seeking import BrokenFile
from kineograph.recipes.training.memory import activations
from kineograph.recipes.training.run import Leg, Ready
from kineograph.recipes.training.settings import Stage
from kineograph.recipes.training.sources import Opened
from kineograph.training import plan

TRIED = 20  # items of each source that are opened, to see whether they can be


class Part(NamedTuple):
    """Parameters of a part of the model."""

    name: str
    trained: int
    frozen: int


class Found(NamedTuple):
    """What a source has. items: None for no end of them.

    problems: what is missing or left out. refused: of the first `tried` items those that cannot be used, and why.
    """

    source: str
    kind: str
    layout: str
    items: int | None
    problems: list[str]
    tried: int
    refused: list[str]


class Planned(NamedTuple):
    """What a training would do and take, as JSON values but for the records."""

    parts: list[Part]
    stages: list[Mapping[str, object]]
    found: list[Found]
    processes: int

    def as_json(self) -> dict[str, object]:
        """The same as JSON values."""
        return {
            "parameters": {part.name: {"trained": part.trained, "frozen": part.frozen} for part in self.parts},
            "stages": self.stages,
            "data": [each._asdict() for each in self.found],
            "processes": self.processes,
        }
