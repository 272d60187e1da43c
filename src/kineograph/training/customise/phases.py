"""Phases of a customisation: their progress, their files, and the runner of those that train a network."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kineograph.training import TrainingProgress, TrainingSettings, fit, load_weights
from kineograph.training.gradients import BatchT, LoadBatch, LossFunction, NetT
from kineograph.training.loop import is_due
from kineograph.training.optimisers import copy_weights

# Folders and files in the output folder of an image model's customisation, then of a video model's.
PRIOR, LATENTS, PREVIEWS, TRAINING = "prior", "latents", "previews", "training"
IMAGE, STILLS, NATURAL, WHOLE = "image", "stills", "natural", "whole"
ADAPTER_FILE, MOTION_ADAPTER_FILE = "adapter.safetensors", "motion_adapter.safetensors"

# prior: generate images of the class. encoding: encode all images. training: train the image network.
# Then of a video model, stills: generate images of the subject or style. natural: generate or read natural videos.
# motion_adapter, spatial_adapter: train these; their checkpoints are in folders of these names.
Phase = Literal["prior", "encoding", "training", "stills", "natural", "motion_adapter", "spatial_adapter"]


class PhaseProgress(NamedTuple):
    """Progress of a customisation: `done` of `total` items or steps of a phase.

    progress: of the training loop, in phases that train. previews: files of the previews generated at this step.
    """

    phase: Phase
    done: int
    total: int
    progress: TrainingProgress | None = None
    previews: Sequence[Path] = ()


def train_phase(
    phase: Phase,
    net: NetT,
    loop: TrainingSettings,
    folder: Path,
    *,
    load_batch: LoadBatch[BatchT],
    loss: LossFunction[NetT, BatchT],
    facts: Mapping[str, Any],
    result: Path,
    write_result: Callable[[], None],
    save_previews: Callable[[TrainingProgress], list[Path]] = lambda progress: [],
) -> Generator[PhaseProgress, None, None]:
    """Train a network from the folder's last checkpoint on, and write the result when all steps are done.

    Args:
        folder, load_batch, loss, facts: as for `training.fit`.
        result: a file or folder; it is written again only if a step was done or it is missing.
        write_result: writes it, when `net` has its trained weights (averages, where those are kept).
        save_previews: called every `loop.validation_steps` and at the last step.
    """
    changed = False
    steps = fit(net, loop, folder, load_batch=load_batch, loss=loss, facts=facts)
    with closing(steps):
        for progress in steps:
            changed = True
            previews = save_previews(progress) if is_due(loop, progress.step, loop.validation_steps) else []
            yield PhaseProgress(phase, progress.step, loop.max_train_steps, progress, previews)
    if changed or not result.exists():
        copy_weights(net, load_weights(folder))
        write_result()
