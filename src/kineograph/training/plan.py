"""What a training would take, told before it begins: what `--dry-run` prints."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from kineograph.training.optimisers import muon_names
from kineograph.training.settings import TrainingSettings, samples_per_step


class TrainingCost(NamedTuple):
    """Counts of parameters, steps and samples, and bytes of memory in one process, activations apart.

    gradients: of the step and of one share of it. average: of the trained weights, where one is kept.
    """

    trained: int
    frozen: int
    steps: int
    samples_per_step: int
    weights: int
    gradients: int
    optimiser: int
    average: int

    @property
    def samples(self) -> int:
        """How many samples all steps see."""
        return self.steps * self.samples_per_step

    @property
    def memory(self) -> int:
        """Bytes of all that is held in one process between the steps and while they sum."""
        return self.weights + self.gradients + self.optimiser + self.average

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint on the disk, nearly."""
        return self.gradients // 2 + self.optimiser + self.average


def training_cost(settings: TrainingSettings, net: nn.Module, processes: int) -> TrainingCost:
    """What training the parameters of `net` that require gradients would take; they may be on the meta device."""
    named = dict(net.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    matrices = muon_names(net, settings)
    size = sum(weight.nbytes for weight in trained.values())
    # AdamW keeps two moments of a weight, Muon one
    optimiser = sum(weight.nbytes * (1 if name in matrices else 2) for name, weight in trained.items())
    return TrainingCost(
        trained=sum(weight.numel() for weight in trained.values()),
        frozen=sum(weight.numel() for weight in named.values()) - sum(weight.numel() for weight in trained.values()),
        steps=settings.max_train_steps,
        samples_per_step=samples_per_step(settings, processes),
        weights=sum(weight.nbytes for weight in named.values()),
        gradients=2 * size,
        optimiser=optimiser,
        average=size if settings.ema_decay else 0,
    )
