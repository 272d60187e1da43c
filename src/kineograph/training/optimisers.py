"""What steps the trained weights: AdamW, or Muon for the matrices and filters with AdamW for the rest.

Its state is kept by the weights' names, so that it does not matter into how many optimisers they were dealt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW, Optimizer

from kineograph.errors import InputError
from kineograph.training.settings import TrainingSettings

SMALLEST = 16  # a matrix with a shorter side is none to speak of: an entry from few channels, a LoRA's rank


class Optimisers(NamedTuple):
    """What steps, and what is stepped by the name of the trained weight: itself, or a view of it as a matrix."""

    each: tuple[Optimizer, ...]
    leaves: Mapping[str, nn.Parameter]


def build_optimisers(net: nn.Module, settings: TrainingSettings, cores: int) -> Optimisers:
    """Optimisers of the weights that require gradients; Muon's are as many as cores, to be stepped side by side."""
    matrices = muon_names(net, settings)
    leaves = {
        name: nn.Parameter(_as_matrix(weight.detach(), weight)) if name in matrices else weight
        for name, weight in net.named_parameters()
        if weight.requires_grad
    }
    others = [leaf for name, leaf in leaves.items() if name not in matrices]
    each = [*_adamw(others, settings), *_muon([leaves[name] for name in leaves if name in matrices], settings, cores)]
    return Optimisers(tuple(each), leaves)


def muon_names(net: nn.Module, settings: TrainingSettings) -> set[str]:
    """Names of the trained weights that Muon steps."""
    if settings.optimizer != "muon":
        return set()
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    inside = {id(layer.weight) for layer in net.modules() if isinstance(layer, kinds)}
    return {
        name
        for name, weight in net.named_parameters()
        if weight.requires_grad and id(weight) in inside and min(weight.shape[:2]) >= SMALLEST
    }


def _adamw(weights: list[nn.Parameter], settings: TrainingSettings) -> list[Optimizer]:
    betas = (settings.adam_beta1, settings.adam_beta2)
    decay, epsilon = settings.adam_weight_decay, settings.adam_epsilon
    return [AdamW(weights, settings.learning_rate, betas, epsilon, decay, fused=True)] if weights else []


def _muon(matrices: list[nn.Parameter], settings: TrainingSettings, cores: int) -> list[Optimizer]:
    if not matrices:
        return []
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"the optimizer muon needs torch 2.9 or later, and this is {torch.__version__}: choose adamw")
    from kineograph.training.muon import muons

    return muons(matrices, settings.learning_rate, settings.adam_weight_decay, cores)


def _as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """[out, all else] in the order of the weight's memory, so that a weight's own matrix is a view of it."""
    return (values if weight.is_contiguous() else values.movedim(1, -1)).flatten(1)


def step_optimisers(
    ways: Optimisers,
    gradients: Mapping[str, Tensor],
    trained: Mapping[str, nn.Parameter],
    settings: TrainingSettings,
    learning_rate: float,
    scaler: GradScaler,
    walk: Callable[..., Any],
) -> float:
    """Steps the weights that have a gradient, clipped in place; returns the norm of all gradients before that.

    walk: `map`, or a pool's, by which the optimisers step side by side.
    """
    for name, leaf in ways.leaves.items():
        gradient = gradients.get(name)
        leaf.grad = _as_matrix(gradient, trained[name]) if gradient is not None and leaf.ndim == 2 else gradient
    moving = [way for way in ways.each if any(leaf.grad is not None for leaf in _stepped(way))]
    for way in moving:
        scaler.unscale_(way)
        for group in way.param_groups:
            group["lr"] = learning_rate
    norm = nn.utils.clip_grad_norm_(ways.leaves.values(), settings.max_grad_norm)
    list(walk(scaler.step, moving))
    if moving:
        scaler.update()
    for leaf in ways.leaves.values():
        leaf.grad = None
    return float(norm)


def _stepped(way: Optimizer) -> list[nn.Parameter]:
    return [leaf for group in way.param_groups for leaf in group["params"]]


def optimiser_state(ways: Optimisers) -> dict[str, Tensor]:
    """The state of all optimisers: tensors named weight/what."""
    states = {name: way.state[leaf] for name, leaf in ways.leaves.items() for way in ways.each if leaf in way.state}
    return {f"{name}/{what}": value for name, state in states.items() for what, value in state.items()}


def load_optimiser_state(ways: Optimisers, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `kept` gave."""
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        # in the order of the weight's memory: AdamW's fused step reads the two side by side
        alike = value.shape == ways.leaves[name].shape
        states[name][what] = torch.empty_like(ways.leaves[name] if alike else value).copy_(value)
    names = {leaf: name for name, leaf in ways.leaves.items()}
    for way in ways.each:
        numbered = [(number, names[leaf]) for number, leaf in enumerate(_stepped(way))]
        state = {number: states[name] for number, name in numbered if name in states}
        way.load_state_dict({"state": state, "param_groups": way.state_dict()["param_groups"]})
