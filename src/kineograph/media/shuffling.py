"""Which item a step of training sees: told by the seed, the step and the place in the batch, and by nothing else.

So a run that was killed goes on as if it had not been, without keeping where it was; and so it matters neither how
many processes share a batch nor in which order they come to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from kineograph.errors import InputError
from kineograph.media.dataset import Dataset
from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.seek import BrokenFile

Seen = TypeVar("Seen")
Cut = Callable[[DatasetItem, np.random.Generator], Seen]

ORDER, WINDOW = 1, 2  # two streams of random numbers of one seed
PATIENCE = 1000  # broken items in a row before training gives up: the disk may have gone


def draw(
    dataset: Dataset,
    step: int,
    places: Sequence[int],
    *,
    batch: int,
    seed: int,
    cut: Cut[Seen],
    skipped: MutableMapping[str, str],
) -> list[Seen]:
    """What a process trains on in this step: what `cut` makes of the item at each of its places, in their order.

    Every epoch is a permutation of all items. In place of one that `cut` refuses (BrokenFile) comes the next in the
    permutation that this batch does not hold anyway: the one that would come to this place a step later.

    Args:
        places: a process's share of range(batch), see `share`.
        batch: places in the whole batch, of all processes.
        cut: what is seen of an item, such as `clip` with its sizes bound; its generator depends on the place only.
        skipped: every item that was refused is entered once, with the reason. It is never read: an item may be sound
            in one window and broken in another, and a run that goes on must not depend on what it saw before.

    Raises InputError when nothing can be drawn any more, with a reason.
    """
    return [sample_item(dataset, step, place, batch=batch, seed=seed, cut=cut, skipped=skipped) for place in places]


def share(batch: int, rank: int, processes: int) -> range:
    """The places of a batch that process `rank` of so many takes."""
    return range(rank, batch, processes)


def sample_item(
    dataset: Dataset,
    step: int,
    place: int,
    *,
    batch: int,
    seed: int,
    cut: Cut[Seen],
    skipped: MutableMapping[str, str],
) -> Seen:
    """What is at one place of one step; see `draw`. Places may be drawn in threads of their own."""
    refused: dict[int, str] = {}
    for number in _numbers(len(dataset), seed, step * batch + place, batch):
        if number in refused:
            continue
        try:
            return cut(dataset[number], np.random.default_rng((WINDOW, seed, step, place)))
        except BrokenFile as error:
            refused[number] = str(error)
            skipped.setdefault(dataset[number].name, str(error))
        if len(refused) == min(len(dataset), PATIENCE):
            break
    reason = next(iter(refused.values()), "it is empty")
    raise InputError(f"nothing can be drawn from the dataset: {len(refused)} of {len(dataset)} were tried. {reason}")


def _numbers(count: int, seed: int, position: int, stride: int) -> Iterator[int]:
    """Numbers of items, from a position in the endless row of epochs on."""
    while count:
        epoch, within = divmod(position, count)
        yield int(_permutation(count, seed, epoch)[within])
        position += stride


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((ORDER, seed, epoch)).permutation(count)
