"""Parallel maps: one task after another in this process, or on Ray Data, on this machine or on a cluster.

Tasks and results are texts, so that only they and the work itself travel between processes.
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

MAX_BLOCKS = 10_000  # of Ray Data


class Workers(NamedTuple):
    """Number of parallel workers, None for as many as fit, and the cores and GPUs of each.

    With a number, workers are long-lived: models are loaded once in each.
    """

    processes: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


ParallelMap = Callable[[Work, Sequence[str], Workers], Iterator[str]]


@dataclass(frozen=True)
class RayTask:
    """A callable for Ray Data that applies the work to a row."""

    work: Work

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        """Return the result as a row, or the message of an error: Ray keeps no more than the text of exceptions."""
        try:
            return {"done": self.work(row["task"]), "refused": "", "failed": ""}
        except InputError as error:
            return {"done": "", "refused": str(error), "failed": ""}
        except OSError as error:
            return {"done": "", "refused": "", "failed": str(error)}
        except MemoryError:
            return {
                "done": "",
                "refused": "a worker is out of memory: set run: alone, or fewer processes",
                "failed": "",
            }


@contextmanager
def sequential_map() -> Iterator[ParallelMap]:
    """Yield a map that works in this process, one task after another."""
    yield lambda work, tasks, workers: map(work, tasks)


@contextmanager
def ray_map() -> Iterator[ParallelMap]:
    """Yield a map on Ray Data, on the cluster of RAY_ADDRESS or on this machine; results come in any order.

    Ray starts with the first task, and is shut down here unless it ran before. The map raises InputError when Ray is
    not installed, and the InputErrors and OSErrors of the work.
    """
    with ExitStack() as stack:
        yield partial(_map_on_ray, stack)


def _map_on_ray(stack: ExitStack, work: Work, tasks: Sequence[str], workers: Workers) -> Iterator[str]:
    if not tasks:
        return
    ray = _start_ray(stack)
    rows = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=min(len(tasks), MAX_BLOCKS))
    task, resources = RayTask(work), {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
    if workers.processes is None:
        results = rows.map(task.__call__, **resources)
    else:
        results = rows.map(RayTask, fn_constructor_args=(work,), concurrency=workers.processes, **resources)
    for row in results.iter_rows():
        if row["refused"]:
            raise InputError(row["refused"])
        if row["failed"]:
            raise OSError(row["failed"])
        yield row["done"]


def _start_ray(stack: ExitStack) -> Any:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to its makers
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine takes longer than its 30 s
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "parallel work needs Ray Data, which is not installed: pip install 'kineograph[data]', or set run: alone"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own settings
        if not ray.is_initialized():
            elsewhere = os.environ.get("RAY_ADDRESS")
            ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=None if elsewhere else False)
            stack.callback(ray.shutdown)
        ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray
