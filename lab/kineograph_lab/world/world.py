"""The pocket world: procedural pictures and clips whose every pixel is known.

A `Shot` says everything that is in a picture; `render` paints it and `clip` lets it move. Time is in seconds, and
0 is the middle of a clip, where things stand where the shot says. The exact mask, depth, edges, keypoints and flow
are in `kineograph_lab.world.truth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import numpy as np

from kineograph_lab.world import painting
from kineograph_lab.world.individuals import individual
from kineograph_lab.world.motions import CAMERAS, FACINGS
from kineograph_lab.world.motions import MOTIONS as POSES
from kineograph_lab.world.painting import OVER, SIDE
from kineograph_lab.world.scenery import SCENERY, Layer
from kineograph_lab.world.shapes import Outline
from kineograph_lab.world.subjects import DRAWINGS

THINGS = tuple(DRAWINGS)
COLOURS = tuple(painting.COLOURS)
SCENES = tuple(SCENERY)
STYLES = tuple(painting.STYLES)
MOTIONS = tuple(POSES)
CAMERA_MOTIONS = tuple(CAMERAS)
BACKDROPS = 512  # different sceneries a scene, few enough to keep


@dataclass(frozen=True)
class Thing:
    """One thing: what it is, which individual, where (centre and half-size in units of the frame), how it moves.

    tilt: a clockwise turn in radians that the thing has at time 0.
    """

    kind: str
    colour: str
    individual: int
    x: float = 0.5
    y: float = 0.55
    size: float = 0.3
    facing: int = 1
    motion: str = "still"
    tilt: float = 0.0


@dataclass(frozen=True)
class Shot:
    """Everything in a picture: scene, style, one or two things (the first is the main one), the camera, the scenery's seed."""

    scene: str
    style: str
    things: tuple[Thing, ...]
    camera: str = "still"
    backdrop: int = 0


def held_out(kind: str, *, colour: str, scene: str) -> bool:
    """Whether training never shows this thing in this colour, or in this scene: one colour and one scene a thing."""
    k = THINGS.index(kind)
    return COLOURS.index(colour) == (3 * k + 1) % len(COLOURS) or SCENES.index(scene) == (5 * k + 2) % len(SCENES)


def draw_shot(rng: np.random.Generator, *, split: str = "train") -> Shot:
    """A random shot. "train" never holds a held-out pair; in "held_out" the main thing is one."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split is 'train' or 'held_out', not {split!r}")
    scene = str(rng.choice(SCENES))
    pairs = [(k, c) for k in THINGS for c in COLOURS if held_out(k, colour=c, scene=scene) == (split == "held_out")]
    usual = [(k, c) for k in THINGS for c in COLOURS if not held_out(k, colour=c, scene=scene)]
    count = 1 if rng.uniform() < 0.7 else 2
    first = _draw_thing(rng, pairs[rng.integers(len(pairs))], slot=0, count=count)
    rest = tuple(_draw_thing(rng, usual[rng.integers(len(usual))], slot=1, count=2) for _ in range(count - 1))
    camera = "still" if rng.uniform() < 0.7 else str(rng.choice(CAMERA_MOTIONS[1:]))
    return Shot(scene, str(rng.choice(STYLES)), (first, *rest), camera, int(rng.integers(BACKDROPS)))


def _draw_thing(rng: np.random.Generator, pair: tuple[str, str], *, slot: int, count: int) -> Thing:
    alone = count == 1
    size = rng.uniform(0.25, 0.37) if alone else rng.uniform(0.19, 0.25)
    x = rng.uniform(0.38, 0.62) if alone else rng.uniform(0.22, 0.3) + 0.48 * slot
    motion = str(rng.choice(MOTIONS))
    facing = FACINGS.get(motion, int(rng.choice((-1, 1))))
    return Thing(*pair, int(rng.integers(1 << 30)), x, rng.uniform(0.46, 0.62), size, facing, motion)


def placement(thing: Thing, time: float, camera: float) -> tuple[np.ndarray, tuple[float, float]]:
    """The thing's axes (rows: its x and y) and its centre, in units of the picture."""
    pose, details = POSES[thing.motion](time), individual(thing.individual)
    turn = pose.turn + thing.tilt
    c, s = thing.size * pose.zoom * cos(turn), thing.size * pose.zoom * sin(turn)
    long, tall = details.long * thing.facing, details.tall
    axes = np.array([[long * c, long * s], [-tall * s, tall * c]])
    return axes, (thing.x + pose.dx - camera, thing.y + pose.dy)


@lru_cache(maxsize=8 * BACKDROPS)
def scenery(scene: str, seed: int) -> list[Layer]:
    return SCENERY[scene](np.random.default_rng(seed))


def camera_shift(shot: Shot, time: float) -> float:
    """How far the camera has panned to the right, in units of the frame."""
    return CAMERAS[shot.camera] * time


def render(shot: Shot, time: float = 0.0) -> np.ndarray:
    """The shot at a time in seconds: uint8 [128, 128, 3]."""
    image, draw = painting.canvas()
    shift, scale = camera_shift(shot, time), SIDE * OVER
    back = painting.BACKDROPS[shot.style]
    for layer in scenery(shot.scene, shot.backdrop):
        colours = painting.resolve(layer.parts, painting.PAINTS)
        back(draw, [((p.outline - (shift, 0)) * scale, c) for p, c in zip(layer.parts, colours, strict=True)])
    covers = []
    for thing in shot.things:
        parts = DRAWINGS[thing.kind](individual(thing.individual))
        axes, centre = placement(thing, time, shift)
        outlines = [(part.outline @ axes + centre) * scale for part in parts]
        colours = painting.resolve(parts, painting.paints_of(thing.colour, thing.individual))
        painting.STYLES[shot.style](draw, list(zip(outlines, colours, strict=True)))
        covers.append(outlines)
    picture = painting.pixels(image)
    return _in_clay(picture, shot, covers, time) if shot.style == "clay" else picture


def _in_clay(picture: np.ndarray, shot: Shot, covers: list[list[Outline]], time: float) -> np.ndarray:
    lit = picture.astype(np.float32) * np.linspace(1.06, 0.9, SIDE, dtype=np.float32)[:, None, None]
    for thing, outlines in zip(shot.things, covers, strict=True):
        pose = POSES[thing.motion](time)
        x, y = thing.x + pose.dx - camera_shift(shot, time), thing.y + pose.dy
        lit = painting.model_in_clay(lit, painting.silhouette(outlines), x, y, thing.size * pose.zoom)
    return lit.clip(0, 255).astype(np.uint8)


def clip(shot: Shot, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """The shot in motion: uint8 [num_frames, 128, 128, 3]."""
    return np.stack([render(shot, time) for time in clip_times(num_frames, fps)])


def clip_times(num_frames: int, fps: float) -> list[float]:
    """When each frame of a clip is, in seconds around its middle."""
    return [(k - (num_frames - 1) / 2) / fps for k in range(num_frames)]


def shots(seed: int, *, split: str = "train") -> Iterator[Shot]:
    """Shots without end; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw_shot(rng, split=split)
