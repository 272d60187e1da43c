"""Studies of the second family of video models once more: the pocket world's space-time U-Net, in Lumiere's manner.

It is trained for them alone, and a motion adapter for it, by
`python -m kineograph.pocket.recipe --from-shipped --stages space_time,space_time_motion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

from kineograph.evaluation.study import Study, untrained
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models import adapter_files
from kineograph.models.checkpoints import load
from kineograph.models.hub import Hub
from kineograph.models.model import Model
from kineograph.models.unet import VideoUNet
from kineograph.pocket import space_time, vidrd

FOLDER, STAGES = Path("runs/pocket"), ("space_time", "space_time_motion")
NAME = "pocket-space-time"
CASES = 20  # at most, of a study: a subject and a style

Make = Callable[[Model, Witnesses, int, int | None], Study]


def of_space_time(make: Make, model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The study of that model in place of the one given. Raises Untrained where it is not."""
    return make(opened(), witnesses, min(count, CASES), steps)


@cache
def opened() -> Model:
    """The model, with its motion adapter. Raises Untrained where they were not trained on this machine."""
    layers, motion = files = [FOLDER / f"{stage}.safetensors" for stage in STAGES]
    for file in files:
        if not file.exists():
            raise untrained(file, *STAGES)
    video, begun = load("pocket-video"), load("pocket-video", dtype="float32").net
    net = vidrd.restored(begun, space_time.CONFIG, load_file(layers)).eval()
    assert net.temporal is not None
    adapter = adapter_files.motion_branches(adapter_files.read(motion, "motion", Hub()), net.temporal, NAME)
    whole = VideoUNet(net.image_unet, net.temporal, motion_adapter=adapter)
    return replace(video, name=NAME, net=whole.to(video.device, video.dtype))
