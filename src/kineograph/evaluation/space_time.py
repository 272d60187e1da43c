"""Studies of the second family of video models once more: the pocket world's space-time U-Net, in Lumiere's manner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from kineograph.errors import InputError
from kineograph.evaluation.study import Study, Untrained
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models import pocket_models
from kineograph.models.checkpoints import load
from kineograph.models.model import Model

NAME = "pocket-space-time"

Make = Callable[[Model, Witnesses, int, int | None], Study]


def of_space_time(make: Make, model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The study of that model in place of the one given. Raises Untrained where it is not."""
    return make(opened(), witnesses, count, steps)


@cache
def opened() -> Model:
    """The model. Raises Untrained where this version or installation has none."""
    if NAME not in pocket_models.MODELS:
        raise Untrained(f"there is no {NAME}: this version has one family of video models")
    try:
        return load(NAME)
    except InputError as error:
        raise Untrained(str(error)) from error
