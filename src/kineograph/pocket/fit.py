"""One training loop for all stages: boxed in time, resumed after a kill, averaged.

On a CPU a batch is shared out to one thread a core, each walking the network alone: threads inside an operation wait
for one another at every layer, and when anything else runs on the machine that wait costs thirty times the work.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]
Figures = dict[str, float]

KEEP_SECONDS = 60.0
TELL_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains; `steps`, where given, counts instead of `minutes`."""

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

    def progress(self, step: int, seconds: float) -> float:
        """How much of the stage is over: 0 to 1."""
        return step / self.steps if self.steps else seconds / (60 * self.minutes)

    def rate(self, step: int, progress: float) -> float:
        """A linear warm-up, then linearly to zero when the stage ends: whatever time it is given, it ends settled."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * max(0.0, 1 - progress)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    net: nn.Module,
    plan: Plan,
    folder: Path,
    *,
    draw: Callable[[np.random.Generator, float], Batch],
    loss: Loss,
    report: Callable[[nn.Module], Figures],
) -> nn.Module:
    """Train `net` where it is and return its averaged weights (EMA) as a network of its own.

    Args:
        draw: a batch from the step's generator and the progress; every random number of the step is drawn in it.
        loss: named losses of a share of the batch, means over it; their sum is descended.
        report: figures of the averaged network, told with every checkpoint.
    """
    average = copy.deepcopy(net).requires_grad_(requires_grad=False).eval()
    optimiser = adamw(net, plan)
    step, seconds = _resume(folder, net, average, optimiser)
    begun = time.monotonic() - seconds
    kept, told = begun + seconds, begun + seconds
    descend = _descender(net, loss)
    while (progress := plan.progress(step, time.monotonic() - begun)) < 1:
        losses = descend(draw(np.random.default_rng((plan.seed, step)), progress))
        _advance(net, average, optimiser, plan, step, progress)
        step, now = step + 1, time.monotonic()
        if now - told > TELL_SECONDS:
            tell(folder, {"step": step, "seconds": now - begun, "lr": plan.rate(step, progress), **losses})
            told = now
        if now - kept > KEEP_SECONDS:
            _keep(folder, net, average, optimiser, step, now - begun)
            tell(folder, {"step": step, "seconds": now - begun, "seen": step * plan.batch, **report(average)})
            kept = time.monotonic()
    _keep(folder, net, average, optimiser, step, time.monotonic() - begun)
    tell(
        folder,
        {"step": step, "seconds": time.monotonic() - begun, "seen": step * plan.batch, "end": 1.0, **report(average)},
    )
    return average


def adamw(net: nn.Module, plan: Plan) -> Optimizer:
    """AdamW that decays matrices and filters, not norms and biases."""
    weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=plan.lr, betas=plan.momentum, fused=True)


def _advance(net: nn.Module, average: nn.Module, optimiser: Optimizer, plan: Plan, step: int, progress: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = plan.rate(step, progress)
    nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
    optimiser.step()
    optimiser.zero_grad()
    decay = min(plan.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
        for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
            kept.copy_(buffer)


def _descender(net: nn.Module, loss: Loss) -> Callable[[Batch], Figures]:
    """What adds a batch's gradients to the network and says the losses, on all cores."""
    device = next(net.parameters()).device
    shares = 1 if device.type == "cuda" else os.cpu_count() or 1
    torch.set_num_threads(1 if shares > 1 else torch.get_num_threads())
    workers = ThreadPoolExecutor(shares, initializer=partial(torch.set_num_threads, 1))

    def share(part: Batch) -> Figures:
        with torch.autocast(device.type, torch.bfloat16):
            losses = loss(net, tuple(t.to(device) for t in part))
        (sum(losses.values(), torch.zeros((), device=device)) / shares).backward()
        return {name: float(value.detach()) / shares for name, value in losses.items()}

    def descend(batch: Batch) -> Figures:
        parts = zip(*(t.chunk(shares) for t in batch), strict=True)
        figures = list(workers.map(share, parts))
        return {name: sum(f[name] for f in figures) for name in figures[0]}

    return descend


def tell(folder: Path, figures: Figures) -> None:
    """Add a line to the stage's log, and to standard output."""
    line = json.dumps({"stage": folder.name, **{name: float(f"{value:.5g}") for name, value in figures.items()}})
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)  # noqa: T201


def _keep(folder: Path, net: nn.Module, average: nn.Module, optimiser: Optimizer, step: int, seconds: float) -> None:
    kept = {"net": net.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save({**kept, "step": step, "seconds": seconds}, folder / "checkpoint.part")
    (folder / "checkpoint.part").replace(folder / "checkpoint.pt")


def _resume(folder: Path, net: nn.Module, average: nn.Module, optimiser: Optimizer) -> tuple[int, float]:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint.pt").exists():
        return 0, 0.0
    kept = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(kept["net"])
    average.load_state_dict(kept["average"])
    optimiser.load_state_dict(kept["optimiser"])
    return kept["step"], kept["seconds"]
