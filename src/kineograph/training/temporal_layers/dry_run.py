"""Estimate of a training's size and memory before it starts: `kineograph train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.frames import BrokenFile
from kineograph.models.conditioning.condition import Condition
from kineograph.models.model import Model
from kineograph.models.unet.forward import CallStage, call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.optimisers import muon_names
from kineograph.training.settings import TrainingSettings
from kineograph.training.temporal_layers.batches import step_kind
from kineograph.training.temporal_layers.run import PreparedTraining, StageRun
from kineograph.training.temporal_layers.settings import Stage
from kineograph.training.temporal_layers.sources import ClipShape, OpenSource, clip_shape, cut_clip

NUM_TRIED = 20  # items of each source that are opened, to see whether they can be
MIXED_PRECISION_MEMORY = 0.55  # memory of mixed precision relative to float32: some activations stay float32


class ParameterCount(NamedTuple):
    """Numbers of trained and of frozen parameters in a part of the model."""

    name: str
    trained: int
    frozen: int


class StageEstimate(NamedTuple):
    """Size of a stage, its numbers of videos and images, and bytes of memory in one process.

    held: weights, gradients, averages and optimiser state. activations: approximately, of `batch` samples.
    """

    steps: int
    samples_per_step: int
    height: int
    width: int
    num_frames: int
    fps: tuple[float, ...] | None
    videos: int
    images: int
    held: int
    activations: int
    batch: int
    checkpoint: int


class SourceReport(NamedTuple):
    """Contents of a source. items: None for an unlimited number.

    problems: what is missing or left out. refused: those of the first `tried` items that cannot be used, with reasons.
    """

    source: str
    kind: str
    layout: str
    items: int | None
    problems: list[str]
    tried: int
    refused: list[str]


class TrainingEstimate(NamedTuple):
    """Parameters, stages and sources of a training."""

    parts: list[ParameterCount]
    stages: list[StageEstimate]
    sources: list[SourceReport]
    processes: int

    def as_json(self) -> dict[str, object]:
        """Return the estimate as JSON values."""
        lists: dict[str, Sequence[ParameterCount | StageEstimate | SourceReport]]
        lists = {"parts": self.parts, "stages": self.stages, "sources": self.sources}
        return {name: [each._asdict() for each in rows] for name, rows in lists.items()} | {"processes": self.processes}


def estimate_training(training: PreparedTraining) -> TrainingEstimate:
    """Count parameters, steps and items, and try to read some items of each source. Nothing is written."""
    first = training.settings.stages[0]
    reports = [_report(each, clip_shape(first, kind)) for kind, opened in training.sources.items() for each in opened]
    stages = [_estimate_stage(run) for run in training.stages]
    return TrainingEstimate(_count_parameters(training), stages, reports, training.process.num_processes)


def _count_parameters(training: PreparedTraining) -> list[ParameterCount]:
    net, model = training.model.net, training.model
    texts = [(f"text encoder {k}", each.network) for k, each in enumerate(model.text_encoders, 1)]
    frozen = [
        ParameterCount(name, 0, sum(weight.numel() for weight in network.parameters()))
        for name, network in (("VAE", model.vae), *texts)
    ]
    temporal = nn.ModuleList([] if net.temporal is None else [net.temporal])
    return [_count("temporal layers", temporal), _count("image network", net.image_unet), *frozen]


def _count(name: str, network: nn.Module) -> ParameterCount:
    counts = dict.fromkeys((True, False), 0)
    for weight in network.parameters():
        counts[weight.requires_grad] += weight.numel()
    return ParameterCount(name, counts[True], counts[False])


def _estimate_stage(run: StageRun) -> StageEstimate:
    training, stage, loop = run.training, run.stage, run.loop
    memory = loop_memory(loop, training.model.net)
    after = step_kind(loop.seed, training.settings.image_share, stage.steps)
    image_steps = after.number if after.kind == "image" else stage.steps - after.number
    frozen = [training.model.vae, *(each.network for each in training.model.text_encoders)]
    return StageEstimate(
        steps=stage.steps,
        samples_per_step=run.batch_size,
        height=stage.height,
        width=stage.width,
        num_frames=stage.num_frames,
        fps=stage.fps,
        videos=(stage.steps - image_steps) * run.batch_size,
        images=image_steps * run.batch_size * stage.num_frames,
        held=memory.held + sum(weight.nbytes for each in frozen for weight in each.parameters()),
        activations=activation_bytes(training.model, stage, loop.train_batch_size, loop.mixed_precision),
        batch=loop.train_batch_size,
        checkpoint=memory.checkpoint,
    )


class LoopMemory(NamedTuple):
    """Bytes that a training loop holds in one process, without activations.

    gradients: the step's sum and one micro-batch's gradients. average: the averaged weights, 0 without averages.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int

    @property
    def held(self) -> int:
        """Bytes held while gradients are summed."""
        return self.weights + self.gradients + self.optimiser + self.average

    @property
    def checkpoint(self) -> int:
        """Approximate bytes of one checkpoint on disk."""
        return self.gradients // 2 + self.optimiser + self.average


