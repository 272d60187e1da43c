"""The training loop: a generator, so that bars, samples and cancelling are a `for` over it.

Step k of a run depends on (seed, k) and on the weights before it alone, and sample k on (seed, k): a run that was
killed goes on as if it had not been, and it does not matter how many processes and threads share a step out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.amp import GradScaler

from kineograph.errors import InputError
from kineograph.training import ema, logs, state
from kineograph.training.gradients import (
    Batch,
    Descent,
    Draw,
    Drawn,
    Loss,
    Net,
    draws_inside,
    drawn_ahead,
    shares,
    summed,
    walker,
)  # fmt: skip
from kineograph.training.lock import claimed
from kineograph.training.optimisers import advance, optimisers
from kineograph.training.settings import TrainingSettings, decisive, rate, samples_per_step

Walk = Callable[..., Any]
NO_FACTS: Mapping[str, Any] = MappingProxyType({})


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
    net: Net,
    settings: TrainingSettings,
    folder: Path,
    *,
    draw: Draw[Batch],
    loss: Loss[Net, Batch],
    facts: Mapping[str, Any] = NO_FACTS,
) -> Iterator[Progress]:
    """Trains the parameters of `net` that require gradients, where it is, from the folder's last checkpoint on.

    A checkpoint is written when the consumer asks for the next step, or leaves: what it did at a step is done again
    if it was killed there. In the end `net` has the last weights, and `state.weights(folder)` are the averaged ones.

    Args:
        net: on `accelerate.PartialState().device`, in the mode, train or eval, that it is trained in. Its buffers are
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
    here = PartialState()
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    _check(trained, settings)
    cores = _cores(net, settings)
    run = _begin(net, trained, settings, cores, here)
    terms = json.loads(json.dumps({**decisive(settings, here.num_processes), **facts}))
    single = partial(torch.set_num_threads, 1)
    with ExitStack() as held:
        reached, log = _enter(held, run, folder, terms, here)
        readers = held.enter_context(ThreadPoolExecutor(settings.dataloader_num_workers, "draw", single))
        held.callback(readers.shutdown, wait=False, cancel_futures=True)
        walk = held.enter_context(ThreadPoolExecutor(cores, "walk", single)).map if cores > 1 else map
        wanted = (
            share
            for step in range(reached.step, settings.max_train_steps)
            for share in shares(settings, step, here, cores)
        )
        drawn = drawn_ahead(draw, wanted, settings.seed, readers, cores + settings.dataloader_num_workers)
        one = walker(net, [*trained.values()], loss, settings, run.scaler)
        descend = partial(_descend, drawn, one, walk, cores, settings, run, here)
        keep = partial(_keep, run, folder, terms, settings, here)
        yield from _steps(descend, keep, walk, run, settings, reached, log, here)
