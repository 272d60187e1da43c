"""Deterministic shuffling: the item of a training step depends on the seed, the step and the batch position only.

So a run that was killed resumes without a stored state, and the batches depend neither on the number of processes nor
on the order in which they load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from kineograph.errors import InputError
from kineograph.media.dataset import Dataset
from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.frames import BrokenFile

Sample = TypeVar("Sample")
LoadSample = Callable[[DatasetItem, np.random.Generator], Sample]

ORDER_STREAM, WINDOW_STREAM = 1, 2  # streams of random numbers of one seed
MAX_BROKEN = 1000  # broken items in a row before training gives up: the disk may be gone


def sample_item(
    dataset: Dataset,
    step: int,
    position: int,
    *,
    batch_size: int,
    seed: int,
    load: LoadSample[Sample],
    skipped: MutableMapping[str, str],
) -> Sample:
    """Load the item at one position of a step's batch. May run in several threads and processes.

    Every epoch is a permutation of all items. An item that `load` refuses (BrokenFile) is replaced by the next one in
    the permutation that this batch does not hold: the one that would come to this position a step later.

    Args:
        batch_size: of the whole batch, over all processes.
        load: loads a sample of an item, such as `load_clip` with its sizes bound. Its generator depends on the seed,
            the step and the position only.
        skipped: receives every refused item once, with the reason. It is never read: an item may be intact in one
            window and broken in another, and a resumed run must not depend on what was loaded before.

    Raises InputError when no item can be loaded, with a reason.
    """
    refused: dict[int, str] = {}
    for index in _indices(len(dataset), seed, step * batch_size + position, batch_size):
        if index in refused:
            continue
        try:
            return load(dataset[index], np.random.default_rng((WINDOW_STREAM, seed, step, position)))
        except BrokenFile as error:
            refused[index] = str(error)
            skipped.setdefault(dataset[index].name, str(error))
        if len(refused) == min(len(dataset), MAX_BROKEN):
            break
    reason = next(iter(refused.values()), "it is empty")
    raise InputError(f"nothing can be loaded from the dataset: {len(refused)} of {len(dataset)} were tried. {reason}")


def _indices(count: int, seed: int, position: int, stride: int) -> Iterator[int]:
    """Yield indices of items, from a position in the endless sequence of epochs on."""
    while count:
        epoch, within = divmod(position, count)
        yield int(_permutation(count, seed, epoch)[within])
        position += stride


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(count)
