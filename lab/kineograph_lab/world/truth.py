"""Exact ground truth of rendered frames: mask, depth, edges, keypoints and optical flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kineograph.models.annotators import canny
from kineograph_lab.world.painting import RGB, SIDE
from kineograph_lab.world.shapes import Outline
from kineograph_lab.world.world import ShotSpec, Subject, camera_shift, placement, scenery_layers, subject_parts

MAIN_SUBJECT_DEPTH = 0.3  # depth of the main subject
KEYPOINTS = ("front", "back", "top", "bottom", "centre")


class GroundTruth(NamedTuple):
    """Ground truth of one frame of 128 x 128 pixels.

    mask: uint8 [h, w]: 0 for scenery, k for the k-th subject (from 1).
    depth: float32 [h, w]: 0 at the camera, 1 at the horizon.
    edges: bool [h, w]: pixels where another part begins to the right or below.
    keypoints: one dict a subject: name -> (x, y) in pixels; "front" is where the subject faces.
    flow: float32 [h, w, 2]: displacement of each pixel's point to the next frame, (x, y) in pixels.
    """

    mask: np.ndarray
    depth: np.ndarray
    edges: np.ndarray
    keypoints: tuple[dict[str, tuple[float, float]], ...]
    flow: np.ndarray


def ground_truth(shot: ShotSpec, time: float = 0.0, *, fps: float = 8.0) -> GroundTruth:
    """Return the ground truth of `render(shot, time)`; the flow is to the frame 1 / fps seconds later."""
    shift = camera_shift(shot, time)
    shapes = _scenery_shapes(shot, shift) + _subject_shapes(shot, time, shift)
    mask = _rasterise("L", [(p.outline, p.subject) for p in shapes]).astype(np.uint8)
    depth = _rasterise("F", [(p.outline, p.depth) for p in shapes])
    numbers = _rasterise("I", [(p.outline, number) for number, p in enumerate(shapes)])
    marks = tuple(subject_keypoints(subject, time, shift) for subject in shot.things)
    return GroundTruth(mask, depth, _part_edges(numbers), marks, _optical_flow(shot, mask, time, time + 1 / fps))


class _Shape(NamedTuple):
    outline: Outline
    subject: int
    depth: float


def _scenery_shapes(shot: ShotSpec, shift: float) -> list[_Shape]:
    layers = scenery_layers(shot.scene, shot.backdrop)
    return [_Shape(part.outline - (shift, 0), 0, layer.depth) for layer in layers for part in layer.parts]


def _subject_shapes(shot: ShotSpec, time: float, shift: float) -> list[_Shape]:
    """Return the outlines of all subjects, with number and depth; a later subject occludes an earlier one."""
    shapes = [
        (k, outline) for k, subject in enumerate(shot.things) for outline in subject_outlines(subject, time, shift)
    ]
    return [_Shape(outline, k + 1, MAIN_SUBJECT_DEPTH - 0.1 * k) for k, outline in shapes]


def subject_outlines(subject: Subject, time: float, camera: float) -> list[Outline]:
    """Return the outlines of a subject's parts in units of the frame."""
    axes, centre = placement(subject, time, camera)
    return [part.outline @ axes + centre for part in subject_parts(subject)]


def subject_keypoints(subject: Subject, time: float, camera: float) -> dict[str, tuple[float, float]]:
    """Return the extreme points of the subject in its own frame, and its centre, in pixels of the image."""
    points = np.concatenate([part.outline for part in subject_parts(subject)])
    x, y = points.T
    extremes = points[[x.argmax(), x.argmin(), y.argmin(), y.argmax()]]
    axes, centre = placement(subject, time, camera)
    points_in_image = (np.concatenate([extremes, [(0.0, 0.0)]]) @ axes + centre) * SIDE
    return {name: (float(u), float(v)) for name, (u, v) in zip(KEYPOINTS, points_in_image, strict=True)}


def _rasterise(mode: str, shapes: list[tuple[Outline, float]]) -> np.ndarray:
    """Return an image of plain numbers, without blending; the last shape wins."""
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


def _optical_flow(shot: ShotSpec, mask: np.ndarray, now: float, later: float) -> np.ndarray:
    """Return the flow: subjects' points keep their place in the subject's frame, scenery moves against the camera."""
    before, after = camera_shift(shot, now), camera_shift(shot, later)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    positions = np.stack(np.meshgrid(grid, grid), -1)
    flow = np.broadcast_to((before - after, 0.0), positions.shape).copy()
    for k, subject in enumerate(shot.things):
        (axes, centre), (to_axes, to_centre) = placement(subject, now, before), placement(subject, later, after)
        targets = (positions - centre) @ np.linalg.inv(axes) @ to_axes + to_centre
        flow[mask == k + 1] = (targets - positions)[mask == k + 1]
    return (flow * SIDE).astype(np.float32)


KEYPOINT_COLOURS: tuple[RGB, ...] = (
    (255, 64, 64),
    (64, 255, 64),
    (64, 128, 255),
    (255, 224, 64),
    (255, 64, 255),
)  # of KEYPOINTS
DOT_RADIUS, LINE_WIDTH = 4, 2  # pixels


def edge_map(frame: np.ndarray, known: GroundTruth) -> np.ndarray:
    """Return Canny edges of the image."""
    return canny(frame)


def depth_map(frame: np.ndarray, known: GroundTruth) -> np.ndarray:
    """Return depth as grey, near is bright (the convention of depth estimators)."""
    grey = (255 * (1 - known.depth)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def pose_map(frame: np.ndarray, known: GroundTruth) -> np.ndarray:
    """Return a dot in its own colour at each keypoint of every subject, and lines from them to the centre."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for points in known.keypoints:
        for name, (r, g, b) in zip(KEYPOINTS, KEYPOINT_COLOURS, strict=True):
            draw.line([points["centre"], points[name]], fill=(r // 2, g // 2, b // 2), width=LINE_WIDTH)
        for name, paint in zip(KEYPOINTS, KEYPOINT_COLOURS, strict=True):
            x, y = points[name]
            draw.ellipse((x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS), fill=paint)
    return np.asarray(image)


CONTROL_MAPS: dict[str, Callable[[np.ndarray, GroundTruth], np.ndarray]] = {
    "canny": edge_map,
    "depth": depth_map,
    "pose": pose_map,
}
