"""The motion adapter's scales once more, of pocket-space-time, a video model in Lumiere's manner."""

from __future__ import annotations

from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.still_moving import motion_scales
from kineograph_lab.studies.study import Study

NAME = "pocket-space-time"
CASES = 20  # at most


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The study of that model in place of the one given, on its device and in its number format."""
    own = load(NAME, device=model.device, dtype=model.dtype)
    return motion_scales.studied(own, witnesses, min(count, CASES), steps)
