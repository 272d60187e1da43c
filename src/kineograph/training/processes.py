"""Who shares a step out: the processes that `accelerate launch` started, and on a CPU a thread a core in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import nn

from kineograph.training.settings import TrainingSettings

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Processes(NamedTuple):
    """The process among its like, how many walk the network in it, by which `map`, and who draws samples for them."""

    process: PartialState
    walkers: int
    map: Callable[..., Any]
    readers: ThreadPoolExecutor


def current_process() -> PartialState:
    """This process among those that `accelerate launch` or torchrun started, and the device it trains on.

    Call it before anything else asks accelerate: told nothing, that takes processes on a CPU for strangers.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=asked or not torch.accelerator.is_available())


@contextmanager
def start_workers(net: nn.Module, settings: TrainingSettings) -> Iterator[Processes]:
    """The crew for a network, which works until the block is left."""
    process = current_process()
    count = _walkers(net, settings)
    single = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(count, "walk", single) as walkers:
        readers = ThreadPoolExecutor(settings.dataloader_num_workers, "draw", single)
        try:
            yield Processes(process, count, walkers.map if count > 1 else map, readers)
        finally:
            readers.shutdown(cancel_futures=True)


def _walkers(net: nn.Module, settings: TrainingSettings) -> int:
    on_cpu = next(net.parameters()).device.type == "cpu"
    return min(torch.get_num_threads(), settings.train_batch_size) if on_cpu and not uses_dropout(net) else 1


def uses_dropout(net: nn.Module) -> bool:
    """Whether the network draws random numbers of its own, from the one generator that all threads share."""
    return any(isinstance(layer, DROPOUTS) and layer.p > 0 and layer.training for layer in net.modules())
