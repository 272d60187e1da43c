"""What is known of every pixel of a rendering: mask, depth, edges, keypoints and flow, exact."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kineograph.pocket.individuals import individual
from kineograph.pocket.painting import SIDE
from kineograph.pocket.shapes import Outline
from kineograph.pocket.things import DRAWINGS
from kineograph.pocket.world import Shot, Thing, camera_shift, placement, scenery

FOREGROUND = 0.3  # depth of the main thing
KEYPOINTS = ("front", "back", "top", "bottom", "centre")


class Truth(NamedTuple):
    """The truth of one frame of 128 x 128 pixels.

    mask: uint8 [h, w]: 0 for scenery, k for the k-th thing (from 1).
    depth: float32 [h, w]: 0 at the camera, 1 at the horizon.
    edges: bool [h, w]: pixels where another part begins to the right or below.
    keypoints: one dict a thing: name -> (x, y) in pixels; "front" is where the thing faces.
    flow: float32 [h, w, 2]: where each pixel's point goes until the next frame, (x, y) in pixels.
    """

    mask: np.ndarray
    depth: np.ndarray
    edges: np.ndarray
    keypoints: tuple[dict[str, tuple[float, float]], ...]
    flow: np.ndarray


def truth(shot: Shot, time: float = 0.0, *, fps: float = 8.0) -> Truth:
    """The truth of `render(shot, time)`; the flow is to the frame 1 / fps seconds later."""
    shift = camera_shift(shot, time)
    painted = _backdrop(shot, shift) + _things(shot, time, shift)
    mask = _paint("L", [(p.outline, p.thing) for p in painted]).astype(np.uint8)
    depth = _paint("F", [(p.outline, p.depth) for p in painted])
    numbers = _paint("I", [(p.outline, number) for number, p in enumerate(painted)])
    marks = tuple(keypoints(thing, time, shift) for thing in shot.things)
    return Truth(mask, depth, _edges(numbers), marks, _flow(shot, mask, time, time + 1 / fps))


class _Painted(NamedTuple):
    outline: Outline
    thing: int
    depth: float


def _backdrop(shot: Shot, shift: float) -> list[_Painted]:
    layers = scenery(shot.scene, shot.backdrop)
    return [_Painted(part.outline - (shift, 0), 0, layer.depth) for layer in layers for part in layer.parts]


def _things(shot: Shot, time: float, shift: float) -> list[_Painted]:
    """A later thing is painted over an earlier one, so it is the nearer."""
    shapes = [(k, outline) for k, thing in enumerate(shot.things) for outline in outlines(thing, time, shift)]
    return [_Painted(outline, k + 1, FOREGROUND - 0.1 * k) for k, outline in shapes]


def outlines(thing: Thing, time: float, camera: float) -> list[Outline]:
    """The outlines of a thing's parts in units of the frame."""
    axes, centre = placement(thing, time, camera)
    return [part.outline @ axes + centre for part in DRAWINGS[thing.kind](individual(thing.individual))]


def keypoints(thing: Thing, time: float, camera: float) -> dict[str, tuple[float, float]]:
    """The extremes of the thing in its own frame, and its centre, in pixels of the picture."""
    points = np.concatenate([part.outline for part in DRAWINGS[thing.kind](individual(thing.individual))])
    x, y = points.T
    own = points[[x.argmax(), x.argmin(), y.argmin(), y.argmax()]]
    axes, centre = placement(thing, time, camera)
    places = (np.concatenate([own, [(0.0, 0.0)]]) @ axes + centre) * SIDE
    return {name: (float(u), float(v)) for name, (u, v) in zip(KEYPOINTS, places, strict=True)}


def _paint(mode: str, shapes: list[tuple[Outline, float]]) -> np.ndarray:
    """A picture of plain numbers: no blending, the last shape wins."""
    image = Image.new(mode, (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for outline, value in shapes:
        draw.polygon((outline * SIDE - 0.5).ravel().tolist(), fill=value)
    return np.array(image)


def _edges(numbers: np.ndarray) -> np.ndarray:
    edges = np.zeros(numbers.shape, bool)
    edges[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    edges[:-1] |= numbers[:-1] != numbers[1:]
    return edges


def _flow(shot: Shot, mask: np.ndarray, now: float, later: float) -> np.ndarray:
    """A point of a thing keeps its place in the thing's own frame; scenery goes where the camera does not."""
    before, after = camera_shift(shot, now), camera_shift(shot, later)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    here = np.stack(np.meshgrid(grid, grid), -1)
    flow = np.broadcast_to((before - after, 0.0), here.shape).copy()
    for k, thing in enumerate(shot.things):
        (axes, centre), (to_axes, to_centre) = placement(thing, now, before), placement(thing, later, after)
        there = (here - centre) @ np.linalg.inv(axes) @ to_axes + to_centre
        flow[mask == k + 1] = (there - here)[mask == k + 1]
    return (flow * SIDE).astype(np.float32)
