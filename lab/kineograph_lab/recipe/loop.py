"""One training loop for all stages: boxed in time, resumed after a kill, averaged.

On a CPU a batch is shared out to one thread a core, each walking the network alone: threads inside an operation wait
for one another at every layer, and when anything else runs on the machine that wait costs thirty times the work.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from kineograph.training.muon import Optimisers, hand_over_gradients, optimisers
from torch import Tensor, nn

from kineograph.models.placement import choose_placement

Batch = tuple[Tensor, ...]
Net = TypeVar("Net", bound=nn.Module)
Loss = Callable[[Net, Batch], dict[str, Tensor]]
Metrics = dict[str, float]
SampleBatch = Callable[[np.random.Generator, float], Batch]  # of a step's random numbers and the progress

CHECKPOINT_SECONDS = 240.0
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
LOG_SECONDS = 20.0


@dataclass(frozen=True)
class StagePlan:
    """How long and how fast a stage trains; `steps`, where given, counts instead of `minutes`.

    With `steps` the learning rate depends on the step alone, however many sessions a stage takes.

    decay: the last part of the stage in which the learning rate falls to zero; it is constant before.
    report_steps: the steps between two reports; with every checkpoint where it is not given.
    """

    minutes: float
    lr: float
    batch: int
    steps: int | None = None
    warmup: int = 50
    weight_decay: float = 0.01
    momentum: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0
    decay: float = 1.0
    report_steps: int | None = None

    def progress(self, step: int, seconds: float) -> float:
        """How much of the stage is over: 0 to 1."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate: a linear warm-up, and a linear fall to zero over the stage's last part."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, 1 - progress) / self.decay)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, instead of giving it back and faulting it in again.

    A third of the autoencoder's training went into page faults here. Elsewhere than on Linux this does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_autocast(device: torch.device) -> torch.autocast:
    """Networks compute in bfloat16 within: on a CPU without units for it in float32, several times faster there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_placement(device).dtype != torch.float32)


def train_loop(
    net: Net,
    plan: StagePlan,
    folder: Path,
    *,
    draw: SampleBatch,
    loss: Loss[Net],
    report: Callable[[Net], Metrics],
) -> Net:
    """Train `net` where it is and return its averaged weights (EMA) as a network of its own.

    Args:
        draw: a batch from the step's generator and the progress; every random number of the step is drawn in it.
        loss: named losses of a share of the batch, means over it; their sum is descended.
        report: figures of the averaged network, told with every checkpoint.
    """
    keep_freed_memory()
    cores = _num_workers(next(net.parameters()).device)
    workers = ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1))
    average = copy.deepcopy(net).requires_grad_(requires_grad=False).eval()
    ways = optimisers(net, plan.lr, momentum=plan.momentum, decay=plan.weight_decay, cores=cores)
    step, seconds = _resume(folder, net, average, ways)
    begun = time.monotonic() - seconds
    kept, told = begun + seconds, begun + seconds
    while (progress := plan.progress(step, time.monotonic() - begun)) < 1:
        losses = _accumulate_gradients(
            net, loss, _split(draw(np.random.default_rng((plan.seed, step)), progress), cores), workers
        )
        _step_optimisers(net, ways, plan, plan.rate(step, progress), workers)
        _update_average(average, net, min(plan.ema, (1 + step) / (10 + step)))
        step, now = step + 1, time.monotonic()
        if now - told > LOG_SECONDS:
            log_metrics(folder, {"step": step, "seconds": now - begun, "lr": plan.rate(step, progress), **losses})
            told = now
        due = plan.report_steps is not None and step % plan.report_steps == 0
        if due or now - kept > CHECKPOINT_SECONDS:
            _save_checkpoint(folder, net, average, ways, step, now - begun)
            figures = report(average) if due or plan.report_steps is None else {}
            log_metrics(folder, {"step": step, "seconds": now - begun, "seen": step * plan.batch, **figures})
            kept = time.monotonic()
    seconds = time.monotonic() - begun
    _save_checkpoint(folder, net, average, ways, step, seconds)
    log_metrics(folder, {"step": step, "seconds": seconds, "seen": step * plan.batch, "end": 1.0, **report(average)})
    return average


def _num_workers(device: torch.device) -> int:
    """How many threads walk the network: one a core, or one for a GPU."""
    return 1 if device.type == "cuda" else os.cpu_count() or 1


def _split(batch: Batch, count: int) -> list[Batch]:
    return list(zip(*(t.chunk(count) for t in batch), strict=True))


def _accumulate_gradients(net: Net, loss: Loss[Net], shares: list[Batch], workers: ThreadPoolExecutor) -> Metrics:
    """Add the gradients of all shares to the network, a share a worker; the mean losses."""
    device = next(net.parameters()).device

    def share(part: Batch) -> Metrics:
        with bf16_autocast(device):
            losses = loss(net, tuple(t.to(device) for t in part))
        (sum(losses.values(), torch.zeros((), device=device)) / len(shares)).backward()
        return {name: float(value.detach()) / len(shares) for name, value in losses.items()}

    figures = list(workers.map(share, shares))
    return {name: sum(f[name] for f in figures) for name in figures[0]}


def _step_optimisers(
    net: nn.Module, ways: Optimisers, plan: StagePlan, rate: float, workers: ThreadPoolExecutor
) -> None:
    """Step every optimiser, side by side."""
    nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
    hand_over_gradients(ways.matrices)
    for group in (group for way in ways.each for group in way.param_groups):
        group["lr"] = rate
    list(workers.map(lambda way: way.step(), ways.each))
    net.zero_grad()


@torch.no_grad()
def _update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)


def log_metrics(folder: Path, figures: Metrics) -> None:
    """Add a line to the stage's log, and to standard output."""
    line = json.dumps({"stage": folder.name, **{name: float(f"{value:.5g}") for name, value in figures.items()}})
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)  # noqa: T201


def _save_checkpoint(
    folder: Path, net: nn.Module, average: nn.Module, ways: Optimisers, step: int, seconds: float
) -> None:
    kept = {"net": net.state_dict(), "average": average.state_dict(), "ways": [w.state_dict() for w in ways.each]}
    torch.save({**kept, "step": step, "seconds": seconds}, folder / "checkpoint.part")
    (folder / "checkpoint.part").replace(folder / "checkpoint.pt")


def _resume(folder: Path, net: nn.Module, average: nn.Module, ways: Optimisers) -> tuple[int, float]:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint.pt").exists():
        return 0, 0.0
    kept = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(kept["net"])
    average.load_state_dict(kept["average"])
    for way, state in zip(ways.each, kept["ways"], strict=True):
        way.load_state_dict(state)
    return kept["step"], kept["seconds"]
