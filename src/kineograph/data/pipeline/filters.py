"""What is measured of a clip before it is kept, each a number with a limit. Frames are uint8 [f h w 3]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from kineograph.data.pipeline.lettering import lettering
from kineograph.data.pipeline.opencv import opencv
from kineograph.data.pipeline.settings import Cuts, Filters
from kineograph.data.pipeline.steps import Dropped, Shot, Step, key_frames

Frames = UInt8[np.ndarray, "f h w 3"]

LOOKED_AT = 8  # frames of a clip
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SMALL = 64  # pixels of the longer side for movement: grain and compression average out, things do not
CHANGED = 10.0  # grey levels from which on a spot counts as changed


def brightness(frames: Frames) -> float:
    """The mean grey of a clip, 0 to 255."""
    return float((key_frames(frames, LOOKED_AT).mean((0, 1, 2)) @ LUMA).item())


def movement(frames: Frames) -> float:
    """The share of the picture, 0 to 1, whose grey is not the same all through the clip."""
    greys = np.stack([_small(frame) for frame in key_frames(frames, LOOKED_AT)])
    return float((np.ptp(greys, axis=0) > CHANGED).mean())


def sieve(cuts: Cuts, filters: Filters) -> list[tuple[str, Step]]:
    """The steps that drop clips: short, dark, still and text."""
    wanted = [
        ("short", cuts.shortest, _short),
        ("dark", filters.least_brightness, _dark),
        ("still", filters.least_movement, _still),
        ("text", filters.most_lettering, _text),
    ]
    return [(name, _sifter(name, limit, judge)) for name, limit, judge in wanted if limit is not None]


def _sifter(name: str, limit: float, judge: Callable[[Shot, float], str | None]) -> Step:
    def step(shot: Shot) -> Shot | Dropped:
        told = judge(shot, limit)
        return shot if told is None else Dropped(name, told)

    return step


def _short(shot: Shot, least: float) -> str | None:
    seconds = len(shot.frames) / shot.fps
    return f"lasts {seconds:.2f} s, less than {least:g}" if shot.kind == "filmed" and seconds < least - 1e-6 else None


def _dark(shot: Shot, least: float) -> str | None:
    grey = brightness(shot.frames)
    return f"its mean grey is {grey:.1f} of 255, less than {least:g}" if grey < least else None


def _still(shot: Shot, least: float) -> str | None:
    share = movement(shot.frames)
    if shot.kind == "frozen" or share >= least:
        return None
    return f"{100 * share:.2f} % of the picture changes, less than {100 * least:g}"


def _text(shot: Shot, most: float) -> str | None:
    share = lettering(shot.frames)
    return f"letters cover {100 * share:.1f} % of the picture, more than {100 * most:g}" if share > most else None


def _small(frame: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2"]:
    scale = min(1.0, SMALL / max(frame.shape[:2]))
    size = [max(1, round(side * scale)) for side in frame.shape[:2]]
    cv2 = opencv()
    return cv2.resize(np.float32(frame @ LUMA), size[::-1], interpolation=cv2.INTER_AREA)
