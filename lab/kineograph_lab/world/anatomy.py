"""Anatomy of rendered frames: label maps, instances of parts, and the number of each part that a kind has.

Names are those that `subjects.py` gives to the parts it draws. All numbers come from the drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kineograph_lab.world.individuals import ACCESSORIES, EYES, sample_individual
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.shapes import COVERS, PART_NAMES, Outline, Part
from kineograph_lab.world.subjects import SUBJECT_PARTS
from kineograph_lab.world.world import ShotSpec, camera_shift, placement, subject_parts

MARGIN = SIDE // 2  # pixels around the frame in which what the border cuts off is measured
CELL = 2  # pixels of a cell of coarse maps
BODY_LABEL = 1  # of bodies, and of details and covers beside every named part
MIN_EXTENT = 3.0  # pixels: square root of the area of the smallest part that is counted
MIN_SPACING = 4.5  # pixels between the centres of two parts of one name that are counted apart
MIN_IN_SIGHT = 0.3  # share of a part's outline that the subject itself leaves in sight
MIN_VISIBLE = 0.5  # share of that which the border and other subjects leave
CANONICAL_SIZE = 0.4  # half-size, in units of the frame, at which a kind's parts are counted


class Instance(NamedTuple):
    """A part of a subject in a frame.

    subject: index in the shot.
    x, y: centre of its visible pixels, in pixels.
    area: visible pixels.
    in_sight: pixels that are visible if the subject is alone in a larger frame.
    outline_area: area of its outline, in pixels.
    """

    name: str
    subject: int
    x: float
    y: float
    area: int
    in_sight: int
    outline_area: float

    @property
    def is_clear(self) -> bool:
        """True if so much of it is visible that it is to be counted."""
        least = max(MIN_EXTENT**2, MIN_VISIBLE * self.in_sight)
        return self.area >= least and self.in_sight >= MIN_IN_SIGHT * self.outline_area


class Anatomy(NamedTuple):
    """Parts in a frame of 128 x 128 pixels.

    labels: uint8 [h, w]: 0 for scenery, k + 1 for PART_NAMES[k]; details and covers beside every named part are body.
    subjects: uint8 [h, w]: 0 for scenery, k for the k-th subject (from 1).
    instances: all parts of which a pixel is visible.
    """

    labels: np.ndarray
    subjects: np.ndarray
    instances: tuple[Instance, ...]


def frame_anatomy(shot: ShotSpec, parts_of_subjects: Sequence[list[Part]], time: float = 0.0) -> Anatomy:
    """Return the anatomy of `render_parts(shot, parts_of_subjects, time)`."""
    shift = camera_shift(shot, time)
    numbers = np.zeros((SIDE, SIDE), np.int32)  # a number for each part of each subject
    labels, subjects = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    drawn: list[tuple[int, int, str, int, float]] = []  # number, subject, name, pixels in sight, area of the outline
    for k, (subject, parts) in enumerate(zip(shot.things, parts_of_subjects, strict=True)):
        axes, centre = placement(subject, time, shift)
        named = [part for part in parts if part.name in PART_NAMES]
        whole = _part_numbers(parts, axes, centre)
        in_sight = np.bincount(whole.ravel(), minlength=len(named) + 2)
        label_of = np.array([0, BODY_LABEL, *(PART_NAMES.index(part.name) + 1 for part in named)], np.uint8)
        framed = whole[MARGIN:-MARGIN, MARGIN:-MARGIN]
        covered, offset = framed > 0, 256 * k
        numbers[covered] = framed[covered] + offset
        labels[covered], subjects[covered] = label_of[framed[covered]], k + 1
        scale = float(abs(np.linalg.det(axes))) * SIDE**2
        drawn += [
            (n + 2 + offset, k, part.name, int(in_sight[n + 2]), _area(part.outline) * scale)
            for n, part in enumerate(named)
        ]
    return Anatomy(labels, subjects, tuple(_measure(numbers, drawn)))


def shot_anatomy(shot: ShotSpec, time: float = 0.0) -> Anatomy:
    """Return the anatomy of `render(shot, time)`."""
    return frame_anatomy(shot, [subject_parts(subject) for subject in shot.things], time)


def _part_numbers(parts: list[Part], axes: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Return each pixel's part in the enlarged frame: 0 none, 1 details and covers, n + 2 the n-th named part."""
    image = Image.new("L", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN))
    draw = ImageDraw.Draw(image)

    def fill(part: Part, number: int) -> None:
        points = (part.outline @ axes + centre) * SIDE - 0.5 + MARGIN
        draw.polygon(points.ravel().tolist(), fill=number)

    for part in parts:  # details do not hide what they are painted on
        if not part.name:
            fill(part, 1)
    number = 1
    for part in parts:
        if part.name:
            number += part.name in PART_NAMES
            fill(part, 1 if part.name in COVERS else number)
    return np.asarray(image, np.int32)


