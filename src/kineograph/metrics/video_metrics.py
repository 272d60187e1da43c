"""What is measured of each video by itself, in the four aspects of EvalCrafter (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kineograph.metrics import optical_flow
from kineograph.metrics.collection import Clip
from kineograph.metrics.encoders import Tower
from kineograph.metrics.features import Frames, Measured

QUALITY, ALIGNMENT, MOTION, CONSISTENCY = "visual quality", "text alignment", "motion quality", "temporal consistency"
ASPECTS = (QUALITY, ALIGNMENT, MOTION, CONSISTENCY)


class Gauge(NamedTuple):
    """Some numbers of a video.

    numbers   the name of each -> its aspect
    protocol  what they depend on besides the video
    measure   a video -> those of the numbers that it has
    """

    numbers: Mapping[str, str]
    protocol: Mapping[str, Any]
    measure: Callable[[Clip], Measured]


def clip_gauge(tower: Tower) -> Gauge:
    """CLIP-T, the mean cosine of frames and prompt, and frame consistency, that of neighbouring frames; times 100."""

    def measure(clip: Clip) -> Measured:
        seen = tower.see(clip.frames)
        if wanted := [np.tile(tower.read(prompt), (len(frames), 1)) for frames, prompt in clip.told]:
            ((_, value),) = text_alignment((seen * np.concatenate(wanted)).sum(axis=1))
            yield "CLIP-T", value
        if len(seen) > 1:
            yield "frame consistency", 100 * steadiness(seen)

    return Gauge({"CLIP-T": ALIGNMENT, "frame consistency": CONSISTENCY}, tower.protocol(), measure)


def likeness_gauge(tower: Tower, pictures: Sequence[Frames], digest: str) -> Gauge:
    """CLIP-I: the mean cosine of frames with pictures of what they should show, a subject or a style; times 100.

    pictures: each a video of one frame. digest: stands for them in the protocol.
    """
    wanted = np.concatenate([tower.see(picture) for picture in pictures])

    def measure(clip: Clip) -> Measured:
        yield "CLIP-I", float(100 * (tower.see(clip.frames) @ wanted.T).mean())

    return Gauge({"CLIP-I": ALIGNMENT}, tower.protocol() | {"pictures": digest}, measure)


def flow_gauge() -> Gauge:
    """Motion magnitude, the share of pixels that can be followed, and warp error (`flows.moving`)."""
    numbers = {"motion": MOTION, "followed": CONSISTENCY, "warp error": CONSISTENCY}
    return Gauge(numbers, optical_flow.PROTOCOL, lambda clip: optical_flow.moving(clip.frames, clip.fps))


def steadiness(embedded: Float[np.ndarray, "f d"]) -> float:
    """Frame consistency: the mean cosine of neighbouring frames' embeddings (of unit length)."""
    return float((embedded[1:] * embedded[:-1]).sum(1).mean())
