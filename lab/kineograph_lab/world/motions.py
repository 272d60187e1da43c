"""How things and the camera move: a placement as a function of time in seconds, neutral at time 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Pose(NamedTuple):
    """A shift in units of the frame, a clockwise turn in radians and a factor of size."""

    dx: float = 0.0
    dy: float = 0.0
    turn: float = 0.0
    zoom: float = 1.0


SPEED = 0.2  # frames a second: 3.2 pixels between frames at 8 fps, less than half a latent cell
TURNS = 2 * np.pi * 0.25  # radians a second

MOTIONS: dict[str, Callable[[float], Pose]] = {
    "still": lambda t: Pose(),
    "left": lambda t: Pose(dx=-SPEED * t),
    "right": lambda t: Pose(dx=SPEED * t),
    "up": lambda t: Pose(dy=-SPEED * t),
    "down": lambda t: Pose(dy=SPEED * t),
    "bouncing": lambda t: Pose(dy=0.06 - 0.16 * abs(np.sin(np.pi * 0.9 * t + 0.4))),
    "spinning": lambda t: Pose(turn=TURNS * t),
    "growing": lambda t: Pose(zoom=float(np.exp(0.4 * t))),
    "shrinking": lambda t: Pose(zoom=float(np.exp(-0.4 * t))),
    "swaying": lambda t: Pose(dx=0.08 * np.sin(np.pi * 1.1 * t), turn=0.2 * np.sin(np.pi * 1.1 * t)),
    "circling": lambda t: Pose(dx=0.12 * np.sin(np.pi * t), dy=0.12 * (1 - np.cos(np.pi * t))),
}
CAMERAS: dict[str, float] = {"still": 0.0, "pan left": -SPEED, "pan right": SPEED}
FACINGS = {"left": -1, "right": 1}
