"""Processes and threads that share a training step: those of `accelerate launch`, and on a CPU one thread a core."""

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
    """This process and its threads.

    process: its rank and the number of processes.
    threads: how many threads compute gradients in this process.
    map: runs a function in those threads, as the builtin `map` does.
    loaders: the threads that load batches ahead.
    """

    process: PartialState
    threads: int
    map: Callable[..., Any]
    loaders: ThreadPoolExecutor


def current_process() -> PartialState:
    """Return this process among those that `accelerate launch` or torchrun started, with the device it trains on.

    Call it before any other use of accelerate, which otherwise treats processes on a CPU as unrelated.
    """
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


@contextmanager
def start_workers(net: nn.Module, settings: TrainingSettings) -> Iterator[Processes]:
    """Start the threads that train a network, for as long as the block lasts."""
    process = current_process()
    on_cpu = next(net.parameters()).device.type == "cpu"
    count = min(torch.get_num_threads(), settings.train_batch_size) if on_cpu and not uses_dropout(net) else 1
    single = partial(torch.set_num_threads, 1)
    with ThreadPoolExecutor(count, "gradients", single) as workers:
        loaders = ThreadPoolExecutor(settings.dataloader_num_workers, "loader", single)
        try:
            yield Processes(process, count, workers.map if count > 1 else map, loaders)
        finally:
            loaders.shutdown(cancel_futures=True)


def uses_dropout(net: nn.Module) -> bool:
    """Return True if the network draws random numbers itself, from the one generator that all threads share."""
    return any(isinstance(layer, DROPOUTS) and layer.p > 0 and layer.training for layer in net.modules())
