"""Studies of the second family of video models once more: the pocket world's space-time U-Net, in Lumiere's manner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from kineograph.evaluation.study import Study
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models.checkpoints import load
from kineograph.models.model import Model

NAME = "pocket-space-time"
CASES = 10  # at most, of a study: a subject's

Make = Callable[[Model, Witnesses, int, int | None], Study]


def of_space_time(make: Make, model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The study of that model in place of the one given, on its device and in its number format."""
    return make(_opened(model.device, model.dtype), witnesses, min(count, CASES), steps)


@cache
def _opened(device: torch.device, dtype: torch.dtype) -> Model:
    return load(NAME, device=device, dtype=dtype)
