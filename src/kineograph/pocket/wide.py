"""Shots of a wider distribution than `world.draw_shot`, for training.

Half of them are the usual ones. The others are tilted, smaller, larger, off the middle or cut by the border: guidance
and warped latents ask a network for such subjects, and one that never saw them doubles or dissolves them.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, pi

import numpy as np

from kineograph.pocket import world
from kineograph.pocket.world import Shot, Thing

FLAT = 0.4  # share of the plain style, which prompts without a style word mean
TILTED = 0.25  # share of subjects with a tilt, up to 45 degrees either way
TILT = pi / 4
RESIZED = 0.5  # share of subjects whose size is not the usual one
SIZES = (0.4, 1.3)  # times the usual size
PLACED = 0.3  # share of subjects off the middle
CUT = 0.1  # share of subjects cut by the border
LARGEST = 0.75  # half-size, in units of the frame, that a subject in a film may grow to
BACKDROPS = 8 * world.BACKDROPS

Rng = np.random.Generator


def draw_shot(rng: Rng, split: str = "train") -> Shot:
    """Return a random shot of the wider distribution; "train" never holds a held-out pair."""
    shot = world.draw_shot(rng, split=split)
    style = "flat" if rng.uniform() < FLAT else str(rng.choice([each for each in world.STYLES if each != "flat"]))
    alone = len(shot.things) == 1
    things = tuple(_widened(thing, rng, alone=alone) for thing in shot.things)
    return replace(shot, style=style, things=things, backdrop=int(rng.integers(BACKDROPS)))


def _widened(thing: Thing, rng: Rng, *, alone: bool) -> Thing:
    tilt = float(rng.uniform(-TILT, TILT)) if rng.uniform() < TILTED else 0.0
    low, high = SIZES if alone else (SIZES[0], 1.15)  # two large things would hide each other
    size = thing.size * exp(rng.uniform(log(low), log(high))) if rng.uniform() < RESIZED else thing.size
    x, y = thing.x, thing.y
    if rng.uniform() < PLACED:
        room = max(0.0, 0.5 - size)  # how far from the middle a subject is still whole
        x = 0.5 + rng.uniform(-room, room) if alone else x + rng.uniform(-0.08, 0.08)
        y = 0.5 + rng.uniform(-room, room)
    if alone and rng.uniform() < CUT:
        x, y = _at_the_border(x, y, size, rng)
    return replace(thing, x=float(x), y=float(y), size=float(size), tilt=tilt)


def _at_the_border(x: float, y: float, size: float, rng: Rng) -> tuple[float, float]:
    """Return a centre from which up to half of the subject is beyond one side of the image."""
    inside, side = size * rng.uniform(0.0, 0.5), int(rng.integers(4))
    return ((inside, y), (1 - inside, y), (x, inside), (x, 1 - inside))[side]


def draw_film_shot(rng: Rng, split: str = "train", *, reach: float = 1.4) -> Shot:
    """Return a shot for a film, in which the main subject is in the frame, and not larger than it, all the time.

    reach: the seconds before and after the middle that a film can show.
    """
    while True:
        shot = draw_shot(rng, split)
        main, *others = shot.things
        ends = [_seen(shot, time) for time in (-reach, 0.0, reach)]
        if (others and rng.uniform() < 0.5) or not all(ends):
            continue
        return replace(shot, things=(main, *(replace(other, motion="still") for other in others)))


def _seen(shot: Shot, time: float) -> bool:
    """Return whether the main subject's centre is in the frame and the subject not larger than it."""
    axes, centre = world.placement(shot.things[0], time, world.camera_shift(shot, time))
    return bool(min(centre) > 0 and max(centre) < 1 and np.hypot(*axes[0]) < LARGEST)


def is_cut(thing: Thing) -> bool:
    """Return whether the border cuts off much of the subject at time 0."""
    return bool(min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) < 0.55 * thing.size)
