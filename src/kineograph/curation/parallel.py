"""Work on many things: one after another here, or side by side on Ray Data, on this machine or on a cluster.

Tasks and results are texts, so that nothing but they and the work itself travels.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from kineograph.errors import InputError

Work = Callable[[str], str]

BLOCKS = 10_000  # at most so many parts that tasks are handed out in


class Workers(NamedTuple):
    """How many processes work side by side, None for as many as fit, and how many cores and GPUs each holds.

    With a number, processes stay: what they have loaded is loaded once.
    """

    processes: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


ParallelMap = Callable[[Work, Sequence[str], Workers], Iterator[str]]


@dataclass(frozen=True)
class RayTask:
    """What Ray calls with a row."""

    work: Work

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        """The row with the work's result, or with what it says to people: Ray keeps no more than the text of errors."""
        try:
            return {"done": self.work(row["task"]), "refused": "", "failed": ""}
        except InputError as error:
            return {"done": "", "refused": str(error), "failed": ""}
        except OSError as error:
            return {"done": "", "refused": "", "failed": str(error)}


@contextmanager
def sequential_map() -> Iterator[ParallelMap]:
    """Work in this process, one task after another."""
    yield lambda work, tasks, crew: map(work, tasks)


@contextmanager
def ray_map() -> Iterator[ParallelMap]:
    """Work on Ray Data, where RAY_ADDRESS says as everywhere in Ray, without it on this machine; results as they come.

    Ray is begun with the first task, and ended here unless it ran before. Spreading raises InputError when Ray is not
    installed, and what the work raises of InputError and OSError.
    """
    with ExitStack() as held:
        yield partial(_spread, held)


def _spread(held: ExitStack, work: Work, tasks: Sequence[str], crew: Workers) -> Iterator[str]:
    if not tasks:
        return
    ray = _begun(held)
    rows = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=min(len(tasks), BLOCKS))
    for row in _mapped(rows, RayTask(work), crew).iter_rows():
        if row["refused"]:
            raise InputError(row["refused"])
        if row["failed"]:
            raise OSError(row["failed"])
        yield row["done"]


def _mapped(rows: Any, worker: RayTask, crew: Workers) -> Any:
    held = {"num_cpus": crew.cpus, "num_gpus": crew.gpus}
    if crew.processes is None:
        return rows.map(worker.__call__, **held)
    return rows.map(RayTask, fn_constructor_args=(worker.work,), concurrency=crew.processes, **held)


def _begun(held: ExitStack) -> Any:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine takes longer than its 30 s
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "work is spread by Ray Data, which is not installed: pip install 'kineograph[data]', or set run: alone"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own settings
        if not ray.is_initialized():
            elsewhere = os.environ.get("RAY_ADDRESS")
            ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=None if elsewhere else False)
            held.callback(ray.shutdown)
        ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
