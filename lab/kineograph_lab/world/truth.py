"""What is known of every pixel of a rendering: mask, depth, edges, keypoints and flow, exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kineograph.media.annotators import canny
from kineograph_lab.world.individuals import sample_individual
from kineograph_lab.world.painting import RGB, SIDE
from kineograph_lab.world.shapes import Outline
from kineograph_lab.world.subjects import SUBJECT_PARTS
from kineograph_lab.world.world import Shot, Subject, camera_shift, placement, scenery_layers

MAIN_SUBJECT_DEPTH = 0.3  # depth of the main thing
KEYPOINTS = ("front", "back", "top", "bottom", "centre")


class GroundTruth(NamedTuple):
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


def ground_truth(shot: Shot, time: float = 0.0, *, fps: float = 8.0) -> GroundTruth:
    """The truth of `render(shot, time)`; the flow is to the frame 1 / fps seconds later."""
    shift = camera_shift(shot, time)
    painted = _scenery_shapes(shot, shift) + _subject_shapes(shot, time, shift)
    mask = _rasterise("L", [(p.outline, p.thing) for p in painted]).astype(np.uint8)
    depth = _rasterise("F", [(p.outline, p.depth) for p in painted])
    numbers = _rasterise("I", [(p.outline, number) for number, p in enumerate(painted)])
    marks = tuple(subject_keypoints(thing, time, shift) for thing in shot.things)
    return GroundTruth(mask, depth, _part_edges(numbers), marks, _optical_flow(shot, mask, time, time + 1 / fps))


class _Shape(NamedTuple):
    outline: Outline
    thing: int
    depth: float


def _scenery_shapes(shot: Shot, shift: float) -> list[_Shape]:
    layers = scenery_layers(shot.scene, shot.backdrop)
    return [_Shape(part.outline - (shift, 0), 0, layer.depth) for layer in layers for part in layer.parts]


def _subject_shapes(shot: Shot, time: float, shift: float) -> list[_Shape]:
    """A later thing is painted over an earlier one, so it is the nearer."""
    shapes = [(k, outline) for k, thing in enumerate(shot.things) for outline in subject_outlines(thing, time, shift)]
    return [_Shape(outline, k + 1, MAIN_SUBJECT_DEPTH - 0.1 * k) for k, outline in shapes]


def subject_outlines(thing: Subject, time: float, camera: float) -> list[Outline]:
    """The outlines of a thing's parts in units of the frame."""
    axes, centre = placement(thing, time, camera)
    return [part.outline @ axes + centre for part in SUBJECT_PARTS[thing.kind](sample_individual(thing.individual))]


def subject_keypoints(thing: Subject, time: float, camera: float) -> dict[str, tuple[float, float]]:
    """The extremes of the thing in its own frame, and its centre, in pixels of the picture."""
    points = np.concatenate([part.outline for part in SUBJECT_PARTS[thing.kind](sample_individual(thing.individual))])
    x, y = points.T
    own = points[[x.argmax(), x.argmin(), y.argmin(), y.argmax()]]
    axes, centre = placement(thing, time, camera)
    places = (np.concatenate([own, [(0.0, 0.0)]]) @ axes + centre) * SIDE
    return {name: (float(u), float(v)) for name, (u, v) in zip(KEYPOINTS, places, strict=True)}


def _rasterise(mode: str, shapes: list[tuple[Outline, float]]) -> np.ndarray:
    """A picture of plain numbers: no blending, the last shape wins."""
    image = Image.new(mode, (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for outline, value in shapes:
        draw.polygon((outline * SIDE - 0.5).ravel().tolist(), fill=value)
    return np.array(image)


def _part_edges(numbers: np.ndarray) -> np.ndarray:
    edges = np.zeros(numbers.shape, bool)
    edges[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    edges[:-1] |= numbers[:-1] != numbers[1:]
    return edges


def _optical_flow(shot: Shot, mask: np.ndarray, now: float, later: float) -> np.ndarray:
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


KEYPOINT_COLOURS: tuple[RGB, ...] = (
    (255, 64, 64),
    (64, 255, 64),
    (64, 128, 255),
    (255, 224, 64),
    (255, 64, 255),
)  # of KEYPOINTS
DOT_RADIUS, LINE_WIDTH = 4, 2  # pixels


def edge_map(picture: np.ndarray, known: GroundTruth) -> np.ndarray:
    return canny(picture)


def depth_map(picture: np.ndarray, known: GroundTruth) -> np.ndarray:
    """What is near is bright, as networks that estimate depth have it."""
    grey = (255 * (1 - known.depth)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def pose_map(picture: np.ndarray, known: GroundTruth) -> np.ndarray:
    """A dot at each end of every thing, each of its own colour, and bones from them to the centre."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for places in known.keypoints:
        for name, (r, g, b) in zip(KEYPOINTS, KEYPOINT_COLOURS, strict=True):
            draw.line([places["centre"], places[name]], fill=(r // 2, g // 2, b // 2), width=LINE_WIDTH)
        for name, paint in zip(KEYPOINTS, KEYPOINT_COLOURS, strict=True):
            x, y = places[name]
            draw.ellipse((x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS), fill=paint)
    return np.asarray(image)


CONTROL_MAPS: dict[str, Callable[[np.ndarray, GroundTruth], np.ndarray]] = {
    "canny": edge_map,
    "depth": depth_map,
    "pose": pose_map,
}