def loop_memory(settings: TrainingSettings, net: nn.Module) -> LoopMemory:
    """Return the memory to train the parameters of `net` that require gradients; they may be on the meta device."""
    trained = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    matrices = muon_names(net) if settings.optimizer == "muon" else set[str]()
    size = sum(weight.nbytes for weight in trained.values())
    # AdamW keeps two moments of a weight, Muon one
    optimiser = sum(weight.nbytes * (1 if name in matrices else 2) for name, weight in trained.items())
    weights = sum(weight.nbytes for weight in net.parameters())
    return LoopMemory(weights, 2 * size, optimiser, size if settings.ema_decay else 0)


def _report(opened: OpenSource, shape: ClipShape) -> SourceReport:
    name, data = opened.source.source, opened.dataset
    if data is None:
        return SourceReport(name, opened.kind, "the pocket world", opened.source.count, [], 0, [])
    tried = list(islice(data, NUM_TRIED))
    refused = [reason for reason in (_read_error(item, shape) for item in tried) if reason]
    problems = [f"{problem.name} {problem.reason}" for problem in data.problems]
    return SourceReport(name, opened.kind, data.layout, len(data), problems, len(tried), refused)


def _read_error(item: DatasetItem, shape: ClipShape) -> str | None:
    try:
        cut_clip(item, np.random.default_rng(0), shape)
    except BrokenFile as error:
        return str(error)
    return None


class StageMemory(NamedTuple):
    """Bytes of the inputs of one U-Net stage, and of what it saves for the backward pass itself."""

    inputs: int
    saved: int


def activation_bytes(model: Model, stage: Stage, batch: int, precision: str) -> int:
    """Return the approximate bytes that the network saves for the backward pass of `batch` videos of a stage.

    The forward pass is on torch's meta device, which allocates no memory; fused kernels may save less.
    """
    parts: list[StageMemory] = []

    def call(part: CallStage, *inputs: object) -> Tensor:
        with _saved_bytes(weights) as saved:
            output = part(*inputs)
        parts.append(StageMemory(sum(x.nbytes for x in inputs if isinstance(x, Tensor)), sum(saved.values())))
        return output

    net = VideoUNet(model.net.image_unet, model.net.temporal, call)
    weights = {name: _on_meta(each) for name, each in net.state_dict(keep_vars=True).items()}
    with _saved_bytes(weights) as outside:
        functional_call(net, weights, _meta_inputs(model, stage, batch))
    if model.net.call_stage is call_directly:
        inside = sum(each.saved for each in parts)
    else:  # gradient checkpointing: all inputs, and the activations of one stage at a time
        inside = sum(each.inputs for each in parts) + max(each.saved for each in parts)
    return round((sum(outside.values()) + inside) * (1 if precision == "no" else MIXED_PRECISION_MEMORY))


def _on_meta(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)


@contextmanager
def _saved_bytes(weights: dict[str, Tensor]) -> Iterator[dict[int, int]]:
    """Count the bytes that are saved for gradients within the block, without the weights, by storage."""
    saved: dict[int, int] = {}
    storages = []  # kept alive, so that no two of them have the same address
    known = {each.untyped_storage()._cdata for each in weights.values()}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.append(storage)
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        yield saved


def _meta_inputs(model: Model, stage: Stage, batch: int) -> tuple[Tensor, Tensor, Condition]:
    """Return the network's inputs on the meta device."""
    like = model.prompt([""], size=(stage.height, stage.width))
    embedding = None if like.embedding is None else like.embedding.expand(batch, -1).to("meta")
    condition = Condition(like.tokens.expand(batch, -1, -1).to("meta"), embedding=embedding)
    z = torch.empty(batch, stage.num_frames, *model.latent_shape(stage.height, stage.width), device="meta")
    return z, torch.zeros(batch, dtype=torch.int64, device="meta"), condition
