"""The training loop: a generator, so that bars, samples and cancelling are a `for` over it.

Step k of a run depends on (seed, k) and on the weights before it alone, and sample k on (seed, k): a run that was
killed goes on as if it had not been, and it does not matter how many processes and threads share a step out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.amp import GradScaler

from kineograph.errors import InputError
from kineograph.training import ema, logs, state
from kineograph.training.gradients import BatchT, StepGradients, LoadBatch, LossFunction, NetT, step_gradients
from kineograph.training.lock import lock_folder
from kineograph.training.optimisers import step_optimisers, build_optimisers
from kineograph.training.processes import Processes, start_workers
from kineograph.training.settings import TrainingSettings, resume_settings, learning_rate_at, samples_per_step
from kineograph.training.state import LoopPosition, TrainState

NO_FACTS: Mapping[str, Any] = MappingProxyType({})
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Progress(NamedTuple):
    """Where a run is after a step.

    step: how many are done. losses: the step's, over all processes. gradient_norm: before it was clipped.
    seconds: of training, in all runs in the folder. average: the averaged weights by name, for `lent`.
    log: takes further figures and pictures.
    """

    step: int
    losses: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    seconds: float
    samples_seen: int
    average: Mapping[str, Tensor]
    log: logs.Log


def fit(
    net: NetT,
    settings: TrainingSettings,
    folder: Path,
    *,
    draw: LoadBatch[BatchT],
    loss: LossFunction[NetT, BatchT],
    facts: Mapping[str, Any] = NO_FACTS,
) -> Iterator[Progress]:
    """Trains the parameters of `net` that require gradients, where it is, from the folder's last checkpoint on.

    A checkpoint is written when the consumer asks for the next step, or leaves: what it did at a step is done again
    if it was killed there. In the end `net` has the last weights, and `weights(folder)` are the averaged ones.

    Args:
        net: on `here().device`, in the mode, train or eval, that it is trained in. Its buffers are
            neither averaged nor kept.
        folder: of this run alone: checkpoints, log.jsonl, tensorboard.
        draw: samples from the step, counted from 0, and the samples' numbers, counted over the training, and nothing
            else; called by several threads. What comes is given to `loss`, its tensors on the network's device.
        loss: named losses of a share of the batch, means over it; their sum is descended. Their names are the same
            in all processes at a step. The last argument is the seed of the first sample, whose next has the next,
            as in `kineograph.noise`; what is drawn by it does not depend on how the batch is shared out. Called by
            several threads on a CPU.
        facts: JSON values that a resumed run must have had too, beside the settings: names of data, of models.

    Raises:
        InputError: the folder is in use or holds a run with other settings; there is nothing to train; a loss is no
            number; a checkpoint cannot be written.
    """
    _check(net, settings)
    with ExitStack() as held:
        crew = held.enter_context(start_workers(net, settings))
        run = _begun(net, settings, crew)
        terms = json.loads(json.dumps({**resume_settings(settings, crew.process.num_processes), **facts}))
        reached, log = _entered(held, run, folder, terms, crew)
        started = time.monotonic()
        for descent in step_gradients(net, run, settings, crew, reached.step, draw, loss):
            norm = _advance(run, reached.step, descent, settings, crew)
            reached = _after(reached, time.monotonic() - started, descent.losses)
            progress = _progress(run, reached, descent, norm, settings, crew, log)
            if _is_due(reached, settings, settings.log_every):
                _tell(progress, reached.tally)
                reached = reached._replace(tally={})
            try:
                yield progress
            except GeneratorExit:
                _keep(run, reached, folder, terms, settings, crew)
                raise
            if _is_due(reached, settings, settings.checkpointing_steps):
                _keep(run, reached, folder, terms, settings, crew)
            started = time.monotonic()


def _begun(net: nn.Module, settings: TrainingSettings, crew: Processes) -> TrainState:
    """A run at its first step, with the same weights in all processes."""
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    if crew.process.num_processes > 1:
        broadcast([weight.detach() for weight in trained.values()])
    device = next(iter(trained.values())).device.type
    scaler = GradScaler(device, enabled=settings.mixed_precision == "fp16")
    return TrainState(trained, ema.init_averages(trained, settings.ema_decay), build_optimisers(net, settings, crew.walkers), scaler)


def _entered(held: ExitStack, run: TrainState, folder: Path, terms: state.Terms, crew: Processes) -> tuple[LoopPosition, logs.Log]:
    """Claims the folder, and takes the run to where it was left there."""
    if crew.process.is_main_process:
        held.enter_context(lock_folder(folder))
        state.remove_partial_checkpoints(folder)
    crew.process.wait_for_everyone()
    reached = state.resume_run(run, folder, terms)
    log = held.enter_context(logs.open_log(folder, reached.step)) if crew.process.is_main_process else logs.Log()
    return reached, log


def _advance(run: TrainState, step: int, descent: StepGradients, settings: TrainingSettings, crew: Processes) -> float:
    """Moves weights and averages; the norm of the gradients. Raises InputError when there are none, or no numbers."""
    learning_rate = learning_rate_at(settings, step)
    if not descent.gradients:
        raise InputError(f"the loss of step {step} depends on no weight that is trained: see what is frozen")
    norm = step_optimisers(run.ways, descent.gradients, run.trained, settings, learning_rate, run.scaler, crew.map)
    _check_figures(step, descent.losses, norm, settings)
    ema.update_averages(run.average, run.trained, settings.ema_decay, step)
    return norm


def _progress(
    run: TrainState, reached: LoopPosition, descent: StepGradients, norm: float, settings: TrainingSettings, crew: Processes, log: logs.Log
) -> Progress:
    seen = reached.step * samples_per_step(settings, crew.process.num_processes)
    learning_rate = learning_rate_at(settings, reached.step - 1)
    return Progress(
        reached.step, descent.losses, norm, learning_rate, reached.seconds, seen, average=run.average, log=log
    )


def _after(reached: LoopPosition, seconds: float, losses: Mapping[str, float]) -> LoopPosition:
    return LoopPosition(reached.step + 1, reached.seconds + seconds, logs.add_losses(reached.tally, losses))


def _is_due(reached: LoopPosition, settings: TrainingSettings, every: int) -> bool:
    return reached.step % every == 0 or reached.step == settings.max_train_steps


def _tell(progress: Progress, tally: logs.LossSums) -> None:
    figures = {name: getattr(progress, name) for name in ("gradient_norm", "learning_rate", "seconds", "samples_seen")}
    progress.log.tell(progress.step, logs.mean_losses(tally) | figures)


def _keep(run: TrainState, reached: LoopPosition, folder: Path, terms: state.Terms, settings: TrainingSettings, crew: Processes) -> None:
    if crew.process.is_main_process:
        state.save_checkpoint(run, reached, folder, terms, settings.checkpoints_total_limit)


def _check(net: nn.Module, settings: TrainingSettings) -> None:
    """Raises InputError when these parameters cannot be trained so."""
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    if not trained:
        raise InputError("there is nothing to train: no parameter of the network requires gradients")
    halves = [f"{name} ({weight.dtype})" for name, weight in trained.items() if weight.dtype.itemsize < 4]
    if halves:
        raise InputError(
            f"what is trained is kept in float32, and {halves[0]} came: call .float() on it; mixed_precision computes "
            "in fewer bits"
        )
    devices = {weight.device.type for weight in trained.values()}
    if settings.mixed_precision == "fp16" and devices == {"cpu"}:
        raise InputError("mixed_precision fp16 needs a GPU: on a CPU choose bf16 or no")
    norms = [n for n, layer in net.named_modules() if isinstance(layer, BATCH_NORMS) and layer.training]
    if norms:
        raise InputError(f"{norms[0]} is a batch norm, whose statistics are not trained here: call .eval() on it")


def _check_figures(step: int, losses: Mapping[str, float], norm: float, settings: TrainingSettings) -> None:
    """Raises InputError when a run has diverged. In fp16 a step that overflows is left out, and the scale halved."""
    if math.isfinite(norm + sum(losses.values())) or settings.mixed_precision == "fp16":
        return
    told = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    raise InputError(
        f"step {step} came to a loss of {told} and a gradient of norm {norm:g}: lower the learning_rate, warm up "
        "longer, or look for broken samples. The checkpoints before it stay"
    )