def _area(outline: Outline) -> float:
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _measure(numbers: np.ndarray, drawn: list[tuple[int, int, str, int, float]]) -> list[Instance]:
    flat, (rows, columns) = numbers.ravel(), np.indices(numbers.shape)
    length = max((number for number, *_ in drawn), default=0) + 1
    area, down, across = (
        np.bincount(flat, weights=each, minlength=length) for each in (None, rows.ravel(), columns.ravel())
    )
    return [
        Instance(
            name,
            subject,
            float(across[n] / area[n]) + 0.5,
            float(down[n] / area[n]) + 0.5,
            int(area[n]),
            in_sight,
            outline,
        )
        for n, subject, name, in_sight, outline in drawn
        if area[n]
    ]


def count_parts(anatomy: Anatomy, subject: int = 0) -> dict[str, int]:
    """Return the number of clear instances of each name, 0 if there is none."""
    names = [each.name for each in anatomy.instances if each.subject == subject and each.is_clear]
    return {name: names.count(name) for name in PART_NAMES}


def coarsen(labels: np.ndarray) -> np.ndarray:
    """Return labels of cells, the largest of their pixels' labels: thin parts stay whole."""
    side = len(labels) // CELL
    return labels.reshape(side, CELL, side, CELL).max((1, 3))


class Expectation(NamedTuple):
    """The number of a kind's parts of one name: least and most over its individuals.

    min_size: half-size of the subject, in units of the frame, from which each of them is counted.
    """

    least: int
    most: int
    min_size: float


@cache
def expected_parts(kind: str) -> dict[str, Expectation]:
    """Return the expected number of each part that the kind's drawing names."""
    frames = [_canonical_anatomy(kind, accessory, eyes) for accessory in dict.fromkeys(ACCESSORIES) for eyes in EYES]
    counts = [count_parts(frame) for frame in frames]
    found = {}
    for name in PART_NAMES:
        numbers = [count[name] for count in counts]
        if max(numbers):
            found[name] = Expectation(min(numbers), max(numbers), max(_min_size(frame, name) for frame in frames))
    return found


def _canonical_anatomy(kind: str, accessory: str = "none", eyes: str = "round") -> Anatomy:
    individual = replace(sample_individual(0), pattern="plain", accessory=accessory, eyes=eyes, length=1.0, height=1.0)
    parts = SUBJECT_PARTS[kind](individual)
    image = _part_numbers(parts, CANONICAL_SIZE * np.eye(2), (0.5, 0.5))[MARGIN:-MARGIN, MARGIN:-MARGIN]
    named = [part for part in parts if part.name in PART_NAMES]
    in_sight = np.bincount(image.ravel(), minlength=len(named) + 2)
    scale = (CANONICAL_SIZE * SIDE) ** 2
    drawn = [(n + 2, 0, part.name, int(in_sight[n + 2]), _area(part.outline) * scale) for n, part in enumerate(named)]
    return Anatomy((image > 0).astype(np.uint8), (image > 0).astype(np.uint8), tuple(_measure(image, drawn)))


def _min_size(anatomy: Anatomy, name: str) -> float:
    clear = [each for each in anatomy.instances if each.name == name and each.is_clear]
    if not clear:
        return 0.0
    extent = min(each.area for each in clear) ** 0.5
    return CANONICAL_SIZE * max(MIN_EXTENT / extent, MIN_SPACING / nearest_distance(clear))


def nearest_distance(instances: Sequence[Instance]) -> float:
    """Return the least distance between two centres, in pixels; infinite for a single one."""
    centres = np.array([(each.x, each.y) for each in instances])
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    return float(distances[~np.eye(len(centres), dtype=bool)].min(initial=np.inf))


@cache
def canonical_cells(kind: str) -> int:
    """Return the number of cells that a subject of the kind covers at CANONICAL_SIZE."""
    return int((coarsen(_canonical_anatomy(kind).labels) > 0).sum())


def estimate_size(kind: str, cells: float) -> float:
    """Return the half-size, in units of the frame, of a subject that covers so many cells."""
    return CANONICAL_SIZE * (cells / canonical_cells(kind)) ** 0.5
