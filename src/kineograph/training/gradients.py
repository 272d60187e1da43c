"""A step's gradients: its samples are dealt out, each share walks the network alone, and the shares' are summed.

On a CPU there is a share a core, walked by a thread of its own: threads inside an operation wait for one another at
every layer. The sums are taken in one order, whichever share is ready first, so that a run can be repeated bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor, nn

from kineograph.training.processes import Processes, uses_dropout
from kineograph.training.settings import TrainingSettings, samples_per_step
from kineograph.training.state import TrainState

BatchT = TypeVar("Batch")
NetT = TypeVar("Net", bound=nn.Module)
LoadBatch = Callable[[int, range], BatchT]
LossFunction = Callable[[NetT, BatchT, int], Mapping[str, Tensor]]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class BatchShare(NamedTuple):
    """What one walk of the network takes: numbers of samples, counted over the whole training."""

    step: int
    samples: range


class LoadedShare(NamedTuple):
    """A share's samples, and the seed of its first; that of sample j is `seed + j`, as in `kineograph.noise`."""

    share: BatchShare
    batch: Any
    seed: int


class ShareGradients(NamedTuple):
    """A share's part of the step's mean losses, and of the gradients of the trained weights that it touched."""

    losses: dict[str, Tensor]
    gradients: Sequence[Tensor | None]


class StepGradients(NamedTuple):
    """A step's mean losses, and the gradients of the weights that any share of it touched, by name."""

    losses: dict[str, float]
    gradients: dict[str, Tensor]


def step_gradients(
    net: NetT, run: TrainState, settings: TrainingSettings, crew: Processes, start: int, draw: LoadBatch[BatchT], loss: LossFunction[NetT, BatchT]
) -> Iterator[StepGradients]:
    """What each step from `start` on descends by, computed when it is asked for, with the weights as they are then."""
    steps = range(start, settings.max_train_steps)
    wanted = (share for step in steps for share in batch_shares(settings, step, crew))
    ahead = crew.walkers + settings.dataloader_num_workers
    drawn = prefetch(draw, wanted, settings.seed, crew.readers, ahead)
    walk = gradient_function(net, run, settings, loss)
    for _ in steps:
        together = (list(islice(drawn, crew.walkers)) for _ in range(settings.gradient_accumulation_steps))
        yield sum_gradients(chain.from_iterable(crew.map(walk, each) for each in together), run.trained, crew)


def batch_shares(settings: TrainingSettings, step: int, crew: Processes) -> Iterator[BatchShare]:
    """What this process walks of a step, in order: for every walker a share, whose sizes differ by one at most."""
    batch = settings.train_batch_size
    mine = samples_per_step(settings, 1)
    first = (step * crew.process.num_processes + crew.process.process_index) * mine
    for start in range(first, first + mine, batch):
        edges = (start + batch * number // crew.walkers for number in range(crew.walkers + 1))
        yield from (BatchShare(step, range(begin, end)) for begin, end in pairwise(edges))


def sample_seed(seed: int, sample: int) -> int:
    """A seed for a sample of the training; those of consecutive samples are consecutive."""
    (base,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(base) % 2**62 + sample


def prefetch(
    draw: LoadBatch[BatchT], wanted: Iterator[BatchShare], seed: int, readers: ThreadPoolExecutor, ahead: int
) -> Iterator[LoadedShare]:
    """The shares' samples in order, while `ahead` more are being drawn."""

    def one(share: BatchShare) -> LoadedShare:
        return LoadedShare(share, draw(share.step, share.samples), sample_seed(seed, share.samples.start))

    queue = deque(readers.submit(one, share) for share in islice(wanted, ahead))
    while queue:
        ready = queue.popleft().result()
        queue.extend(readers.submit(one, share) for share in islice(wanted, 1))
        yield ready


def gradient_function(net: NetT, run: TrainState, settings: TrainingSettings, loss: LossFunction[NetT, BatchT]) -> Callable[[LoadedShare], ShareGradients]:
    """The function that walks the network with a share."""
    trained = [*run.trained.values()]
    device = trained[0].device
    seeded = _seeded if uses_dropout(net) else _as_it_is

    def walk(drawn: LoadedShare) -> ShareGradients:
        weight = len(drawn.share.samples) / samples_per_step(settings, 1)
        batch = send_to_device(drawn.batch, device)
        with seeded(drawn.seed, device), torch.enable_grad():
            with autocast(device, settings.mixed_precision):
                losses = {name: value * weight for name, value in loss(net, batch, drawn.seed).items()}
            total = run.scaler.scale(torch.stack([*losses.values()]).sum())
            touches = total.requires_grad
            gradients = torch.autograd.grad(total, trained, allow_unused=True) if touches else [None] * len(trained)
        return ShareGradients({name: value.detach() for name, value in losses.items()}, gradients)

    return walk


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision by name. Nothing is cached: threads share that cache, and would find in it what others left."""
    return torch.autocast(
        device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES, cache_enabled=False
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _as_it_is(seed: int, device: torch.device) -> Iterator[None]:
    yield


@torch.no_grad()
def sum_gradients(walked: Iterable[ShareGradients], trained: Mapping[str, nn.Parameter], crew: Processes) -> StepGradients:
    """What the shares of all processes come to, always added in the same order."""
    losses: dict[str, Tensor] = {}
    sums = {name: torch.zeros_like(weight) for name, weight in trained.items()}  # in the order of the weight's memory
    touched = dict.fromkeys(trained, 0.0)
    for each in walked:
        for name, value in each.losses.items():
            losses[name] = losses[name] + value if name in losses else value
        found = {name: value for name, value in zip(trained, each.gradients, strict=True) if value is not None}
        if found:
            torch._foreach_add_([sums[name] for name in found], [*found.values()])
        touched |= dict.fromkeys(found, 1.0)
    figures = torch.stack([value.float() for value in losses.values()])
    if crew.process.num_processes > 1:
        # the same tensors in all processes, whatever theirs touched
        mask = torch.tensor([*touched.values()], device=figures.device)
        figures, sums, mask = reduce([figures, sums, mask], "mean")
        touched = dict(zip(touched, mask.tolist(), strict=True))
    means = dict(zip(losses, figures.tolist(), strict=True))
    return StepGradients(means, {name: value for name, value in sums.items() if touched[name]})
