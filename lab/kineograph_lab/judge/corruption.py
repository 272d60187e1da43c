"""Corrupted anatomy: a subject with a part doubled, missing, or moved off its body.

Each corruption is checked on the label map: it changes the visible parts in the way it says, or another one is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, sin
from typing import NamedTuple

import cv2
import numpy as np

from kineograph_lab.world.anatomy import (
    Anatomy,
    coarsen,
    count_parts,
    expected_parts,
    frame_anatomy,
    nearest_distance,
)
from kineograph_lab.world.shapes import PART_NAMES, Outline, Part
from kineograph_lab.world.world import ShotSpec, camera_shift, placement, subject_parts

CORRUPTIONS = ("doubled", "missing", "moved")
ON_HEAD = ("eye", "ear", "beak", "trunk", "window")  # parts that belong to a head near it
NEAR, NEAR_COVER, NEAR_HEAD = (
    0.06,
    0.25,
    0.35,
)  # margins around a part in which details, hats, and a head's parts belong to it
BODY_SHARE = 0.3  # probability of corrupting a body, relative to that of any other name
SIZE_MARGIN = 1.6  # times the size from which a part is counted: smaller ones are not corrupted
MIN_SHIFT, MAX_SHIFT = 0.25, 1.0  # of doubled parts, in units of the subject
MIN_OFFSET, MAX_OFFSET = 0.3, 1.5  # of moved parts
DOUBLED_DISTANCE = 0.8  # least distance of the two, relative to the square root of their area
MIN_LOOSE_CELLS = 6  # cells of a part that lies beside its subject
TRIES = 40

Rng = np.random.Generator
Transform = Callable[[Outline], Outline]


class Corruption(NamedTuple):
    """The way in which a part is wrong, one of CORRUPTIONS, and the part's name."""

    way: str
    name: str


def corrupt(
    shot: ShotSpec, rng: Rng, way: str, time: float = 0.0, parts_of_subjects: Sequence[list[Part]] | None = None
) -> tuple[list[list[Part]], Corruption] | None:
    """Return the parts of all subjects with one part of the main subject corrupted, None if no attempt is visible.

    parts_of_subjects: the parts to start from, by default those of the shot.
    """
    usual = list(parts_of_subjects or [subject_parts(subject) for subject in shot.things])
    before, parts = frame_anatomy(shot, usual, time), usual[0]
    names = _large_enough(shot, time)
    candidates = [k for k, part in enumerate(parts) if part.name in names]
    for _ in range(TRIES if candidates else 0):
        name = _random_name({parts[k].name for k in candidates}, rng)
        chosen = int(rng.choice([k for k in candidates if parts[k].name == name]))
        group = part_group(parts, chosen)
        corrupted = [CHANGES[way](parts, group, rng), *usual[1:]]
        if _shows(before, frame_anatomy(shot, corrupted, time), way, name):
            return corrupted, Corruption(way, name)
    return None


def _random_name(names: set[str], rng: Rng) -> str:
    choices = sorted(names)
    weights = np.array([BODY_SHARE if name == "body" else 1.0 for name in choices])
    return str(rng.choice(choices, p=weights / weights.sum()))


def _large_enough(shot: ShotSpec, time: float) -> set[str]:
    axes, _ = placement(shot.things[0], time, camera_shift(shot, time))
    size = abs(np.linalg.det(axes)) ** 0.5
    expected = expected_parts(shot.things[0].kind)
    return {name for name, each in expected.items() if size >= SIZE_MARGIN * each.min_size}


def part_group(parts: Sequence[Part], chosen: int) -> list[int]:
    """Return the indices of a part and of what belongs to it: details painted on it, hats; eyes, ears, ... of a head."""
    owners = [_owner(parts, k) for k in range(len(parts))]
    group = {chosen}
    if parts[chosen].name == "head":
        near = [k for k in range(len(parts)) if _is_near(parts, k, chosen, NEAR_HEAD)]
        group |= {
            k for k in near if parts[k].name in ON_HEAD or (parts[k].name not in PART_NAMES and owners[k] is None)
        }
    return sorted(group | {k for k, owner in enumerate(owners) if owner in group})


def _owner(parts: Sequence[Part], k: int) -> int | None:
    """Return the index of the part on which a detail is painted, or a hat put."""
    if parts[k].name in PART_NAMES:
        return None
    margin = NEAR_COVER if parts[k].name else NEAR
    beneath = [each for each in range(k) if parts[each].name in PART_NAMES and _is_near(parts, k, each, margin)]
    return beneath[-1] if beneath else None


