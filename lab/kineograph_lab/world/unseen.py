"""Pictures and clips of what the pocket world does not have: an unseen thing, or usual things in an unseen style.

The shot says where everything is and how it moves, as in `world`; its main thing's kind gives way to the unseen one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kineograph_lab.world import painting, unseen_styles
from kineograph_lab.world.individuals import individual
from kineograph_lab.world.painting import OVER, SIDE
from kineograph_lab.world.shapes import Part
from kineograph_lab.world.subjects import DRAWINGS
from kineograph_lab.world.unseen_styles import Coloured
from kineograph_lab.world.unseen_subjects import THINGS
from kineograph_lab.world.world import Shot, camera_shift, clip_times, placement, scenery

Render = Callable[[Shot, float], np.ndarray]  # a shot at a time in seconds: uint8 [128, 128, 3]


def of_thing(name: str) -> Render:
    """How an unseen thing is rendered, as the main thing of a shot in one of the world's own styles."""
    return partial(_with_thing, name)


def in_style(name: str) -> Render:
    """How the world's own things are rendered in an unseen style."""
    return partial(_in_style, name)


def clip(render: Render, shot: Shot, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """The shot in motion: uint8 [num_frames, 128, 128, 3]."""
    return np.stack([render(shot, time) for time in clip_times(num_frames, fps)])


def _with_thing(name: str, shot: Shot, time: float = 0.0) -> np.ndarray:
    image, draw = painting.canvas()
    painting.BACKDROPS[shot.style](draw, list(_scenery(shot, time)))
    painting.STYLES[shot.style](draw, list(_placed(THINGS[name][1](), shot, time)))
    return painting.pixels(image)


def _in_style(name: str, shot: Shot, time: float = 0.0) -> np.ndarray:
    thing = shot.things[0]
    parts = DRAWINGS[thing.kind](individual(thing.individual))
    return unseen_styles.drawn(unseen_styles.STYLES[name], _scenery(shot, time), _placed(parts, shot, time))


def _scenery(shot: Shot, time: float) -> Coloured:
    parts = [part for layer in scenery(shot.scene, shot.backdrop) for part in layer.parts]
    aside = (camera_shift(shot, time), 0)
    colours = painting.resolve(parts, painting.PAINTS)
    return [((part.outline - aside) * SIDE * OVER, colour) for part, colour in zip(parts, colours, strict=True)]


def _placed(parts: list[Part], shot: Shot, time: float) -> Coloured:
    thing = shot.things[0]
    axes, centre = placement(thing, time, camera_shift(shot, time))
    colours = painting.resolve(parts, painting.paints_of(thing.colour, thing.individual))
    return [((part.outline @ axes + centre) * SIDE * OVER, colour) for part, colour in zip(parts, colours, strict=True)]
