"""The 24 kinds of subjects of the pocket world, each a list of parts from back to front, facing right.

Names of parts are those of `shapes.PART_NAMES`. A truck's head is its cab, a rocket's tail its fire; a cactus and a balloon
have a base.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kineograph_lab.world.individuals import Individual
from kineograph_lab.world.shapes import Part, band, blob, box, ellipse, polygon, star


def fish(i: Individual) -> list[Part]:
    tail = blob((-0.55, 0), (-1.0, -0.5), (-0.85, 0), (-1.0, 0.5))
    fins = (polygon((-0.25, -0.4), (0.05, -0.75), (0.35, -0.4)), polygon((-0.1, 0.42), (0.0, 0.72), (0.25, 0.4)))
    body = blob((0.85, 0.02), (0.45, -0.4), (-0.15, -0.45), (-0.65, -0.1), (-0.65, 0.1), (-0.15, 0.45), (0.45, 0.42))
    return [Part(tail, "dark", "tail"), *(Part(f, "dark", "fin") for f in fins), Part(body, "body", "body"), *i.marks(-0.08, 0, 0.42, 0.32),
            Part(polygon((0.0, 0.02), (-0.25, 0.2), (0.0, 0.26)), "dark"), *i.eye(0.5, -0.1, 0.13), *i.hat(0.3, -0.4, 0.2)]  # fmt: skip


def whale(i: Individual) -> list[Part]:
    tail = blob((-0.6, 0.05), (-1.0, -0.5), (-0.8, -0.2), (-0.6, -0.55), (-0.42, 0.0))
    body = blob((0.9, 0.15), (0.75, -0.3), (0.3, -0.5), (-0.2, -0.35), (-0.75, 0.05), (-0.3, 0.45), (0.4, 0.52), (0.8, 0.4))
    belly = blob((0.86, 0.25), (0.4, 0.27), (-0.25, 0.35), (0.3, 0.53), (0.75, 0.44))
    spout = (band([(0.3, -0.5), (0.28, -0.75), (0.12, -0.9)], 0.09), band([(0.3, -0.5), (0.34, -0.75), (0.5, -0.9)], 0.09))
    return [Part(tail, "body", "tail"), *(Part(s, "glass") for s in spout), Part(body, "body", "body"), *i.marks(0.05, -0.1, 0.45, 0.25),
            Part(belly, "white"), Part(blob((0.05, 0.3), (-0.05, 0.68), (0.3, 0.4)), "dark", "fin"), *i.eye(0.6, 0.0, 0.1), *i.hat(-0.05, -0.4, 0.18)]  # fmt: skip


def turtle(i: Individual) -> list[Part]:
    legs = [ellipse(x, 0.45, 0.16, 0.24) for x in (-0.42, 0.32)]
    shell = blob((-0.72, 0.3), (-0.5, -0.3), (0.0, -0.55), (0.5, -0.3), (0.68, 0.3), (0.0, 0.36))
    return [*(Part(leg, "light", "leg") for leg in legs), Part(polygon((-0.65, 0.2), (-0.95, 0.4), (-0.6, 0.35)), "light", "tail"),
            Part(blob((0.5, 0.25), (0.65, -0.2), (0.92, -0.25), (1.0, 0.0), (0.75, 0.2), (0.65, 0.38)), "light", "head"),
            Part(shell, "body", "body"), *i.marks(0, -0.08, 0.45, 0.24), Part(box(-0.72, 0.22, 0.7, 0.36, 0.06), "dark"), *i.eye(0.83, -0.08, 0.09), *i.hat(0, -0.5, 0.2)]  # fmt: skip


def crab(i: Individual) -> list[Part]:
    legs = [band([(s * 0.4, y), (s * 0.75, y + 0.1), (s * 0.85, y + 0.35)], 0.1) for s in (-1, 1) for y in (0.1, 0.3)]
    arms = [band([(s * 0.45, -0.05), (s * 0.75, -0.2), (s * 0.72, -0.45)], 0.12) for s in (-1, 1)]
    claws = [blob((s * 0.72, -0.35), (s * 0.5, -0.6), (s * 0.62, -0.85), (s * 0.72, -0.62), (s * 0.95, -0.82), (s * 0.98, -0.5)) for s in (-1, 1)]
    stalks = [Part(box(x - 0.04, -0.5, x + 0.04, -0.15), "dark") for x in (-0.18, 0.2)]
    return [*(Part(p, "dark", "leg") for p in legs), *(Part(p, "dark") for p in arms), *(Part(c, "body", "claw") for c in claws), *stalks, Part(ellipse(0, 0.12, 0.6, 0.4), "body", "body"),
            *i.marks(0, 0.1, 0.42, 0.2), *i.eye(-0.18, -0.5, 0.13), *i.eye(0.2, -0.5, 0.13), *i.hat(0, -0.24, 0.15)]  # fmt: skip


def bird(i: Individual) -> list[Part]:
    body = blob((0.7, -0.3), (0.5, -0.6), (0.2, -0.45), (-0.25, -0.2), (-0.6, 0.1), (-0.15, 0.5), (0.4, 0.35), (0.65, 0.0))
    wing = blob((0.25, -0.1), (-0.1, -0.25), (-0.75, -0.6), (-0.55, 0.05), (-0.1, 0.25))
    legs = [Part(band([(x, 0.4), (x + 0.02, 0.75)], 0.06), "orange", "leg") for x in (-0.02, 0.2)]
    return [Part(polygon((-0.4, 0.0), (-1.0, 0.05), (-0.95, 0.35), (-0.35, 0.25)), "dark", "tail"), *legs, Part(polygon((0.62, -0.45), (1.0, -0.28), (0.62, -0.18)), "orange", "beak"),
            Part(body, "body", "body"), *i.marks(0.28, 0.1, 0.26, 0.2), Part(wing, "dark", "wing"), *i.eye(0.5, -0.36, 0.11), *i.hat(0.42, -0.55, 0.19)]  # fmt: skip


def butterfly(i: Individual) -> list[Part]:
    wings = [blob((s * 0.05, -0.1), (s * 0.35, -0.8), (s * 0.9, -0.75), (s * 0.85, -0.2), (s * 0.4, 0.05)) for s in (-1, 1)]
    lower = [blob((s * 0.05, 0.05), (s * 0.55, 0.05), (s * 0.75, 0.45), (s * 0.45, 0.75), (s * 0.12, 0.4)) for s in (-1, 1)]
    feelers = [band([(0, -0.5), (s * 0.12, -0.8), (s * 0.25, -0.9)], 0.05) for s in (-1, 1)]
    marks = [p for s in (-1, 1) for p in i.marks(s * 0.52, -0.4, 0.26, 0.22)]
    return [*(Part(w, "dark", "wing") for w in lower), *(Part(w, "body", "wing") for w in wings), *marks, *(Part(f, "black") for f in feelers),
            Part(ellipse(0, 0.05, 0.11, 0.55), "black", "body"), Part(ellipse(0, -0.5, 0.15, 0.15), "black"), *i.hat(0, -0.62, 0.16)]  # fmt: skip


def cat(i: Individual) -> list[Part]:
    tail = band([(-0.55, 0.3), (-0.85, 0.15), (-0.9, -0.2), (-0.75, -0.45)], 0.15)
    legs = [box(x, 0.3, x + 0.17, 0.82, 0.06) for x in (-0.55, -0.25, 0.12, 0.34)]
    ears = [polygon((x, -0.5), (x + 0.04, -0.92), (x + 0.3, -0.6)) for x in (0.2, 0.58)]
    whiskers = [band([(0.72, y), (1.02, y + d)], 0.03) for y, d in ((-0.2, -0.04), (-0.14, 0.06))]
    return [Part(tail, "dark", "tail"), *(Part(leg, "body", "leg") for leg in legs), Part(blob((-0.65, 0.1), (-0.3, -0.12), (0.4, -0.05), (0.55, 0.3), (0, 0.52), (-0.6, 0.45)), "body", "body"),
            *i.marks(-0.12, 0.2, 0.4, 0.24), *(Part(e, "dark", "ear") for e in ears), Part(ellipse(0.5, -0.35, 0.38, 0.34), "body", "head"),
            Part(ellipse(0.66, -0.2, 0.17, 0.11), "white"), Part(ellipse(0.74, -0.26, 0.06, 0.05), "pink"), *(Part(w, "black") for w in whiskers),
            *i.eye(0.38, -0.4, 0.1), *i.eye(0.66, -0.42, 0.1), *i.hat(0.5, -0.66, 0.18)]  # fmt: skip


def rabbit(i: Individual) -> list[Part]:
    ears = [ellipse(x, -0.72, 0.12, 0.33, t) for x, t in ((0.2, -0.25), (0.46, 0.1))]
    return [Part(ellipse(-0.68, 0.4, 0.17, 0.17), "white", "tail"), *(Part(e, "body", "ear") for e in ears), Part(ellipse(0.46, -0.7, 0.05, 0.22, 0.1), "pink"),
            Part(ellipse(-0.2, 0.35, 0.5, 0.43), "body", "body"), *i.marks(-0.28, 0.25, 0.32, 0.28), Part(ellipse(-0.3, 0.75, 0.3, 0.12), "light", "leg"), Part(ellipse(0.28, 0.74, 0.2, 0.11), "light", "leg"),
            Part(ellipse(0.38, -0.18, 0.36, 0.34), "body", "head"), Part(ellipse(0.6, -0.08, 0.15, 0.12), "white"), Part(ellipse(0.72, -0.14, 0.06, 0.05), "pink"),
            *i.eye(0.48, -0.26, 0.11), *i.hat(0.3, -0.46, 0.17)]  # fmt: skip


def elephant(i: Individual) -> list[Part]:
    legs = [box(x, 0.2, x + 0.24, 0.85, 0.05) for x in (-0.62, -0.3, 0.05, 0.3)]
    trunk = band([(0.75, -0.15), (0.92, 0.15), (0.88, 0.5), (1.0, 0.68)], 0.17)
    return [Part(band([(-0.7, -0.05), (-0.9, 0.15), (-0.92, 0.4)], 0.07), "dark", "tail"), *(Part(leg, "body", "leg") for leg in legs), Part(ellipse(-0.12, 0.05, 0.66, 0.45), "body", "body"),
            *i.marks(-0.3, 0.02, 0.34, 0.3), Part(trunk, "body", "trunk"), Part(ellipse(0.56, -0.2, 0.34, 0.35), "body", "head"), Part(polygon((0.68, 0.1), (0.75, 0.35), (0.6, 0.15)), "white"),
            Part(ellipse(0.3, -0.18, 0.23, 0.36), "dark", "ear"), *i.eye(0.68, -0.28, 0.09), *i.hat(0.55, -0.52, 0.18)]  # fmt: skip


def snail(i: Individual) -> list[Part]:
    foot = blob((-0.95, 0.65), (-0.5, 0.45), (0.35, 0.4), (0.5, -0.05), (0.8, -0.15), (0.85, 0.2), (0.7, 0.65), (0.0, 0.7))
    turns = np.linspace(0, 4.2 * np.pi, 34)
    spiral = [(-0.15 + 0.036 * t * np.cos(t), 0.02 + 0.036 * t * np.sin(t)) for t in turns]
    stalks = [band([(x, -0.1), (x + 0.06, -0.45)], 0.06) for x in (0.6, 0.75)]
    return [*(Part(s, "light") for s in stalks), Part(foot, "light"), Part(ellipse(-0.15, 0.02, 0.56, 0.54), "body", "body"), *i.marks(-0.15, 0.02, 0.46, 0.44), Part(band(spiral, 0.07), "dark"),
            *i.eye(0.66, -0.48, 0.1), *i.eye(0.82, -0.46, 0.1), *i.hat(-0.15, -0.48, 0.18)]  # fmt: skip


def _wheels(y: float, r: float, *places: float) -> list[Part]:
    return [Part(ellipse(x, y, k * r, k * r), paint, name) for x in places for k, paint, name in ((1, "tyre", "wheel"), (0.5, "metal", ""))]


def car(i: Individual) -> list[Part]:
    cabin = polygon((-0.6, -0.05), (-0.4, -0.5), (0.25, -0.5), (0.5, -0.05))
    windows = (polygon((-0.47, -0.08), (-0.33, -0.4), (-0.1, -0.4), (-0.1, -0.08)), polygon((-0.02, -0.08), (-0.02, -0.4), (0.2, -0.4), (0.37, -0.08)))
    return [Part(cabin, "body"), *(Part(w, "glass", "window") for w in windows), Part(box(-0.95, -0.08, 0.95, 0.42, 0.13), "body", "body"), *i.marks(0, 0.13, 0.55, 0.17),
            Part(ellipse(0.86, 0.08, 0.08, 0.1), "gold"), Part(box(-0.95, 0.3, 0.95, 0.42, 0.05), "dark"), *_wheels(0.42, 0.25, -0.52, 0.52), *i.hat(-0.1, -0.48, 0.18)]  # fmt: skip


def truck(i: Individual) -> list[Part]:
    cab = polygon((0.4, 0.4), (0.4, -0.35), (0.72, -0.35), (0.95, 0.05), (0.95, 0.4))
    return [Part(box(-0.95, -0.6, 0.34, 0.3, 0.04), "body", "body"), *i.marks(-0.3, -0.16, 0.52, 0.34), Part(cab, "light", "head"), Part(polygon((0.52, 0.0), (0.52, -0.24), (0.68, -0.24), (0.82, 0.0)), "glass", "window"),
            Part(box(-0.95, 0.28, 0.97, 0.42), "dark"), *_wheels(0.46, 0.21, -0.65, -0.18, 0.64), *i.hat(-0.3, -0.58, 0.2)]  # fmt: skip


def boat(i: Individual) -> list[Part]:
    hull = polygon((-0.95, 0.2), (0.98, 0.2), (0.65, 0.68), (-0.7, 0.68))
    return [Part(box(-0.07, -0.9, 0.02, 0.25), "wood"), Part(polygon((0.07, -0.85), (0.75, 0.08), (0.07, 0.08)), "white", "sail"), Part(polygon((-0.12, -0.7), (-0.65, 0.08), (-0.12, 0.08)), "light", "sail"),
            Part(hull, "body", "body"), *i.marks(0, 0.43, 0.52, 0.17), Part(box(-0.97, 0.17, 1.0, 0.27), "dark"), Part(polygon((-0.03, -0.95), (0.3, -0.85), (-0.03, -0.75)), i.accent)]  # fmt: skip


def airplane(i: Individual) -> list[Part]:
    body = blob((0.98, 0.05), (0.7, -0.2), (0.0, -0.22), (-0.85, -0.1), (-0.9, 0.08), (0.0, 0.25), (0.75, 0.22))
    return [Part(polygon((-0.85, -0.05), (-1.0, -0.6), (-0.75, -0.6), (-0.45, -0.12)), "dark", "tail"), Part(polygon((0.2, -0.15), (-0.2, -0.6), (-0.35, -0.6), (-0.15, -0.15)), "dark", "wing"), Part(body, "body", "body"),
            *i.marks(-0.35, 0.02, 0.32, 0.13), *(Part(ellipse(x, -0.04, 0.06, 0.07), "glass") for x in (-0.1, 0.1, 0.3, 0.5)), Part(polygon((0.62, -0.16), (0.85, -0.06), (0.68, -0.02)), "glass"),
            Part(polygon((0.25, 0.08), (-0.3, 0.65), (-0.48, 0.65), (-0.15, 0.08)), "light", "wing"), *i.hat(0.25, -0.2, 0.17)]  # fmt: skip


def rocket(i: Individual) -> list[Part]:
    body = blob((0, -0.98), (0.26, -0.55), (0.3, 0.1), (0.2, 0.55), (-0.2, 0.55), (-0.3, 0.1), (-0.26, -0.55))
    fins = [polygon((s * 0.22, 0.1), (s * 0.62, 0.5), (s * 0.58, 0.75), (s * 0.16, 0.52)) for s in (-1, 1)]
    return [Part(blob((-0.2, 0.5), (-0.16, 0.8), (0, 1.0), (0.16, 0.8), (0.2, 0.5)), "orange", "tail"), Part(blob((-0.1, 0.5), (0, 0.82), (0.1, 0.5)), "gold"), *(Part(f, "dark", "fin") for f in fins), Part(body, "body", "body"),
            *i.marks(0, 0.15, 0.2, 0.3), Part(blob((0, -0.98), (0.21, -0.62), (0, -0.56), (-0.21, -0.62)), "white"), Part(ellipse(0, -0.28, 0.17, 0.17), "metal", "window"), Part(ellipse(0, -0.28, 0.11, 0.11), "glass"),
            Part(box(-0.06, 0.3, 0.06, 0.72), i.accent)]  # fmt: skip


def tree(i: Individual) -> list[Part]:
    crown = blob((0, -0.95), (0.45, -0.8), (0.72, -0.4), (0.62, 0.0), (0.3, 0.2), (-0.3, 0.2), (-0.65, 0.0), (-0.7, -0.42), (-0.42, -0.8))
    return [Part(polygon((-0.12, 0.05), (0.12, 0.05), (0.2, 0.95), (-0.2, 0.95)), "wood", "stem"), Part(crown, "body", "body"), *i.marks(0, -0.35, 0.45, 0.38), Part(ellipse(-0.35, 0.02, 0.25, 0.14), "dark"),
            Part(ellipse(0.3, 0.02, 0.28, 0.14), "dark"), *i.hat(0, -0.88, 0.2)]  # fmt: skip


def flower(i: Individual) -> list[Part]:
    angles = np.arange(6) * np.pi / 3 + 0.3
    petals = [ellipse(0.4 * np.cos(a), -0.4 + 0.4 * np.sin(a), 0.3, 0.22, a) for a in angles]
    leaves = [blob((0, 0.65), (s * 0.3, 0.35), (s * 0.6, 0.4), (s * 0.35, 0.65)) for s in (-1, 1)]
    return [Part(box(-0.06, -0.2, 0.06, 0.98), "leaf", "stem"), *(Part(leaf, "leaf", "leaf") for leaf in leaves), *(Part(p, "body", "petal") for p in petals), Part(ellipse(0, -0.4, 0.28, 0.28), "gold", "body"),
            *i.marks(0, -0.4, 0.24, 0.24), *i.hat(0, -0.88, 0.18)]  # fmt: skip


def cactus(i: Individual) -> list[Part]:
    arms = [band([(s * 0.1, y), (s * 0.55, y), (s * 0.56, y - 0.1), (s * 0.56, y - 0.45)], 0.2) for s, y in ((-1, 0.15), (1, -0.05))]
    pot = polygon((-0.4, 0.52), (0.4, 0.52), (0.3, 0.98), (-0.3, 0.98))
    return [*(Part(a, "body", "arm") for a in arms), *(Part(ellipse(s * 0.56, y, 0.1, 0.1), "body") for s, y in ((-1, -0.3), (1, -0.5))), Part(box(-0.24, -0.85, 0.24, 0.6, 0.2), "body", "body"), *i.marks(0, -0.1, 0.2, 0.5),
            *(Part(band([(x, -0.7), (x, 0.48)], 0.035), "dark") for x in (-0.12, 0.12)), Part(pot, "clay", "base"), Part(box(-0.46, 0.46, 0.46, 0.62), "clay"), *i.hat(0, -0.84, 0.2)]  # fmt: skip


def mushroom(i: Individual) -> list[Part]:
    cap = blob((-0.85, 0.05), (-0.7, -0.5), (0.0, -0.85), (0.7, -0.5), (0.85, 0.05), (0.0, 0.16))
    return [Part(blob((-0.22, 0.0), (0.22, 0.0), (0.3, 0.6), (0.3, 0.9), (-0.3, 0.9), (-0.3, 0.6)), "cream", "stem"), Part(ellipse(0, 0.1, 0.6, 0.12), "wood"), Part(cap, "body", "body"), *i.marks(0, -0.33, 0.5, 0.3),
            *i.eye(-0.1, 0.42, 0.09), *i.eye(0.14, 0.42, 0.09), *i.hat(0, -0.78, 0.2)]  # fmt: skip


def ball(i: Individual) -> list[Part]:
    left, right = blob((-0.3, -0.8), (-0.05, 0), (-0.3, 0.8), (-0.7, 0.5), (-0.85, 0), (-0.7, -0.5)), ellipse(0.42, 0, 0.16, 0.66)
    return [Part(ellipse(0, 0, 0.86, 0.86), "body", "body"), Part(left, "white"), *i.marks(0.3, 0, 0.4, 0.5), Part(right, "light"), Part(ellipse(-0.2, -0.78, 0.2, 0.08), i.accent)]


def robot(i: Individual) -> list[Part]:
    arms = [band([(s * 0.45, 0.05), (s * 0.72, 0.2), (s * 0.74, 0.5)], 0.14) for s in (-1, 1)]
    legs = [box(x, 0.55, x + 0.2, 0.92) for x in (-0.32, 0.12)]
    return [Part(box(-0.03, -0.98, 0.03, -0.7), "metal"), Part(ellipse(0, -0.95, 0.09, 0.09), i.accent), *(Part(p, "metal", "arm") for p in arms), *(Part(p, "metal", "leg") for p in legs), *(Part(ellipse(s * 0.74, 0.55, 0.12, 0.12), "dark") for s in (-1, 1)),
            Part(box(-0.48, -0.08, 0.48, 0.6, 0.08), "body", "body"), *i.marks(0, 0.25, 0.32, 0.22), Part(box(-0.4, -0.72, 0.4, -0.12, 0.08), "body", "head"), Part(box(-0.3, -0.6, 0.34, -0.28, 0.08), "glass"),
            *i.eye(-0.1, -0.44, 0.1), *i.eye(0.18, -0.44, 0.1)]  # fmt: skip


def kite(i: Individual) -> list[Part]:
    tail = band([(0, 0.55), (-0.18, 0.68), (0.12, 0.82), (-0.1, 1.0)], 0.05)
    ties = [ellipse(x, y, 0.13, 0.07, 0.5) for x, y in ((-0.14, 0.68), (0.08, 0.84))]
    sides = [polygon((0, -0.95), (s * 0.68, -0.25), (0, 0.6)) for s in (-1, 1)]
    return [Part(tail, "black", "tail"), *(Part(t, i.accent) for t in ties), Part(sides[0], "body", "sail"), Part(sides[1], "light", "sail"), *i.marks(-0.02, -0.22, 0.35, 0.34),
            Part(band([(0, -0.95), (0, 0.6)], 0.05), "wood"), Part(band([(-0.68, -0.25), (0.68, -0.25)], 0.05), "wood")]  # fmt: skip


def balloon(i: Individual) -> list[Part]:
    bag = blob((0, -0.98), (0.5, -0.82), (0.7, -0.38), (0.5, 0.1), (0.17, 0.42), (-0.17, 0.42), (-0.5, 0.1), (-0.7, -0.38), (-0.5, -0.82))
    ropes = [band([(s * 0.16, 0.4), (s * 0.14, 0.72)], 0.035) for s in (-1, 1)]
    return [*(Part(r, "black") for r in ropes), Part(bag, "body", "body"), Part(ellipse(-0.43, -0.32, 0.12, 0.5), "light"), Part(ellipse(0.43, -0.32, 0.12, 0.5), "light"), *i.marks(0, -0.35, 0.3, 0.4),
            Part(box(-0.24, 0.68, 0.24, 0.98, 0.05), "wood", "base"), Part(box(-0.27, 0.66, 0.27, 0.74), i.accent)]  # fmt: skip


def star_subject(i: Individual) -> list[Part]:
    return [Part(star(0, 0.05, 0.98, 0.46, 5), "body", "body"), *i.marks(0, 0.14, 0.32, 0.26), *i.eye(-0.15, -0.05, 0.12), *i.eye(0.17, -0.05, 0.12),
            Part(blob((-0.15, 0.2), (0, 0.28), (0.17, 0.2), (0.0, 0.38)), "black"), *i.hat(0, -0.8, 0.17)]  # fmt: skip


SUBJECT_PARTS: dict[str, Callable[[Individual], list[Part]]] = {
    "fish": fish, "whale": whale, "turtle": turtle, "crab": crab, "bird": bird, "butterfly": butterfly, "cat": cat, "rabbit": rabbit,
    "elephant": elephant, "snail": snail, "car": car, "truck": truck, "boat": boat, "airplane": airplane, "rocket": rocket, "tree": tree,
    "flower": flower, "cactus": cactus, "mushroom": mushroom, "ball": ball, "robot": robot, "kite": kite, "balloon": balloon, "star": star_subject,
}  # fmt: skip
