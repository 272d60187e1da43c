"""The eight scenes of the pocket world: layers of parts from far to near, in units of the frame.

Scenery spans -0.7 to 1.7, wider than the frame, so that a camera can pan over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kineograph_lab.world.shapes import Outline, Part, band, blob, box, ellipse, polygon, star

Rng = np.random.Generator
Colour = tuple[int, int, int]
LEFT, RIGHT = -0.7, 1.7


class SceneryLayer(NamedTuple):
    """Parts at one depth: 1 is the horizon, 0 the camera."""

    depth: float
    parts: list[Part]


def _bands(top: float, bottom: float, *colours: Colour) -> list[Part]:
    edges = np.linspace(top, bottom, len(colours) + 1)
    return [Part(box(LEFT, a, RIGHT, 1.0), c) for a, c in zip(edges[:-1], colours, strict=True)]


def _hills(rng: Rng, height: float, swing: float) -> Outline:
    x = np.linspace(LEFT, RIGHT, 40)
    phases, pace = rng.uniform(0, 2 * np.pi, 2), rng.uniform(2, 3.5)
    y = height + swing * (np.sin(pace * x + phases[0]) + 0.5 * np.sin(2.2 * pace * x + phases[1]))
    return np.concatenate([np.stack([x, y], 1), [(RIGHT, 1.0), (LEFT, 1.0)]])


def _spots(rng: Rng, count: int, top: float, bottom: float) -> np.ndarray:
    """Return points spread over the width of the scenery, left to right."""
    x = LEFT + (np.arange(count) + rng.uniform(0.1, 0.9, count)) * (RIGHT - LEFT) / count
    return np.stack([x, rng.uniform(top, bottom, count)], 1)


def _cloud(x: float, y: float, s: float, colour: Colour) -> Part:
    return Part(blob((x - s, y), (x - 0.5 * s, y - 0.35 * s), (x, y - 0.5 * s), (x + 0.6 * s, y - 0.3 * s), (x + s, y), (x, y + 0.1 * s)), colour)


def _sun(rng: Rng, colour: Colour) -> Part:
    r = rng.uniform(0.06, 0.09)
    return Part(ellipse(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.2), r, r), colour)


def sea(rng: Rng) -> list[SceneryLayer]:
    horizon = rng.uniform(0.45, 0.55)
    sky = [*_bands(0, horizon, (186, 226, 246), (206, 236, 248)), _sun(rng, (255, 244, 190)), *(_cloud(x, y, 0.11, (250, 252, 255)) for x, y in _spots(rng, 5, 0.12, 0.3))]
    waves = [Part(band([(x, y), (x + 0.04, y - 0.02), (x + 0.09, y), (x + 0.14, y - 0.02), (x + 0.18, y)], 0.014), (196, 234, 240)) for x, y in _spots(rng, 14, horizon + 0.08, 0.95)]
    return [SceneryLayer(1.0, sky), SceneryLayer(0.8, [*_bands(horizon, 1, (104, 190, 206), (78, 168, 194), (60, 148, 180)), *waves])]


def meadow(rng: Rng) -> list[SceneryLayer]:
    ground = rng.uniform(0.55, 0.65)
    tufts = [Part(polygon((x - 0.02, y), (x - 0.03, y - 0.05), (x, y - 0.015), (x + 0.02, y - 0.055), (x + 0.025, y)), (112, 176, 84)) for x, y in _spots(rng, 12, ground + 0.14, 0.97)]
    daisies = [Part(ellipse(x, y, 0.014, 0.014), (255, 250, 225)) for x, y in _spots(rng, 12, ground + 0.12, 0.97)]
    sky = [*_bands(0, ground, (196, 230, 252), (220, 241, 252)), *(_cloud(x, y, 0.12, (255, 255, 255)) for x, y in _spots(rng, 4, 0.12, 0.3))]
    return [SceneryLayer(1.0, sky), SceneryLayer(0.85, [Part(_hills(rng, ground - 0.06, 0.05), (176, 216, 140))]), SceneryLayer(0.65, [Part(_hills(rng, ground + 0.08, 0.02), (150, 204, 110)), *tufts, *daisies])]


def desert(rng: Rng) -> list[SceneryLayer]:
    ground = rng.uniform(0.5, 0.6)
    mesas = [Part(polygon((x - 0.16, ground + 0.1), (x - 0.1, ground - h), (x + 0.08, ground - h), (x + 0.15, ground + 0.1)), (214, 160, 116)) for x, h in _spots(rng, 3, 0.08, 0.2)]
    stones = [Part(ellipse(x, y, 0.03, 0.016), (206, 170, 116)) for x, y in _spots(rng, 8, ground + 0.2, 0.95)]
    return [SceneryLayer(1.0, [*_bands(0, ground, (252, 224, 178), (253, 236, 202)), _sun(rng, (255, 250, 226))]), SceneryLayer(0.85, mesas),
            SceneryLayer(0.75, [Part(_hills(rng, ground + 0.04, 0.03), (242, 214, 156))]), SceneryLayer(0.6, [Part(_hills(rng, ground + 0.18, 0.04), (232, 198, 136)), *stones])]  # fmt: skip


def snow(rng: Rng) -> list[SceneryLayer]:
    ground = rng.uniform(0.56, 0.66)
    peaks = []
    for x, h in _spots(rng, 5, 0.25, 0.42):
        top = ground - h
        peaks += [Part(polygon((x - 0.36, ground + 0.1), (x, top), (x + 0.36, ground + 0.1)), (154, 176, 204)),
                  Part(polygon((x - 0.1, top + 0.11), (x, top), (x + 0.1, top + 0.11), (x + 0.04, top + 0.08), (x - 0.02, top + 0.13)), (244, 249, 255))]  # fmt: skip
    flakes = [Part(ellipse(x, y, 0.011, 0.011), (255, 255, 255)) for x, y in _spots(rng, 16, 0.03, 0.6)]
    return [SceneryLayer(1.0, [*_bands(0, ground, (190, 210, 232), (210, 225, 240))]), SceneryLayer(0.9, [*peaks, *flakes]), SceneryLayer(0.65, [Part(_hills(rng, ground + 0.06, 0.03), (238, 244, 251))])]


def forest(rng: Rng) -> list[SceneryLayer]:
    far = [Part(box(x, 0, x + 0.05, 0.85), (92, 122, 96)) for x, _ in _spots(rng, 14, 0, 1)]
    near = [Part(polygon((x, 0), (x + 0.09, 0), (x + 0.12, 0.86), (x - 0.03, 0.86)), (82, 74, 62)) for x, _ in _spots(rng, 6, 0, 1)]
    leaves = [Part(ellipse(x, y, 0.2, 0.13), (54, 96, 64)) for x, y in _spots(rng, 10, -0.05, 0.05)]
    return [SceneryLayer(1.0, [*_bands(0, 0.8, (138, 170, 132), (124, 156, 118))]), SceneryLayer(0.9, far), SceneryLayer(0.75, [*near, *leaves]), SceneryLayer(0.65, [Part(_hills(rng, 0.82, 0.015), (96, 118, 70))])]


def city(rng: Rng) -> list[SceneryLayer]:
    ground = rng.uniform(0.76, 0.82)
    houses: list[Part] = []
    for x, h in _spots(rng, 9, 0.3, 0.62):
        grey = int(rng.integers(136, 176))
        houses.append(Part(box(x - 0.11, ground - h, x + 0.13, ground), (grey, grey, grey + 14)))
        rows = np.arange(ground - h + 0.05, ground - 0.08, 0.12)
        houses += [Part(box(x + u, y, x + u + 0.05, y + 0.06), (250, 236, 178)) for y in rows for u in (-0.07, 0.04)]
    road = [Part(box(LEFT, ground, RIGHT, 1.0), (98, 98, 108)), *(Part(box(x, 0.89, x + 0.12, 0.915), (236, 236, 226)) for x in np.arange(LEFT, RIGHT, 0.24))]
    return [SceneryLayer(1.0, _bands(0, ground, (216, 212, 232), (232, 222, 232))), SceneryLayer(0.85, houses), SceneryLayer(0.65, road)]


def space(rng: Rng) -> list[SceneryLayer]:
    stars = [Part(star(x, y, s, 0.35 * s, 4), (255, 250, 220)) for (x, y), s in zip(_spots(rng, 26, 0.03, 0.97), rng.uniform(0.012, 0.03, 26), strict=True)]
    x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.3), rng.uniform(0.07, 0.11)
    planet = [Part(ellipse(x, y, r, r), (148, 132, 176)), Part(ellipse(x, y, 1.7 * r, 0.3 * r, -0.3), (196, 178, 206)), Part(ellipse(x, y - 0.35 * r, 0.85 * r, 0.55 * r), (148, 132, 176))]
    return [SceneryLayer(1.0, [*_bands(0, 1, (24, 22, 56), (32, 28, 70), (42, 34, 84)), *stars]), SceneryLayer(0.9, planet)]


def room(rng: Rng) -> list[SceneryLayer]:
    floor, x = rng.uniform(0.7, 0.78), rng.uniform(0.15, 0.65)
    boards = [Part(box(LEFT, y, RIGHT, y + 0.012), (160, 118, 82)) for y in (floor + 0.1, floor + 0.19)]
    window = [Part(box(x, 0.1, x + 0.3, 0.44), (252, 250, 244)), Part(box(x + 0.025, 0.125, x + 0.275, 0.415), (190, 224, 240)), Part(box(x + 0.14, 0.12, x + 0.16, 0.42), (252, 250, 244))]
    stripes = [Part(box(u, 0, u + 0.07, floor), (244, 230, 208)) for u in np.arange(LEFT, RIGHT, 0.2)]
    return [SceneryLayer(1.0, [Part(box(LEFT, 0, RIGHT, 1), (238, 220, 194)), *stripes]), SceneryLayer(0.9, window),
            SceneryLayer(0.65, [Part(box(LEFT, floor, RIGHT, 1.0), (186, 144, 106)), Part(box(LEFT, floor - 0.03, RIGHT, floor), (250, 244, 234)), *boards])]  # fmt: skip


SCENERY: dict[str, Callable[[Rng], list[SceneryLayer]]] = {
    "sea": sea, "meadow": meadow, "desert": desert, "snow": snow, "forest": forest, "city": city, "space": space, "room": room,
}  # fmt: skip
