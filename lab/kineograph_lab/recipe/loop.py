"""Training loop of all stages: bounded in steps or minutes, resumed from its checkpoint, with averaged weights.

On a CPU a batch is divided over one thread a core, and each thread runs the network on its own part: threads inside an
operation wait for one another at every layer, and when anything else runs on the machine that wait costs thirty times
the work. The checkpoint is plain data; its keys are a file format.
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
from torch import Tensor, nn

from kineograph.models.placement import choose_placement
from kineograph.training.optimisers import Hyperparameters, Optimisers, adamw_and_muon, assign_gradients, muon_names

Batch = tuple[Tensor, ...]
Net = TypeVar("Net", bound=nn.Module)
Loss = Callable[[Net, Batch], dict[str, Tensor]]
Metrics = dict[str, float]
SampleBatch = Callable[[np.random.Generator, float], Batch]  # the step's generator, progress 0..1 -> the step's batch

CHECKPOINT_SECONDS = 240.0
LOG_SECONDS = 20.0
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
MATRIX_LAYERS = (nn.Linear, nn.Conv2d)  # whose weights Muon updates; part of the checkpoint's format


@dataclass(frozen=True)
class StagePlan:
    """Duration and hyperparameters of a stage; `steps`, if given, replaces `minutes`.

    With `steps` the learning rate depends on the step alone, however many sessions a stage takes.

    weight_decay: of the weights that Muon updates.
    momentum: AdamW's betas.
    ema: decay of the weights' moving average.
    clip: largest norm of the gradient.
    decay: last part of the stage, over which the learning rate falls to zero; it is constant before.
    report_steps: steps between two reports; without it, a report with every checkpoint.
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
        """Return the finished part of the stage, 0 to 1."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def learning_rate(self, step: int, progress: float) -> float:
        """Return the learning rate: linear warm-up, then linear fall to zero over the stage's last part."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, 1 - progress) / self.decay)


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory in the next step instead of returning it to the system.

    A third of the autoencoder's training went into page faults here. On systems other than Linux this does nothing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16, disabled on a CPU without units for it: float32 is several times faster there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_placement(device).dtype != torch.float32)


def train_loop(
    net: Net,
    plan: StagePlan,
    folder: Path,
    *,
    sample_batch: SampleBatch,
    loss: Loss[Net],
    report: Callable[[Net], Metrics],
) -> Net:
    """Train `net` in place and return a copy with its averaged weights (EMA).

    Args:
        sample_batch: the step's generator and the progress to a batch; every random number of the step comes from that
            generator.
        loss: named losses of a part of the batch, means over it; their sum is minimised.
        report: metrics of the averaged network, logged with checkpoints.
    """
    keep_freed_memory()
    cores = _num_workers(next(net.parameters()).device)
    workers = ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1))
    average = copy.deepcopy(net).requires_grad_(requires_grad=False).eval()
    numbers = Hyperparameters(plan.lr, plan.momentum, 1e-8, adamw_decay=0.0, muon_decay=plan.weight_decay)
    optimisers = adamw_and_muon(net, muon_names(net, MATRIX_LAYERS), numbers, cores)
    step, seconds = _resume(folder, net, average, optimisers)
    start = time.monotonic() - seconds
    last_checkpoint, last_log = start + seconds, start + seconds
    while (progress := plan.progress(step, time.monotonic() - start)) < 1:
        batch = sample_batch(np.random.default_rng((plan.seed, step)), progress)
        losses = _accumulate_gradients(net, loss, _split(batch, cores), workers)
        _step_optimisers(net, optimisers, plan, plan.learning_rate(step, progress), workers)
        _update_average(average, net, min(plan.ema, (1 + step) / (10 + step)))
        step, now = step + 1, time.monotonic()
        if now - last_log > LOG_SECONDS:
            learning_rate = plan.learning_rate(step, progress)
            log_metrics(folder, {"step": step, "seconds": now - start, "lr": learning_rate, **losses})
            last_log = now
        due = plan.report_steps is not None and step % plan.report_steps == 0
        if due or now - last_checkpoint > CHECKPOINT_SECONDS:
            _save_checkpoint(folder, net, average, optimisers, step, now - start)
            metrics = report(average) if due or plan.report_steps is None else {}
            log_metrics(folder, {"step": step, "seconds": now - start, "seen": step * plan.batch, **metrics})
            last_checkpoint = time.monotonic()
    seconds = time.monotonic() - start
    _save_checkpoint(folder, net, average, optimisers, step, seconds)
    log_metrics(folder, {"step": step, "seconds": seconds, "seen": step * plan.batch, "end": 1.0, **report(average)})
    return average


def _num_workers(device: torch.device) -> int:
    """Return the number of threads that run the network: one a core, or one for a GPU."""
    return 1 if device.type == "cuda" else os.cpu_count() or 1


def _split(batch: Batch, count: int) -> list[Batch]:
    return list(zip(*(t.chunk(count) for t in batch), strict=True))


def _accumulate_gradients(net: Net, loss: Loss[Net], parts: list[Batch], workers: ThreadPoolExecutor) -> Metrics:
    """Add the gradients of all parts to the network, a part a worker, and return the mean losses."""
    device = next(net.parameters()).device

    def backward(part: Batch) -> Metrics:
        with bf16_autocast(device):
            losses = loss(net, tuple(t.to(device) for t in part))
        (sum(losses.values(), torch.zeros((), device=device)) / len(parts)).backward()
        return {name: float(value.detach()) / len(parts) for name, value in losses.items()}

    losses = list(workers.map(backward, parts))
    return {name: sum(each[name] for each in losses) for name in losses[0]}


def _step_optimisers(
    net: nn.Module, optimisers: Optimisers, plan: StagePlan, learning_rate: float, workers: ThreadPoolExecutor
) -> None:
    """Clip the gradients and step all optimisers in parallel."""
    nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    gradients = {name: weight.grad for name, weight in trained.items() if weight.grad is not None}
    assign_gradients(optimisers, gradients, trained)
    for optimiser in optimisers.members:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
    list(workers.map(lambda optimiser: optimiser.step(), optimisers.members))
    net.zero_grad()


@torch.no_grad()
def _update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for averaged, buffer in zip(average.buffers(), net.buffers(), strict=True):
        averaged.copy_(buffer)


def log_metrics(folder: Path, metrics: Metrics) -> None:
    """Append a line of JSON to the stage's log and print it."""
    line = json.dumps({"stage": folder.name, **{name: float(f"{value:.5g}") for name, value in metrics.items()}})
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)  # noqa: T201


def _save_checkpoint(
    folder: Path, net: nn.Module, average: nn.Module, optimisers: Optimisers, step: int, seconds: float
) -> None:
    states = [optimiser.state_dict() for optimiser in optimisers.members]
    checkpoint = {"net": net.state_dict(), "average": average.state_dict(), "ways": states}
    torch.save({**checkpoint, "step": step, "seconds": seconds}, folder / "checkpoint.part")
    (folder / "checkpoint.part").replace(folder / "checkpoint.pt")


def _resume(folder: Path, net: nn.Module, average: nn.Module, optimisers: Optimisers) -> tuple[int, float]:
    """Load the checkpoint if there is one; return the finished steps and their seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint.pt").exists():
        return 0, 0.0
    checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(checkpoint["net"])
    average.load_state_dict(checkpoint["average"])
    for optimiser, state in zip(optimisers.members, checkpoint["ways"], strict=True):
        optimiser.load_state_dict(state)
    return checkpoint["step"], checkpoint["seconds"]
