"""UCF-101 zero-shot protocol of VidRD's table: the videos to generate, and their metrics.

One prompt, written by hand, for each of the 101 classes; 10,000 videos of 16 frames, with classes as frequent as in the
training set; FVD against the real videos, customarily by an I3D trained on Kinetics, and IS, by a C3D trained on
UCF-101 (the paper names neither file). The prompts are not published; they come from a user's file.
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
    """A class: its name, its prompt, and the number of its videos in the training set."""

    label: str
    prompt: str
    videos: int


class BenchmarkVideo(NamedTuple):
    """A video to generate. `number` counts from 0 in the order of the classes; the seed is the first seed + number."""

    number: int
    label: str
    prompt: str
    seed: int


def read_actions(path: str | Path) -> list[Action]:
    """Read the classes from a .csv or .jsonl with the columns class, prompt and count.

    Warns (InputWarning) if there are not 101. Raises InputError, with the line, for a missing value, a count that is
    not a positive integer, or a repeated class.
    """
    path, actions = Path(path).expanduser(), dict[str, Action]()
    for where, row in read_rows(path):
        label, prompt, count = (first_value(row, columns) for columns in (LABELS, PROMPTS, COUNTS))
        if not label or not prompt or not count.isdecimal() or int(count) < 1:
            raise InputError(f"{where}: expected a class, its prompt and a count of videos above 0, got {row}")
        if label in actions:
            raise InputError(f"{where}: the class {label} was there before")
        actions[label] = Action(label, prompt, int(count))
    if not actions:
        raise InputError(f"{path} holds no classes: expected rows of a class, its prompt and a count")
    if len(actions) != CLASSES:
        text = f"{path} has {len(actions)} classes and UCF-101 has {CLASSES}: the scores are not those of its protocol"
        warnings.warn(text, InputWarning, stacklevel=2)
    return list(actions.values())


def allocate_videos(counts: Sequence[int], total: int = VIDEOS) -> list[int]:
    """Split `total` in proportion to the counts, by largest remainders (the first of equals)."""
    exact = np.array(counts, dtype=np.float64) * total / sum(counts)
    whole = np.floor(exact).astype(int)
    most = np.argsort(-(exact - whole), kind="stable")[: total - whole.sum()]
    whole[most] += 1
    return whole.tolist()


def benchmark_videos(actions: Sequence[Action], videos: int = VIDEOS, first_seed: int = 0) -> Iterator[BenchmarkVideo]:
    """Yield the videos to generate, class by class, each with its own seed."""
    number = 0
    for action, count in zip(actions, allocate_videos([each.videos for each in actions], videos), strict=True):
        for _ in range(count):
            yield BenchmarkVideo(number, action.label, action.prompt, first_seed + number)
            number += 1
