"""Details in which individuals of a kind differ, and which no caption names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kineograph_lab.world.shapes import Part, ellipse, polygon, star

PATTERNS = ("plain", "spots", "stripes", "patch")
EYES = ("round", "wide", "sleepy", "bead")
ACCESSORIES = ("none", "none", "hat", "bow", "crown", "cone")
ACCENTS = ("gold", "teal", "white", "navy")


@dataclass(frozen=True)
class Individual:
    """Details of one individual, sampled from its seed: pattern, proportions, eyes, accessory."""

    pattern: str
    spots: tuple[tuple[float, float, float], ...]
    mark: str
    eyes: str
    accessory: str
    accent: str
    length: float
    height: float

    def marks(self, x: float, y: float, rx: float, ry: float) -> list[Part]:
        """Return the pattern inside the ellipse (x, y, rx, ry) of the body."""
        if self.pattern == "spots":
            size = 0.27 * min(rx, ry) + 0.03
            return [Part(ellipse(x + rx * u, y + ry * v, size * w, size * w), self.mark) for u, v, w in self.spots]
        if self.pattern == "stripes":
            return [self._stripe(x, y, rx, ry, at) for at in (-0.55, 0.0, 0.55)]
        if self.pattern == "patch":
            u, v, w = self.spots[0]
            return [Part(ellipse(x + 0.6 * rx * u, y + 0.6 * ry * v, 0.5 * rx * w, 0.5 * ry * w), self.mark)]
        return []

    def _stripe(self, x: float, y: float, rx: float, ry: float, at: float) -> Part:
        half = 0.13 * rx * self.spots[0][2]
        high = ry * (1 - at * at) ** 0.5
        middle = x + rx * at
        corners = ((middle - half, y - high), (middle + half, y - high), (middle + half, y + high), (middle - half, y + high))
        return Part(polygon(*corners), self.mark)

    def eye(self, x: float, y: float, r: float) -> list[Part]:
        """Return an eye that looks to the front."""
        if self.eyes == "bead":
            return [Part(ellipse(x, y, 0.72 * r, 0.72 * r), "black", "eye"), Part(ellipse(x + 0.2 * r, y - 0.25 * r, 0.25 * r, 0.25 * r), "white")]
        size = 1.2 * r if self.eyes == "wide" else r
        parts = [Part(ellipse(x, y, size, size), "white", "eye"), Part(ellipse(x + 0.3 * size, y, 0.55 * size, 0.55 * size), "black")]
        if self.eyes == "sleepy":
            parts.append(Part(ellipse(x, y - 0.62 * size, 1.1 * size, 0.62 * size), "dark"))
        return parts

    def hat(self, x: float, y: float, size: float) -> list[Part]:
        """Return the accessory, its base at the point (x, y)."""
        s, a = size, self.accent
        if self.accessory == "hat":
            brim, crown = ellipse(x, y, 1.1 * s, 0.22 * s), polygon((x - 0.6 * s, y), (x - 0.55 * s, y - s), (x + 0.55 * s, y - s), (x + 0.6 * s, y))
            return [Part(crown, a, "hat"), Part(brim, a, "hat")]
        if self.accessory == "bow":
            wings = [polygon((x, y - 0.3 * s), (x + k * s, y - 0.8 * s), (x + k * s, y + 0.2 * s)) for k in (-1, 1)]
            return [*(Part(w, a, "hat") for w in wings), Part(ellipse(x, y - 0.3 * s, 0.28 * s, 0.28 * s), a, "hat")]
        if self.accessory == "crown":
            points = ((-0.8, 0), (-0.9, -0.9), (-0.4, -0.45), (0, -1.05), (0.4, -0.45), (0.9, -0.9), (0.8, 0))
            return [Part(polygon(*((x + s * u, y + s * v) for u, v in points)), a, "hat")]
        if self.accessory == "cone":
            return [Part(polygon((x - 0.6 * s, y), (x, y - 1.5 * s), (x + 0.6 * s, y)), a, "hat"), Part(star(x, y - 1.5 * s, 0.35 * s, 0.15 * s, 5), "white", "hat")]
        return []


@lru_cache(maxsize=65536)
def sample_individual(seed: int) -> Individual:
    """Return the individual of a seed (any non-negative integer)."""
    rng = np.random.default_rng(seed)
    grid = ((-0.5, -0.3), (0.1, -0.5), (0.55, -0.05), (-0.15, 0.2), (0.25, 0.5))
    count = int(rng.integers(3, 6))
    centres = tuple((u + rng.uniform(-0.12, 0.12), v + rng.uniform(-0.12, 0.12), rng.uniform(0.75, 1.25)) for u, v in grid[:count])
    return Individual(
        pattern=str(rng.choice(PATTERNS)), spots=centres, mark=str(rng.choice(("light", "dark"))), eyes=str(rng.choice(EYES)),
        accessory=str(rng.choice(ACCESSORIES)), accent=str(rng.choice(ACCENTS)), length=rng.uniform(0.88, 1.12), height=rng.uniform(0.88, 1.12),
    )  # fmt: skip
