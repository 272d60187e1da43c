"""Studies of the second family of video models once more: the pocket world's space-time U-Net, in Lumiere's manner.

It is trained for them alone, by `python -m kineograph.pocket.recipe --stages space_time`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

from kineograph.evaluation.study import Study, Untrained
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models.checkpoints import load
from kineograph.models.model import Model
from kineograph.pocket import space_time, vidrd

FILE = Path("runs/pocket/space_time.safetensors")

Make = Callable[[Model, Witnesses, int, int | None], Study]


def of_space_time(make: Make, model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The study of that model in place of the one given. Raises Untrained where it is not."""
    return make(opened(), witnesses, count, steps)


@cache
def opened() -> Model:
    """The model. Raises Untrained where it was not trained on this machine."""
    if not FILE.exists():
        raise Untrained(f"there is no {FILE}: python -m kineograph.pocket.recipe --stages space_time")
    video, begun = load("pocket-video"), load("pocket-video", dtype="float32").net
    net = vidrd.restored(begun, space_time.CONFIG, load_file(FILE)).eval()
    return replace(video, name="pocket-space-time", net=net.to(video.device, video.dtype))
