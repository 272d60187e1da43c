"""Five subjects that no model of the pocket world is trained on, each in its own colours: subjects to customise to.

They are individuals of kinds that have a word (an owl is a bird), drawn unlike any of that kind in `subjects.py`. Nothing
here is in `world.sample_shots`: models and judges are trained without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kineograph_lab.world.shapes import Part, band, blob, box, ellipse, polygon

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
