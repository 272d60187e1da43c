"""Averages of the trained weights over the steps (EMA): what samples are drawn with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def init_averages(trained: Mapping[str, nn.Parameter], decay: float) -> dict[str, Tensor]:
    """The average before the first step; nothing for a decay of 0."""
    return {name: weight.detach().clone() for name, weight in trained.items()} if decay else {}


@torch.no_grad()
def update_averages(average: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], decay: float, step: int) -> None:
    """Moves the average after a step, counted from 0; the decay starts at 0.1, to forget the first weights."""
    if average:
        now = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [trained[name].detach() for name in average], 1 - now)


@contextmanager
@torch.no_grad()
def use_averages(net: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Lends the averaged weights to the network for a while, and puts its own back, bit for bit."""
    weights = {name: weight for name, weight in net.named_parameters() if name in average}
    own = {name: weight.detach().clone() for name, weight in weights.items()}
    _put(weights, average)
    try:
        yield
    finally:
        _put(weights, own)


@torch.no_grad()
def _put(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
