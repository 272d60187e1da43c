"""Outlines in a subject's own frame: x to its front, y down, both within about -1..1."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, sin
from typing import NamedTuple

import numpy as np

Outline = np.ndarray  # float32, n by 2
Point = tuple[float, float]

_ANGLES = np.linspace(0, 2 * np.pi, 26, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
_STEPS = np.linspace(0, 1, 5, endpoint=False)
# Catmull-Rom weights of the points before, at, after and beyond, at each step along a side.
_WEIGHTS = 0.5 * np.stack([-_STEPS + 2 * _STEPS**2 - _STEPS**3, 2 - 5 * _STEPS**2 + 3 * _STEPS**3,
                           _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3, -(_STEPS**2) + _STEPS**3], 1)  # fmt: skip


PART_NAMES = (
    "body", "head", "tail", "leg", "ear", "eye", "wing", "fin", "beak", "trunk", "claw", "wheel", "window", "sail", "arm", "stem",
    "leaf", "base",
)  # fmt: skip
COVERS = ("hat", "petal")  # names of parts that hide others and are not counted


class Part(NamedTuple):
    """A filled outline, its paint (a name, or (red, green, blue)) and the anatomical part that it draws.

    name: one of PART_NAMES or COVERS; "" for a detail, which belongs to the part that it is painted on.
    """

    outline: Outline
    paint: str | tuple[int, int, int]
    name: str = ""


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Outline:
    """Return an ellipse, rotated clockwise by `turn` radians."""
    axes = np.array([[rx * cos(turn), rx * sin(turn)], [-ry * sin(turn), ry * cos(turn)]])
    return CIRCLE @ axes + (x, y)


def polygon(*points: Point) -> Outline:
    """Return a polygon."""
    return np.array(points, float)


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Outline:
    """Return a rectangle with corners cut by `corner`."""
    c = corner
    if not c:
        return polygon((left, top), (right, top), (right, bottom), (left, bottom))
    k = 0.3 * c
    return polygon(
        (left + c, top), (right - c, top), (right - k, top + k), (right, top + c),
        (right, bottom - c), (right - k, bottom - k), (right - c, bottom), (left + c, bottom),
        (left + k, bottom - k), (left, bottom - c), (left, top + c), (left + k, top + k),
    )  # fmt: skip


def blob(*points: Point) -> Outline:
    """Return a smooth closed curve through the points (Catmull-Rom, five steps a side)."""
    p = np.array(points, float)
    around = np.arange(len(p))[:, None] + np.arange(-1, 3)
    return np.matmul(_WEIGHTS, p[around % len(p)]).reshape(-1, 2)


def star(x: float, y: float, outer: float, inner: float, points: int) -> Outline:
    """Return a star of so many points."""
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, outer)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)


def band(path: Sequence[Point], width: float) -> Outline:
    """Return the outline of a stroke of constant width along a path."""
    p = np.array(path, float)
    along = np.gradient(p, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True).clip(1e-6)
    return np.concatenate([p + normal * width / 2, (p - normal * width / 2)[::-1]])
