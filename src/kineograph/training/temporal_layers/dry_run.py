"""What a training would do and take, told before it begins: `kineograph train --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import nn

from kineograph.media.dataset_layouts import Item
from kineograph.media.seek import BrokenFile
from kineograph.training import training_cost
from kineograph.training.temporal_layers.batches import step_kind
from kineograph.training.temporal_layers.memory import activation_bytes
from kineograph.training.temporal_layers.run import StageRun, PreparedTraining
from kineograph.training.temporal_layers.sources import OpenSource, ClipShape, cut_clip, clip_shape

NUM_TRIED = 20  # items of each source that are opened, to see whether they can be


class ParameterCount(NamedTuple):
    """How many parameters of a part of the model are trained, and how many are not."""

    name: str
    trained: int
    frozen: int


class StageEstimate(NamedTuple):
    """A stage: its size, what it sees, and bytes of memory in one process.

    held: weights, gradients, averages and the optimiser's state. activations: about what the gradients of `batch`
    samples need besides.
    """

    steps: int
    samples_per_step: int
    height: int
    width: int
    num_frames: int
    fps: tuple[float, ...] | None
    videos: int
    pictures: int
    held: int
    activations: int
    batch: int
    checkpoint: int


class SourceReport(NamedTuple):
    """What a source has. items: None for no end of them.

    problems: what is missing or left out. refused: of the first `tried` items those that cannot be used, and why.
    """

    source: str
    kind: str
    layout: str
    items: int | None
    problems: list[str]
    tried: int
    refused: list[str]


class TrainingEstimate(NamedTuple):
    """What a training would do and take."""

    parts: list[ParameterCount]
    stages: list[StageEstimate]
    found: list[SourceReport]
    processes: int

    def as_json(self) -> dict[str, object]:
        """The same as JSON values."""
        lists: dict[str, Sequence[ParameterCount | StageEstimate | SourceReport]]
        lists = {"parts": self.parts, "stages": self.stages, "found": self.found}
        return {name: [each._asdict() for each in rows] for name, rows in lists.items()} | {"processes": self.processes}


def estimate_training(ready: PreparedTraining) -> TrainingEstimate:
    """Counts, and tries a few items of each source. Nothing is written."""
    first = ready.settings.stages[0]
    found = [_found(each, clip_shape(first, kind)) for kind, opened in ready.sources.items() for each in opened]
    return TrainingEstimate(_parts(ready), [_stretch(leg) for leg in ready.legs], found, ready.process.num_processes)


def _parts(ready: PreparedTraining) -> list[ParameterCount]:
    net, model = ready.model.net, ready.model
    texts = [(f"text encoder {k}", each.network) for k, each in enumerate(model.text, 1)]
    return [
        _part("layers along time", nn.ModuleList([] if net.temporal is None else [net.temporal])),
        _part("image network", net.image_unet),
        *(_frozen(name, network) for name, network in (("VAE", model.vae), *texts)),
    ]


def _part(name: str, network: nn.Module) -> ParameterCount:
    counts = dict.fromkeys((True, False), 0)
    for weight in network.parameters():
        counts[weight.requires_grad] += weight.numel()
    return ParameterCount(name, counts[True], counts[False])


def _frozen(name: str, network: nn.Module) -> ParameterCount:
    return ParameterCount(name, 0, sum(weight.numel() for weight in network.parameters()))


def _stretch(leg: StageRun) -> StageEstimate:
    ready, stage, loop = leg.ready, leg.stage, leg.loop
    told = training_cost(loop, ready.model.net, ready.process.num_processes)
    after = step_kind(loop.seed, ready.settings.image_share, stage.steps)
    pictures = after.number if after.kind == "image" else stage.steps - after.number
    beside = [ready.model.vae, *(each.network for each in ready.model.text)]
    return StageEstimate(
        steps=stage.steps,
        samples_per_step=leg.batch,
        height=stage.height,
        width=stage.width,
        num_frames=stage.num_frames,
        fps=stage.fps,
        videos=(stage.steps - pictures) * leg.batch,
        pictures=pictures * leg.batch * stage.num_frames,
        held=told.memory + sum(weight.nbytes for each in beside for weight in each.parameters()),
        activations=activation_bytes(ready.model, stage, loop.train_batch_size, loop.mixed_precision),
        batch=loop.train_batch_size,
        checkpoint=told.checkpoint,
    )


def _found(each: OpenSource, shape: ClipShape) -> SourceReport:
    name, data = each.source.source, each.dataset
    if data is None:
        return SourceReport(name, each.kind, "the pocket world", each.source.count, [], 0, [])
    tried = list(islice(data, NUM_TRIED))
    refused = [reason for reason in (_refusal(item, shape) for item in tried) if reason]
    problems = [f"{problem.name} {problem.reason}" for problem in data.problems]
    return SourceReport(name, each.kind, data.layout, len(data), problems, len(tried), refused)


def _refusal(item: Item, shape: ClipShape) -> str | None:
    try:
        cut_clip(item, np.random.default_rng(0), shape)
    except BrokenFile as error:
        return str(error)
    return None
