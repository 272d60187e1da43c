"""Size of a training computed before it starts: parameters, steps, samples, and memory without activations."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from kineograph.training.optimisers import muon_names
from kineograph.training.settings import TrainingSettings, samples_per_step


class TrainingCost(NamedTuple):
    """Counts of parameters, steps and samples, and bytes of memory in one process, without activations.

    gradients: the step's sum and one share's gradients. average: the averaged weights, 0 without averages.
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
        """Number of samples seen in all steps."""
        return self.steps * self.samples_per_step

    @property
    def memory(self) -> int:
        """Bytes held in one process while gradients are summed."""
        return self.weights + self.gradients + self.optimiser + self.average

    @property
    def checkpoint(self) -> int:
        """Approximate bytes of one checkpoint on disk."""
        return self.gradients // 2 + self.optimiser + self.average


def training_cost(settings: TrainingSettings, net: nn.Module, processes: int) -> TrainingCost:
    """Return the cost of training the parameters of `net` that require gradients; they may be on the meta device."""
    named = dict(net.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    matrices = muon_names(net) if settings.optimizer == "muon" else set[str]()
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
