"""What is known of every pixel of a rendering: mask, depth, edges, keypoints and flow, exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kineograph.media.annotators import canny
from kineograph_lab.world.individuals import individual
from kineograph_lab.world.painting import RGB, SIDE
from kineograph_lab.world.shapes import Outline
from kineograph_lab.world.subjects import DRAWINGS
from kineograph_lab.world.world import Shot, Thing, camera_shift, placement, scenery

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


PAINTS: tuple[RGB, ...] = ((255, 64, 64), (64, 255, 64), (64, 128, 255), (255, 224, 64), (255, 64, 255))  # of KEYPOINTS
DOT, BONE = 4, 2  # pixels


def edges(picture: np.ndarray, known: Truth) -> np.ndarray:
    return canny(picture)


def depth(picture: np.ndarray, known: Truth) -> np.ndarray:
    """What is near is bright, as networks that estimate depth have it."""
    grey = (255 * (1 - known.depth)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def pose(picture: np.ndarray, known: Truth) -> np.ndarray:
    """A dot at each end of every thing, each of its own colour, and bones from them to the centre."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for places in known.keypoints:
        for name, (r, g, b) in zip(KEYPOINTS, PAINTS, strict=True):
            draw.line([places["centre"], places[name]], fill=(r // 2, g // 2, b // 2), width=BONE)
        for name, paint in zip(KEYPOINTS, PAINTS, strict=True):
            x, y = places[name]
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=paint)
    return np.asarray(image)


MAPS: dict[str, Callable[[np.ndarray, Truth], np.ndarray]] = {"canny": edges, "depth": depth, "pose": pose}
