"""Pools of training data: images or clips, rendered once by all cores and kept on disk.

Rendering beside training would take a third of two cores; a pool costs a minute and a gigabyte and a half. The keys of
facts are a file format.
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
CAPTIONS = 6  # different captions of an image
CHUNK = 250  # items rendered by one call of a worker


class Pool(NamedTuple):
    """Arrays and facts: uint8 [n, 128, 128, 3] images (or latents, or clips), and each one's shot as a dict with captions."""

    items: np.ndarray
    facts: list[Any]


RenderItem = Callable[[np.random.Generator, str], tuple[np.ndarray, Any]]  # generator and split -> array and facts
Job = tuple[RenderItem, int, int, int, str]


def load_pool(folder: Path, count: int, *, seed: int, split: str, render: RenderItem | None = None) -> Pool:
    """Return the pool of this size, seed and split, made by `render` (by default images) into `folder` if missing."""
    array_file = folder / f"{split}-{seed}-{count}.npy"
    facts = array_file.with_suffix(".jsonl")
    if not array_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _render_all(
            array_file,
            facts,
            [(render or random_image, n, min(CHUNK, count - n), seed, split) for n in range(0, count, CHUNK)],
        )
    return Pool(np.load(array_file), [json.loads(line) for line in facts.read_text().splitlines()])


def _render_all(array_file: Path, facts: Path, jobs: list[Job]) -> None:
    part_file, count = array_file.with_suffix(".part"), sum(size for _, _, size, *_ in jobs)
    first_item = render_chunk((jobs[0][0], 0, 1, *jobs[0][3:]))[0]
    array = np.lib.format.open_memmap(
        part_file, mode="w+", dtype=first_item.dtype, shape=(count, *first_item.shape[1:])
    )
    with facts.open("w") as file:
        for (_, first, size, *_), (arrays, item_facts) in zip(jobs, _rendered_chunks(jobs), strict=True):
            array[first : first + size] = arrays
            file.writelines(json.dumps(fact) + "\n" for fact in item_facts)
    array.flush()
    part_file.replace(array_file)


def _rendered_chunks(jobs: list[Job]) -> Iterator[tuple[np.ndarray, list[Any]]]:
    if len(jobs) == 1:  # no worker processes for few items
        yield render_chunk(jobs[0])
        return
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as workers:
        yield from workers.imap(render_chunk, jobs)


def render_chunk(job: Job) -> tuple[np.ndarray, list[Any]]:
    """Return items `first` to `first + size`; each depends on the seed and its own number only."""
    render, first, size, seed, split = job
    items = [render(np.random.default_rng((seed, number)), split) for number in range(first, first + size)]
    return np.stack([array for array, _ in items]), [fact for _, fact in items]


def random_image(rng: np.random.Generator, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return an image and its facts. Three in four are at time 0, the others at a random time of their motion."""
    shot = world.sample_shot(rng, split=split)
    time = 0.0 if rng.uniform() < 0.75 else rng.uniform(-0.9, 0.9)
    texts = [captions.caption_image(shot, rng) for _ in range(CAPTIONS)]
    return world.render(shot, time), {**asdict(shot), "time": time, "captions": texts}


def join_pools(first: Pool, second: Pool) -> Pool:
    """Return both pools as one, in memory."""
    return Pool(np.concatenate([first.items, second.items]), first.facts + second.facts)


def shot_from_facts(fact: dict[str, Any]) -> world.ShotSpec:
    """Return the shot of an item's facts."""
    subjects = tuple(world.Subject(**fields) for fields in fact["things"])
    return world.ShotSpec(fact["scene"], fact["style"], subjects, fact["camera"], fact["backdrop"])


def subject_cells(fact: dict[str, Any], cells: int) -> np.ndarray:
    """Return the index of the subject in each cell of an image, -1 for none, int8 [cells, cells]."""
    shot, centres = shot_from_facts(fact), (np.arange(cells) + 0.5) / cells
    cells_subject = np.full((cells, cells), -1, np.int8)
    for number, subject in enumerate(shot.things):
        _, (x, y) = world.placement(subject, fact["time"], world.camera_shift(shot, fact["time"]))
        cells_subject[np.ix_(abs(centres - y) < subject.size, abs(centres - x) < subject.size)] = number
    return cells_subject
