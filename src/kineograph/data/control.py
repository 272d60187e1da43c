"""Which videos ControlNets are shown, and how strongly they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kineograph.data import checks
from kineograph.errors import InputError


@dataclass(frozen=True)
class Control:
    """What one ControlNet is shown: a video, and how strongly and from where to where on the way down it counts.

    kind: the ControlNet's name in the model, such as "canny".
    video: the path of a video, of which the maps are made, or which is one of maps when `ready`.
    annotator: the folder or repository of a network that makes such maps, in place of the usual one.
    scale: what the residuals are multiplied by. start, end: parts of the way, 0 at pure noise, 1 at the clean video.
    """

    kind: str
    video: str
    ready: bool = False
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    annotator: str | None = None

    def __post_init__(self) -> None:
        checks.text("the kind of a control", self.kind)
        checks.text("the video of a control", self.video)
        if self.annotator is not None:
            checks.text("an annotator", self.annotator)
        checks.number("controlnet_conditioning_scale", self.scale)
        for name, value in (("control_guidance_start", self.start), ("control_guidance_end", self.end)):
            checks.number(name, value)
        if not 0 <= self.start < self.end <= 1:
            raise InputError(
                "control_guidance_start and control_guidance_end are parts of the way, from 0 to 1, the start before "
                f"the end; got {self.start:g} and {self.end:g}"
            )


READY = "-map"


def controls(
    videos: Mapping[str, str | Path],
    annotators: Mapping[str, str | Path] | None = None,
    *,
    scale: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
) -> tuple[Control, ...]:
    """Controls from {kind: video}; a kind that ends in "-map", as "depth-map", has a video of ready maps.

    Raises InputError for an annotator of a kind that no control needs one for.
    """
    chosen = {kind: str(model) for kind, model in (annotators or {}).items()}
    if idle := set(chosen) - set(videos):
        raise InputError(f"there is an annotator for {', '.join(sorted(idle))}, and no control video for it to look at")
    return tuple(
        Control(name.removesuffix(READY), str(video), name.endswith(READY), scale, start, end, chosen.get(name))
        for name, video in videos.items()
    )
