"""What the pocket models are trained on: a pool of pictures, painted once by all cores and kept on disk.

Painting beside training would take a third of two cores; a pool costs a minute and a gigabyte and a half.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineograph_lab.world import captions, world

SIDE = 128
CAPTIONS = 6  # different captions kept for a picture
CHUNK = 250  # pictures painted by one call of a worker


class Pool(NamedTuple):
    """Pictures and what is in them: uint8 [n, 128, 128, 3], and for each the shot as a dict with its captions."""

    pictures: np.ndarray
    facts: list[Any]


RenderItem = Callable[
    [np.random.Generator, str], tuple[np.ndarray, Any]
]  # of a generator and a split: pixels and facts
Job = tuple[RenderItem, int, int, int, str]


def load_pool(folder: Path, count: int, *, seed: int, split: str, paint: RenderItem | None = None) -> Pool:
    """The pool of this size, seed and split, of what `paint` paints (a picture); painted into `folder` unless there."""
    pictures = folder / f"{split}-{seed}-{count}.npy"
    facts = pictures.with_suffix(".jsonl")
    if not pictures.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _render_all(
            pictures,
            facts,
            [(paint or random_image, n, min(CHUNK, count - n), seed, split) for n in range(0, count, CHUNK)],
        )
    return Pool(np.load(pictures), [json.loads(line) for line in facts.read_text().splitlines()])


def _render_all(pictures: Path, facts: Path, jobs: list[Job]) -> None:
    beside, count = pictures.with_suffix(".part"), sum(size for _, _, size, *_ in jobs)
    one = render_chunk((jobs[0][0], 0, 1, *jobs[0][3:]))[0]
    array = np.lib.format.open_memmap(beside, mode="w+", dtype=one.dtype, shape=(count, *one.shape[1:]))
    with facts.open("w") as file:
        for (_, first, size, *_), (painted, told) in zip(jobs, _rendered_chunks(jobs), strict=True):
            array[first : first + size] = painted
            file.writelines(json.dumps(fact) + "\n" for fact in told)
    array.flush()
    beside.replace(pictures)


def _rendered_chunks(jobs: list[Job]) -> Iterator[tuple[np.ndarray, list[Any]]]:
    if len(jobs) == 1:  # no workers for a handful
        yield render_chunk(jobs[0])
        return
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as workers:
        yield from workers.imap(render_chunk, jobs)


def render_chunk(job: Job) -> tuple[np.ndarray, list[Any]]:
    """Items `first` to `first + size`: each depends on the seed and its own number only."""
    paint, first, size, seed, split = job
    items = [paint(np.random.default_rng((seed, number)), split) for number in range(first, first + size)]
    return np.stack([painted for painted, _ in items]), [fact for _, fact in items]


def random_image(rng: np.random.Generator, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One picture and its facts. Three in four stand as the shot says, the others are caught in motion."""
    shot = world.sample_shot(rng, split=split)
    time = 0.0 if rng.uniform() < 0.75 else rng.uniform(-0.9, 0.9)
    told = [captions.caption_image(shot, rng) for _ in range(CAPTIONS)]
    return world.render(shot, time), {**asdict(shot), "time": time, "captions": told}


def join_pools(one: Pool, other: Pool) -> Pool:
    """Both pools as one, in memory."""
    return Pool(np.concatenate([one.pictures, other.pictures]), one.facts + other.facts)


def shot_from_facts(fact: dict[str, Any]) -> world.Shot:
    """The shot that a picture's facts tell of."""
    things = tuple(world.Subject(**thing) for thing in fact["things"])
    return world.Shot(fact["scene"], fact["style"], things, fact["camera"], fact["backdrop"])


def subject_cells(fact: dict[str, Any], cells: int) -> np.ndarray:
    """Which thing stands in each of cells x cells squares of a picture: its number, -1 for none. int8 [cells, cells]."""
    shot, centres = shot_from_facts(fact), (np.arange(cells) + 0.5) / cells
    there = np.full((cells, cells), -1, np.int8)
    for number, thing in enumerate(shot.things):
        _, (x, y) = world.placement(thing, fact["time"], world.camera_shift(shot, fact["time"]))
        there[np.ix_(abs(centres - y) < thing.size, abs(centres - x) < thing.size)] = number
    return there
