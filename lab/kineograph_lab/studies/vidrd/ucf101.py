"""UCF-101 without training on it, as VidRD's table has it: which videos to make, and how they are scored.

One prompt, written by hand, for each of the 101 classes; 10,000 videos of 16 frames, as many of a class as the training
set has in proportion; FVD against the real videos and IS, the one customarily by an I3D trained on Kinetics, the other
by a C3D trained on UCF-101 (the paper names neither file). The prompts are not published: they come from a user's file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kineograph.errors import InputError, InputWarning
from kineograph.metrics.collection import first_value, read_rows

CLASSES, VIDEOS, FRAMES = 101, 10_000, 16
LABELS, PROMPTS, COUNTS = ("class", "label"), ("prompt", "caption", "text"), ("count", "videos")


class Action(NamedTuple):
    """A class: its name, the prompt that describes it, and how many videos the training set has of it."""

    label: str
    prompt: str
    videos: int


class Asked(NamedTuple):
    """A video to make. number: from 0 on, in the order of the classes; the seed is the first one and the number."""

    number: int
    label: str
    prompt: str
    seed: int


def read_actions(path: str | Path) -> list[Action]:
    """The classes of a .csv or .jsonl with the columns class, prompt and count.

    Warns (InputWarning) when they are not 101. Raises InputError that names the line with something missing, a count
    that is no whole number above 0, or a class that was there before.
    """
    path, found = Path(path).expanduser(), dict[str, Action]()
    for where, row in read_rows(path):
        label, prompt, count = (first_value(row, columns) for columns in (LABELS, PROMPTS, COUNTS))
        if not label or not prompt or not count.isdecimal() or int(count) < 1:
            raise InputError(f"{where}: expected a class, its prompt and a count of videos above 0, got {row}")
        if label in found:
            raise InputError(f"{where}: the class {label} was there before")
        found[label] = Action(label, prompt, int(count))
    if not found:
        raise InputError(f"{path} holds no classes: expected rows of a class, its prompt and a count")
    if len(found) != CLASSES:
        text = f"{path} has {len(found)} classes and UCF-101 has {CLASSES}: the scores are not those of its protocol"
        warnings.warn(text, InputWarning, stacklevel=2)
    return list(found.values())


def shares(counts: Sequence[int], total: int = VIDEOS) -> list[int]:
    """So many in all, in proportion to the counts: rounded down, the largest remainders up (the first of equals)."""
    exact = np.array(counts, dtype=np.float64) * total / sum(counts)
    whole = np.floor(exact).astype(int)
    most = np.argsort(-(exact - whole), kind="stable")[: total - whole.sum()]
    whole[most] += 1
    return whole.tolist()


def asked(actions: Sequence[Action], videos: int = VIDEOS, first_seed: int = 0) -> Iterator[Asked]:
    """The videos to make, class after class, each with a seed of its own."""
    number = 0
    for action, count in zip(actions, shares([each.videos for each in actions], videos), strict=True):
        for _ in range(count):
            yield Asked(number, action.label, action.prompt, first_seed + number)
            number += 1
