"""Subjects that no model of the pocket world is trained on, each in its own colours: subjects to customise to.

Five are drawn by hand, individuals of kinds that have a word (an owl is a bird), unlike any of that kind in `subjects.py`.
Twenty are composed: a kind of `subjects.py` in a palette and with two additions that no subject of the world has. Nothing
here is in `world.sample_shots`: models and judges are trained without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import numpy as np

from kineograph_lab.world.individuals import Individual
from kineograph_lab.world.painting import RGB
from kineograph_lab.world.shapes import Part, band, blob, box, ellipse, polygon, star
from kineograph_lab.world.subjects import SUBJECT_PARTS

BLACK, WHITE, CREAM = (30, 28, 34), (250, 250, 250), (248, 236, 208)


def owl() -> list[Part]:
    teal, deep, coral, amber = (38, 128, 134), (24, 88, 100), (240, 112, 88), (252, 202, 52)
    body = blob((0, -0.82), (0.46, -0.7), (0.66, 0.0), (0.46, 0.78), (-0.46, 0.78), (-0.66, 0.0), (-0.46, -0.7))
    tufts = [polygon((s * 0.2, -0.72), (s * 0.56, -1.0), (s * 0.52, -0.48)) for s in (-1, 1)]
    wings = [blob((s * 0.5, -0.25), (s * 0.92, 0.2), (s * 0.72, 0.62), (s * 0.46, 0.4)) for s in (-1, 1)]
    chevrons = [
        band([(x - 0.12, y), (x, y + 0.1), (x + 0.12, y)], 0.06)
        for x, y in ((-0.15, 0.18), (0.15, 0.18), (0, 0.38), (-0.18, 0.52), (0.18, 0.52))
    ]
    eyes = [
        Part(ellipse(x, -0.32, r, r), colour)
        for x in (-0.22, 0.3)
        for r, colour in ((0.29, CREAM), (0.22, amber), (0.11, BLACK))
    ]
    return [
        *(Part(tuft, deep) for tuft in tufts),
        *(Part(ellipse(x, 0.82, 0.15, 0.09), amber) for x in (-0.22, 0.22)),
        Part(body, teal),
        *(Part(wing, deep) for wing in wings),
        Part(ellipse(0, 0.34, 0.4, 0.42), CREAM),
        *(Part(chevron, coral) for chevron in chevrons),
        *eyes,
        Part(polygon((-0.05, -0.22), (0.14, -0.22), (0.05, 0.02)), coral),
    ]


def anglerfish() -> list[Part]:
    indigo, violet, magenta, glow = (66, 58, 132), (112, 98, 184), (226, 74, 146), (255, 240, 130)
    body = blob(
        (0.72, -0.1), (0.5, -0.52), (0.0, -0.62), (-0.48, -0.36), (-0.66, 0.0), (-0.4, 0.46), (0.1, 0.66), (0.6, 0.5)
    )
    mouth = blob((0.84, 0.02), (0.5, 0.06), (0.16, 0.2), (0.3, 0.42), (0.62, 0.48), (0.82, 0.3))
    upper = [
        polygon((x, y), (x + 0.14, y - 0.02), (x + 0.07, y + 0.18)) for x, y in ((0.26, 0.14), (0.42, 0.1), (0.6, 0.05))
    ]
    lower = [
        polygon((x, y), (x + 0.13, y), (x + 0.06, y - 0.15)) for x, y in ((0.34, 0.45), (0.52, 0.48), (0.67, 0.44))
    ]
    spikes = [
        polygon((x, y), (x - 0.16, y - 0.3), (x + 0.16, y - 0.02))
        for x, y in ((-0.36, -0.4), (-0.12, -0.54), (0.12, -0.56))
    ]
    return [
        *(Part(spike, magenta) for spike in spikes),
        Part(blob((-0.55, 0.0), (-1.0, -0.42), (-0.84, 0.02), (-1.0, 0.44)), magenta),
        Part(body, indigo),
        Part(blob((-0.45, 0.2), (0.0, 0.38), (0.5, 0.5), (0.1, 0.65), (-0.3, 0.46)), violet),
        Part(mouth, BLACK),
        *(Part(tooth, WHITE) for tooth in (*upper, *lower)),
        Part(polygon((-0.1, 0.12), (-0.42, 0.34), (-0.02, 0.4)), magenta),
        *(Part(ellipse(0.3, -0.22, r, r), colour) for r, colour in ((0.17, WHITE), (0.08, BLACK))),
        Part(band([(0.22, -0.55), (0.4, -0.86), (0.7, -0.9), (0.84, -0.66)], 0.07), violet),
        *(Part(ellipse(0.84, -0.56, r, r), colour) for r, colour in ((0.19, (255, 214, 70)), (0.12, glow))),
    ]  # fmt: skip


def fox() -> list[Part]:
    rust, dark, scarf = (236, 112, 36), (84, 44, 40), (36, 170, 186)
    tail = blob((-0.4, 0.3), (-0.7, 0.3), (-1.0, -0.15), (-0.92, -0.7), (-0.66, -0.62), (-0.62, -0.2), (-0.35, 0.02))
    tip = blob((-0.98, -0.3), (-0.93, -0.72), (-0.68, -0.64), (-0.66, -0.4), (-0.84, -0.44))
    ears = [polygon((x, -0.5), (x + 0.06, -1.0), (x + 0.32, -0.58)) for x in (0.16, 0.5)]
    tips = [polygon((x + 0.03, -0.76), (x + 0.06, -1.0), (x + 0.17, -0.8)) for x in (0.16, 0.5)]
    body = blob((-0.62, 0.1), (-0.2, -0.08), (0.36, -0.06), (0.5, 0.3), (0.1, 0.46), (-0.56, 0.44))
    head = blob((0.1, -0.42), (0.3, -0.66), (0.64, -0.64), (0.78, -0.36), (1.02, -0.14), (0.62, 0.0), (0.24, -0.06))
    return [
        Part(tail, rust),
        Part(tip, WHITE),
        *(Part(box(x, 0.3, x + 0.15, 0.88, 0.05), dark) for x in (-0.54, -0.3, 0.14, 0.34)),
        Part(body, rust),
        Part(ellipse(0.36, 0.22, 0.16, 0.22), WHITE),
        *(Part(ear, rust) for ear in ears),
        *(Part(each, dark) for each in tips),
        Part(head, rust),
        Part(blob((0.3, -0.18), (0.66, -0.24), (1.0, -0.13), (0.62, 0.0), (0.3, -0.04)), WHITE),
        Part(ellipse(0.98, -0.16, 0.08, 0.07), BLACK),
        *(Part(ellipse(x, -0.36, 0.08, 0.1), BLACK) for x in (0.4, 0.68)),
        Part(band([(0.12, 0.0), (0.36, 0.08), (0.62, 0.04)], 0.17), scarf),
        Part(polygon((0.12, 0.04), (0.28, 0.08), (0.12, 0.5), (-0.04, 0.44)), scarf),
    ]


def saucer() -> list[Part]:
    steel, shade, sky, green = (186, 194, 212), (122, 130, 156), (182, 232, 246), (126, 206, 82)
    lamps = [((-0.66, 0.2), 0), ((-0.33, 0.28), 1), ((0.0, 0.31), 0), ((0.33, 0.28), 1), ((0.66, 0.2), 0)]
    return [
        *(Part(band([(s * 0.4, 0.3), (s * 0.56, 0.7)], 0.08), shade) for s in (-1, 1)),
        *(Part(ellipse(s * 0.58, 0.74, 0.16, 0.07), (232, 74, 128)) for s in (-1, 1)),
        Part(ellipse(0, -0.12, 0.48, 0.58), sky),
        Part(blob((0.0, -0.5), (0.28, -0.38), (0.22, -0.02), (0.0, 0.1), (-0.22, -0.02), (-0.28, -0.38)), green),
        *(Part(ellipse(x, -0.28, 0.08, 0.12, t), BLACK) for x, t in ((-0.09, 0.3), (0.16, -0.3))),
        Part(band([(-0.02, -0.08), (0.04, -0.05), (0.1, -0.08)], 0.04), BLACK),
        Part(blob((-1.0, 0.18), (-0.5, -0.02), (0.5, -0.02), (1.0, 0.18), (0.5, 0.44), (-0.5, 0.44)), shade),
        Part(blob((-1.0, 0.14), (-0.5, -0.04), (0.5, -0.04), (1.0, 0.14), (0.5, 0.26), (-0.5, 0.26)), steel),
        *(Part(ellipse(x, y, 0.1, 0.09), ((252, 206, 60), (232, 74, 128))[kind]) for (x, y), kind in lamps),
    ]


def rover() -> list[Part]:
    mint, deep, orange, navy = (122, 218, 184), (58, 152, 132), (248, 140, 50), (34, 44, 96)
    return [
        Part(band([(-0.2, -0.6), (-0.34, -0.9)], 0.06), navy),
        Part(ellipse(-0.36, -0.92, 0.1, 0.1), (232, 60, 60)),
        *(Part(ellipse(0, 0.68, r, r), colour) for r, colour in ((0.32, navy), (0.2, (176, 182, 192)), (0.08, orange))),
        Part(band([(-0.5, 0.05), (-0.82, 0.2), (-0.9, 0.46)], 0.13), orange),
        Part(ellipse(0, -0.1, 0.6, 0.58), mint),
        Part(blob((-0.58, 0.06), (0.0, 0.16), (0.58, 0.06), (0.5, 0.26), (0.0, 0.4), (-0.5, 0.26)), orange),
        Part(blob((-0.56, -0.3), (-0.3, -0.62), (-0.22, -0.3), (-0.34, 0.0), (-0.58, 0.04)), deep),
        *(Part(ellipse(x, 0.22, 0.05, 0.05), navy) for x in (-0.24, 0.04, 0.32)),
        *(
            Part(ellipse(0.2, -0.24, r, r), colour)
            for r, colour in ((0.33, WHITE), (0.27, navy), (0.16, (84, 212, 246)), (0.07, WHITE))
        ),
        Part(band([(0.46, 0.06), (0.8, -0.04), (0.94, -0.3)], 0.13), orange),
        Part(ellipse(0.94, -0.36, 0.12, 0.12), navy),
    ]


UNSEEN_SUBJECTS: Mapping[str, tuple[str, Callable[[], list[Part]]]] = {
    "owl": ("bird", owl),
    "anglerfish": ("fish", anglerfish),
    "fox": ("cat", fox),
    "saucer": ("rocket", saucer),
    "rover": ("robot", rover),
}
"""What each is -> the kind that it is called by, and its parts from back to front, facing right."""

Bounds = tuple[float, float, float, float]  # left, top, right and bottom of a subject's own parts
Addition = Callable[[Bounds, RGB], list[Part]]


def _wings(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, bottom = bounds
    y = 0.6 * top + 0.4 * bottom
    tips = [(left + 0.25 * (right - left), -1), (right - 0.25 * (right - left), 1)]
    return [
        Part(blob((x, y + 0.2), (x + s * 0.6, y - 0.75), (x + s * 0.95, y - 0.4), (x + s * 0.6, y + 0.25)), colour)
        for x, s in tips
    ]


def _cape(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, bottom = bounds
    x, y = (left + right) / 2, 0.75 * top + 0.25 * bottom
    return [
        Part(
            blob(
                (x + 0.2, y),
                (x - 0.25, y - 0.1),
                (left - 0.35, bottom - 0.1),
                (x - 0.2, bottom + 0.1),
                (x + 0.3, bottom),
            ),
            colour,
        )
    ]


def _rays(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, bottom = bounds
    return [Part(star((left + right) / 2, (top + bottom) / 2, 0.75 * max(right - left, bottom - top), 0.5, 12), colour)]


def _stilts(bounds: Bounds, colour: RGB) -> list[Part]:
    left, _, right, bottom = bounds
    return [
        Part(
            box(
                left + share * (right - left) - 0.05, bottom - 0.3, left + share * (right - left) + 0.05, bottom + 0.45
            ),
            colour,
        )
        for share in (0.3, 0.7)
    ]


def _plume(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, _, bottom = bounds
    y = (top + bottom) / 2
    return [
        Part(
            band([(left + 0.2, y), (left - 0.25, y - 0.1), (left - 0.4, y - 0.6), (left - 0.15, y - 0.9)], 0.2), colour
        )
    ]


def _belt(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, bottom = bounds
    x, y = (left + right) / 2, 0.4 * top + 0.6 * bottom
    return [
        Part(box(left + 0.1, y - 0.08, right - 0.1, y + 0.08), colour),
        Part(box(x - 0.12, y - 0.12, x + 0.12, y + 0.12), WHITE),
    ]


def _badge(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, bottom = bounds
    x, y = (left + right) / 2, (top + bottom) / 2
    return [Part(ellipse(x, y, 0.32, 0.32), WHITE), Part(star(x, y, 0.28, 0.12, 6), colour)]


def _horns(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, _ = bounds
    x = (left + right) / 2
    return [
        Part(
            blob((x + s * 0.08, top + 0.15), (x + s * 0.3, top), (x + s * 0.34, top - 0.4), (x + s * 0.16, top - 0.1)),
            colour,
        )
        for s in (-1, 1)
    ]


def _propeller(bounds: Bounds, colour: RGB) -> list[Part]:
    left, top, right, _ = bounds
    x = (left + right) / 2
    return [
        Part(box(x - 0.03, top - 0.3, x + 0.03, top + 0.1), BLACK),
        *(Part(ellipse(x + s * 0.3, top - 0.3, 0.3, 0.08), colour) for s in (-1, 1)),
    ]


BEHIND: Mapping[str, Addition] = {"wings": _wings, "cape": _cape, "rays": _rays, "stilts": _stilts, "plume": _plume}
IN_FRONT: Mapping[str, Addition] = {"belt": _belt, "badge": _badge, "horns": _horns, "propeller": _propeller}
# body, dark, light, additions: away from the world's eight colours
PALETTES: tuple[tuple[RGB, RGB, RGB, RGB], ...] = (
    ((64, 196, 190), (24, 110, 116), (190, 240, 232), (240, 112, 88)), ((176, 208, 48), (96, 120, 24), (228, 242, 150), (84, 60, 150)),
    ((222, 62, 150), (120, 24, 88), (250, 190, 222), (252, 226, 120)), ((74, 78, 92), (36, 38, 48), (170, 176, 190), (252, 180, 40)),
    ((242, 160, 138), (170, 90, 84), (252, 218, 204), (38, 122, 132)), ((172, 158, 216), (96, 84, 140), (226, 218, 246), (112, 122, 48)),
)  # fmt: skip
PLAIN = Individual("plain", ((0, 0, 1),), "light", "round", "none", "white", 1.0, 1.0)
COMPOSED_SEED, NUM_COMPOSED = 62_003, 20


def compose_subject(kind: str, palette: int, behind: str, in_front: str) -> list[Part]:
    """Return the parts of a kind in a palette, with an addition behind it and one in front, within about -1..1."""
    body, dark, light, added = PALETTES[palette]
    paints: Mapping[str, RGB] = {"body": body, "dark": dark, "light": light}
    own = [Part(each.outline, paints.get(each.paint, each.paint) if isinstance(each.paint, str) else each.paint)
           for each in SUBJECT_PARTS[kind](PLAIN)]  # fmt: skip
    points = np.concatenate([each.outline for each in own])
    bounds = (*points.min(0).tolist(), *points.max(0).tolist())
    parts = [*BEHIND[behind](bounds, added), *own, *IN_FRONT[in_front](bounds, added)]
    reach = max(1.0, max(float(np.abs(each.outline).max()) for each in parts))
    return [Part(each.outline / reach, each.paint) for each in parts]


def _composed_subjects() -> dict[str, tuple[str, Callable[[], list[Part]]]]:
    """Return subjects of as many kinds, with all pairs of additions used before one is used again."""
    rng = np.random.default_rng(COMPOSED_SEED)
    kinds, pairs = rng.permutation(list(SUBJECT_PARTS))[:NUM_COMPOSED], rng.permutation([*product(BEHIND, IN_FRONT)])
    return {
        f"{kind} with {behind} and {in_front}": (
            str(kind), partial(compose_subject, str(kind), number % len(PALETTES), str(behind), str(in_front))
        )
        for number, (kind, (behind, in_front)) in enumerate(zip(kinds, pairs, strict=True))
    }  # fmt: skip


COMPOSED_SUBJECTS: Mapping[str, tuple[str, Callable[[], list[Part]]]] = _composed_subjects()
"""As `UNSEEN_SUBJECTS`; the name says the composition."""
