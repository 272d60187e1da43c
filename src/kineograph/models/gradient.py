"""What reads frozen layers' output in training, and how it must."""

from __future__ import annotations

import torch
from torch import Tensor


def felt(x: Tensor) -> Tensor:
    """The same numbers, for a group norm that learns: with a gradient of their own where they have none.

    On a CPU torch (2.13) crashes in a group norm's backward pass when what it read is `channels_last` and has none.
    """
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()
