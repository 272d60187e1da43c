"""Outlines in a thing's own frame: x to its front, y down, both within about -1..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Outline = np.ndarray  # float32, n by 2
Point = tuple[float, float]


class Part(NamedTuple):
    """A filled outline and the paint it is filled with: a name, or red, green, blue."""

    outline: Outline
    paint: str | tuple[int, int, int]


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    across, down = rx * np.cos(angles), ry * np.sin(angles)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + c * across - s * down, y + s * across + c * down], 1)


def polygon(*points: Point) -> Outline:
    return np.array(points, float)


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Outline:
    """A rectangle, its corners cut by `corner`."""
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
    """A smooth closed curve through the points (Catmull-Rom, five steps a side)."""
    p = np.array(points, float)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 5, endpoint=False)[None, :, None]
    p, before, after, beyond = (q[:, None] for q in (p, before, after, beyond))
    slope, bend = after - before, 2 * before - 5 * p + 4 * after - beyond
    twist = 3 * p - before - 3 * after + beyond
    return (p + 0.5 * t * (slope + t * (bend + t * twist))).reshape(-1, 2)


def star(x: float, y: float, outer: float, inner: float, points: int) -> Outline:
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, outer)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)


def band(path: Sequence[Point], width: float) -> Outline:
    """A stroke of constant width along a path."""
    p = np.array(path, float)
    along = np.gradient(p, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True).clip(1e-6)
    return np.concatenate([p + normal * width / 2, (p - normal * width / 2)[::-1]])