def _is_near(parts: Sequence[Part], k: int, other: int, margin: float) -> bool:
    """Return True if the middle of part k is in the other's bounding box, enlarged by the margin."""
    outline, around = parts[k].outline, parts[other].outline
    middle = (outline.min(0) + outline.max(0)) / 2
    return bool((middle > around.min(0) - margin).all() and (middle < around.max(0) + margin).all())


def _double(parts: Sequence[Part], group: list[int], rng: Rng) -> list[Part]:
    """Return the parts with a copy of each of the group in front of it, mirrored, turned or shifted."""
    transform = _random_copy(rng)
    copies = {k: parts[k]._replace(outline=transform(parts[k].outline)) for k in group}
    return [each for k, part in enumerate(parts) for each in ((part, copies[k]) if k in copies else (part,))]


def _random_copy(rng: Rng) -> Transform:
    kind = rng.uniform()
    if kind < 0.45:
        return lambda outline: outline * (-1.0, 1.0)
    if kind < 0.6:
        turn = rng.uniform(0.7, 2 * np.pi - 0.7)
        matrix = np.array([[cos(turn), sin(turn)], [-sin(turn), cos(turn)]])
        return lambda outline: outline @ matrix
    shift = _random_vector(rng, MIN_SHIFT, MAX_SHIFT)
    return lambda outline: outline + shift


def _random_vector(rng: Rng, shortest: float, longest: float) -> np.ndarray:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(shortest, longest)
    return length * np.array([cos(angle), sin(angle)])


def _remove(parts: Sequence[Part], group: list[int], rng: Rng) -> list[Part]:
    return [part for k, part in enumerate(parts) if k not in group]


def _move(parts: Sequence[Part], group: list[int], rng: Rng) -> list[Part]:
    offset = _random_vector(rng, MIN_OFFSET, MAX_OFFSET)
    return [part._replace(outline=part.outline + offset) if k in group else part for k, part in enumerate(parts)]


CHANGES: dict[str, Callable[[Sequence[Part], list[int], Rng], list[Part]]] = {
    "doubled": _double,
    "missing": _remove,
    "moved": _move,
}


def _shows(before: Anatomy, after: Anatomy, way: str, name: str) -> bool:
    """Return True if the frame shows what the corruption says."""
    change = count_parts(after)[name] - count_parts(before)[name]
    more_pieces = count_pieces(after) - count_pieces(before)
    if way == "doubled":
        clear = [each for each in after.instances if each.name == name and each.subject == 0 and each.is_clear]
        apart = DOUBLED_DISTANCE * max((each.area for each in clear), default=0) ** 0.5
        return change == 1 and more_pieces == 0 and nearest_distance(clear) > apart
    if way == "missing":
        return change == -1 and bool((after.subjects == 1).any())  # a subject that is missing as a whole has no anatomy
    return change == 0 and more_pieces > 0


def count_pieces(anatomy: Anatomy, subject: int = 0) -> int:
    """Return the number of pieces of a subject with a gap between them."""
    areas = np.bincount(join_cells(coarsen(anatomy.subjects == subject + 1)).ravel())[1:]
    return int((areas >= MIN_LOOSE_CELLS).sum())


def join_cells(covered: np.ndarray) -> np.ndarray:
    """Return the number of the piece of each cell of a mask, 0 outside of it.

    Gaps of up to two cells do not separate pieces: a boat's sail does not quite touch its mast.
    """
    _, numbers = cv2.connectedComponents(
        cv2.dilate(covered.astype(np.uint8), np.ones((3, 3), np.uint8)), connectivity=8
    )
    return numbers * covered


def is_apart(anatomy: Anatomy, subject: int = 0) -> bool:
    """Return True if neither the border cuts off nor another subject touches the subject: all of its parts are known."""
    cells, others = (
        coarsen(each)
        for each in (anatomy.subjects == subject + 1, (anatomy.subjects > 0) & (anatomy.subjects != subject + 1))
    )
    around = cv2.dilate(cells.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return not (is_cut_by_border(cells) or (around & others).any())


def is_cut_by_border(cells: np.ndarray) -> bool:
    """Return True if a mask reaches the border."""
    return bool(cells[0].any() or cells[-1].any() or cells[:, 0].any() or cells[:, -1].any())
