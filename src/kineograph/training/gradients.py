"""Gradients of a training step, summed over micro-batches.

On a CPU each core computes a micro-batch of its own in one thread: threads inside an operation would wait for one
another at every layer. The sums are taken in a fixed order, whichever micro-batch is ready first, so a run repeats bit
for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from torch import Tensor, nn

from kineograph.training.checkpoints import TrainState
from kineograph.training.processes import Processes, uses_dropout
from kineograph.training.settings import TrainingSettings, samples_per_step

BatchT = TypeVar("BatchT")
NetT = TypeVar("NetT", bound=nn.Module)
LoadBatch = Callable[[int, range], BatchT]  # (step, numbers of its samples) -> batch
LossFunction = Callable[[NetT, BatchT, int], Mapping[str, Tensor]]  # (net, batch, seed of its first sample) -> losses
CPU = torch.device("cpu")
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MicroBatch(NamedTuple):
    """Samples that go through the network together; their numbers are counted over the whole training."""

    step: int
    samples: range


class LoadedMicroBatch(NamedTuple):
    """Data of a micro-batch, and the seed of its first sample; sample j has `seed + j`, as in `kineograph.noise`."""

    samples: range
    batch: Any
    seed: int


class MicroBatchGradients(NamedTuple):
    """Part of the step's mean losses and gradients; None for a weight that the loss does not depend on."""

    losses: dict[str, Tensor]
    gradients: Sequence[Tensor | None]


class StepGradients(NamedTuple):
    """A step's mean losses, and the gradients of the weights that any of its losses depends on, by name."""

    losses: dict[str, float]
    gradients: dict[str, Tensor]


def step_gradients(
    net: NetT,
    state: TrainState,
    settings: TrainingSettings,
    processes: Processes,
    start: int,
    load_batch: LoadBatch[BatchT],
    loss: LossFunction[NetT, BatchT],
) -> Iterator[StepGradients]:
    """Yield the gradients of each step from `start` on, computed with the weights at the time of the request."""
    steps = range(start, settings.max_train_steps)
    numbered = (each for step in steps for each in micro_batches(settings, step, processes))
    ahead = processes.threads + settings.dataloader_num_workers
    loaded = prefetch(load_batch, numbered, settings.seed, processes.loaders, ahead)
    compute = gradient_function(net, state, settings, loss)
    for _ in steps:
        rounds = (list(islice(loaded, processes.threads)) for _ in range(settings.gradient_accumulation_steps))
        results = chain.from_iterable(processes.map(compute, each) for each in rounds)
        yield sum_gradients(results, state.trained, processes)


def micro_batches(settings: TrainingSettings, step: int, processes: Processes) -> Iterator[MicroBatch]:
    """Yield this process's micro-batches of a step in order: one a thread, of sizes that differ by one at most."""
    batch = settings.train_batch_size
    count = samples_per_step(settings, 1)
    first = (step * processes.process.num_processes + processes.process.process_index) * count
    for start in range(first, first + count, batch):
        edges = (start + batch * number // processes.threads for number in range(processes.threads + 1))
        yield from (MicroBatch(step, range(begin, end)) for begin, end in pairwise(edges))


def sample_seed(seed: int, sample: int) -> int:
    """Return the seed of a training sample; consecutive samples have consecutive seeds."""
    (base,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(base) % 2**62 + sample


# Ours, not torch's DataLoader: that one wants a data set and a sampler object for what is a function of (step, samples)
# here, and loads in processes, which cannot share the VAE that encodes clips.
def prefetch(
    load_batch: LoadBatch[BatchT], numbered: Iterator[MicroBatch], seed: int, loaders: ThreadPoolExecutor, ahead: int
) -> Iterator[LoadedMicroBatch]:
    """Yield the micro-batches in order, while threads load up to `ahead` more."""

    def load(each: MicroBatch) -> LoadedMicroBatch:
        return LoadedMicroBatch(each.samples, load_batch(*each), sample_seed(seed, each.samples.start))

    queue = deque(loaders.submit(load, each) for each in islice(numbered, ahead))
    while queue:
        ready = queue.popleft().result()
        queue.extend(loaders.submit(load, each) for each in islice(numbered, 1))
        yield ready


def gradient_function(
    net: NetT, state: TrainState, settings: TrainingSettings, loss: LossFunction[NetT, BatchT]
) -> Callable[[LoadedMicroBatch], MicroBatchGradients]:
    """Return the function that computes the gradients of a micro-batch."""
    trained = [*state.trained.values()]
    device = trained[0].device
    has_dropout = uses_dropout(net)

    def compute(loaded: LoadedMicroBatch) -> MicroBatchGradients:
        weight = len(loaded.samples) / samples_per_step(settings, 1)
        batch = send_to_device(loaded.batch, device)
        with seeded(loaded.seed, device) if has_dropout else nullcontext(), torch.enable_grad():
            with autocast(device, settings.mixed_precision):
                losses = {name: value * weight for name, value in loss(net, batch, loaded.seed).items()}
            total = state.scaler.scale(torch.stack([*losses.values()]).sum())
            depends = total.requires_grad
            gradients = torch.autograd.grad(total, trained, allow_unused=True) if depends else [None] * len(trained)
        return MicroBatchGradients({name: value.detach() for name, value in losses.items()}, gradients)

    return compute


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of mixed precision by name.

    Cast weights are not cached: threads share that cache, and would find weights in it that another step has changed.
    """
    return torch.autocast(
        device.type, AMP_DTYPES.get(precision, torch.bfloat16), enabled=precision in AMP_DTYPES, cache_enabled=False
    )


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's global generators, the CPU's and the device's, within the block."""
    generators = [torch.default_generator]  # not torch.manual_seed, which seeds every GPU for good
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    states = [each.get_state() for each in generators]
    for each in generators:
        each.manual_seed(seed)
    try:
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)


@torch.no_grad()
def sum_gradients(
    parts: Iterable[MicroBatchGradients], trained: Mapping[str, nn.Parameter], processes: Processes
) -> StepGradients:
    """Sum the gradients of all micro-batches and processes, always in the same order."""
    losses: dict[str, Tensor] = {}
    sums = {name: torch.zeros_like(weight) for name, weight in trained.items()}  # in the order of the weight's memory
    touched = dict.fromkeys(trained, 0.0)
    for each in parts:
        for name, value in each.losses.items():
            losses[name] = losses[name] + value if name in losses else value
        found = {name: value for name, value in zip(trained, each.gradients, strict=True) if value is not None}
        if found:
            torch._foreach_add_([sums[name] for name in found], [*found.values()])
        touched |= dict.fromkeys(found, 1.0)
    figures = torch.stack([value.float() for value in losses.values()])
    if processes.process.num_processes > 1:
        # all processes exchange the same tensors, whichever weights their own losses depend on
        mask = torch.tensor([*touched.values()], device=figures.device)
        figures, sums, mask = reduce([figures, sums, mask], "mean")
        touched = dict(zip(touched, mask.tolist(), strict=True))
    means = dict(zip(losses, figures.tolist(), strict=True))
    return StepGradients(means, {name: value for name, value in sums.items() if touched[name]})
