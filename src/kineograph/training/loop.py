"""Training loop: a generator, so that progress bars, validation and cancelling are a `for` over it.

Step k of a run depends only on (seed, k) and the weights before it, and sample k on (seed, k): a run that was killed
continues with the same numbers, and it does not matter how many processes and threads share a step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.amp import GradScaler

from kineograph.errors import InputError
from kineograph.training.checkpoints import (
    LoopPosition,
    TrainState,
    remove_partial_checkpoints,
    resume_run,
    save_checkpoint,
)
from kineograph.training.gradients import BatchT, LoadBatch, LossFunction, NetT, StepGradients, step_gradients
from kineograph.training.lock import lock_folder
from kineograph.training.logs import Log, add_losses, mean_losses, open_log
from kineograph.training.optimisers import build_optimisers, init_averages, step_optimisers, update_averages
from kineograph.training.processes import Processes, start_workers
from kineograph.training.settings import TrainingSettings, learning_rate_at, resume_settings, samples_per_step

NO_FACTS: Mapping[str, Any] = MappingProxyType({})
MOST_SKIPPED_STEPS = 16  # in a row: the loss scale of fp16 starts at 2**16, and a scale below 1 serves no purpose
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TrainingProgress(NamedTuple):
    """Progress of a run after a step.

    step: number of steps done. losses: the step's, over all processes. gradient_norm: before clipping.
    seconds: of training, in all runs in the folder. average: the averaged weights by name, for `use_averages`.
    log: takes further figures and images.
    """

    step: int
    losses: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    seconds: float
    samples_seen: int
    average: Mapping[str, Tensor]
    log: Log


def fit(
    net: NetT,
    settings: TrainingSettings,
    folder: Path,
    *,
    load_batch: LoadBatch[BatchT],
    loss: LossFunction[NetT, BatchT],
    facts: Mapping[str, Any] = NO_FACTS,
) -> Generator[TrainingProgress, None, None]:
    """Train the parameters of `net` that require gradients, in place, from the folder's last checkpoint on.

    A checkpoint that is due is written when the consumer asks for the next step; one is also written when it leaves. So
    the consumer's work at a step is repeated if it was killed there. At the end `net` has the last weights;
    `load_weights(folder)` are the averages.

    Args:
        net: on `current_process().device`, in the mode, train or eval, that it is trained in. Its buffers are neither
            averaged nor saved.
        folder: of this run alone: checkpoints, log.jsonl, tensorboard.
        load_batch: returns a batch from the step, counted from 0, and the numbers of its samples, counted over the
            training, and depends on nothing else; called by several threads. Its tensors are moved to the network's
            device for `loss`.
        loss: returns named losses of a micro-batch, each a mean over it; their sum is minimised. All processes
            return the same names at a step. The last argument is the seed of the first sample, the next sample has the
            next seed, as in `kineograph.noise`; random numbers of a sample depend on its seed alone. Called by several
            threads on a CPU.
        facts: JSON values that must be equal when a run is resumed, besides the settings: names of data and models.

    Raises:
        InputError: the folder is in use or holds a run with other settings; there is nothing to train; a loss is not
            finite; a checkpoint cannot be written.
    """
    _check(net, settings)
    with ExitStack() as stack:
        processes = stack.enter_context(start_workers(net, settings))
        is_main, num_processes = processes.process.is_main_process, processes.process.num_processes
        state = _initial_state(net, settings, processes)
        terms = json.loads(json.dumps({**resume_settings(settings, num_processes), **facts}))
        if is_main:
            stack.enter_context(lock_folder(folder))
            remove_partial_checkpoints(folder)
        processes.process.wait_for_everyone()
        position = resume_run(net, state, folder, terms)
        log = stack.enter_context(open_log(folder, position.step)) if is_main else Log()

        def save() -> None:
            if is_main:
                save_checkpoint(state, position, folder, terms, settings.checkpoints_total_limit)

        started, skipped = time.monotonic(), 0
        for computed in step_gradients(net, state, settings, processes, position.step, load_batch, loss):
            rate = learning_rate_at(settings, position.step)
            norm = _step(state, position.step, computed, settings, processes)
            finite = math.isfinite(norm + sum(computed.losses.values()))
            skipped = 0 if finite else skipped + 1
            _check_finite(position.step, computed.losses, norm, settings, skipped)
            update_averages(state.average, state.trained, settings.ema_decay, position.step)
            seconds = position.seconds + time.monotonic() - started
            position = LoopPosition(position.step + 1, seconds, add_losses(position.losses, computed.losses))
            seen = position.step * samples_per_step(settings, num_processes)
            progress = TrainingProgress(position.step, computed.losses, norm, rate, seconds, seen, state.average, log)
            if is_due(settings, position.step, settings.log_every):
                logged = ("gradient_norm", "learning_rate", "seconds", "samples_seen")
                figures = {name: getattr(progress, name) for name in logged}
                log.write(position.step, {**mean_losses(position.losses), **figures})
                position = position._replace(losses={})
            try:
                yield progress
            except GeneratorExit:
                save()
                raise
            if is_due(settings, position.step, settings.checkpointing_steps):
                save()
            started = time.monotonic()


def _initial_state(net: nn.Module, settings: TrainingSettings, processes: Processes) -> TrainState:
    """Return the state before the first step, with the same weights in all processes."""
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    if processes.process.num_processes > 1:
        broadcast([weight.detach() for weight in trained.values()])
    device = next(iter(trained.values())).device.type
    scaler = GradScaler(device, enabled=settings.mixed_precision == "fp16")
    optimisers = build_optimisers(net, settings, processes.threads)
    return TrainState(trained, init_averages(trained, settings.ema_decay), optimisers, scaler)


def _step(
    state: TrainState, step: int, computed: StepGradients, settings: TrainingSettings, processes: Processes
) -> float:
    """Update the weights, and return the norm of the gradients. Raises InputError when there are none."""
    if not computed.gradients:
        raise InputError(f"the loss of step {step} depends on no weight that is trained: check what is frozen")
    rate = learning_rate_at(settings, step)
    return step_optimisers(
        state.optimisers, computed.gradients, state.trained, settings, rate, state.scaler, processes.map
    )


def is_due(settings: TrainingSettings, step: int, every: int) -> bool:
    """Return True for each step that is a multiple of `every`, and for the last one."""
    return step % every == 0 or step == settings.max_train_steps


def _check(net: nn.Module, settings: TrainingSettings) -> None:
    """Raise InputError when these parameters cannot be trained with these settings."""
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    if not trained:
        raise InputError("there is nothing to train: no parameter of the network requires gradients")
    halves = [f"{name} ({weight.dtype})" for name, weight in trained.items() if weight.dtype.itemsize < 4]
    if halves:
        raise InputError(
            f"trained weights must be float32, got {halves[0]}: call .float() on it; mixed_precision computes in fewer "
            "bits"
        )
    devices = {weight.device.type for weight in trained.values()}
    if settings.mixed_precision == "fp16" and devices == {"cpu"}:
        raise InputError("mixed_precision fp16 needs a GPU: on a CPU choose bf16 or no")
    norms = [n for n, layer in net.named_modules() if isinstance(layer, BATCH_NORMS) and layer.training]
    if norms:
        raise InputError(f"{norms[0]} is a batch norm, whose statistics are not trained here: call .eval() on it")


def _check_finite(
    step: int, losses: Mapping[str, float], norm: float, settings: TrainingSettings, skipped: int
) -> None:
    """Raise InputError when a run has diverged.

    In fp16 a step that overflows is skipped and the loss scale halved, which is no reason to end unless it goes on.

    skipped: number of steps in a row, up to this one, that were not finite.
    """
    fp16 = settings.mixed_precision == "fp16"
    if skipped < (MOST_SKIPPED_STEPS if fp16 else 1):
        return
    values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    reason = f", the {skipped}th in a row that fp16 skips," if fp16 else ""
    instead = "train in bf16, " if fp16 else ""
    raise InputError(
        f"step {step}{reason} came to a loss of {values} and a gradient of norm {norm:g}: lower the learning_rate, "
        f"warm up longer, {instead}or look for broken samples. The checkpoints before it stay"
    )
