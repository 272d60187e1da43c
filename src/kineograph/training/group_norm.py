"""Group normalisation with a fast backward pass on a CPU in bfloat16 and `channels_last`.

torch's own backward pass is about four times as slow there as that of the convolution beside it; this one makes a whole
training step of the autoencoder 1.2 to 1.5 times as fast. The formulas are the derivatives of Wu and He, arXiv
1803.08494.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kineograph.models.placement import fastest_memory_format

Network = TypeVar("Network", bound=nn.Module)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, h, w = x.shape
        y, mean, rate = torch.native_group_norm(x, weight.to(x.dtype), bias.to(x.dtype), n, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean.float(), rate.float())
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, weight, mean, rate = ctx.saved_tensors
        n, c, h, w = x.shape
        groups = mean.shape[1]
        size = c // groups
        mean, rate = mean.repeat_interleave(size, 1), rate.repeat_interleave(size, 1)  # n c
        grad_bias = g.sum((2, 3), dtype=torch.float32)
        grad_weight = ((g * x).sum((2, 3), dtype=torch.float32) - grad_bias * mean) * rate

        def group_mean(v: Tensor) -> Tensor:
            return (v * weight).view(n, groups, size).sum(2).repeat_interleave(size, 1) / (size * h * w)

        # grad_x = scale_g * g + scale_x * x + offset, with one number a channel each
        scale_x = -rate.square() * group_mean(grad_weight)
        offset = -rate * group_mean(grad_bias) - scale_x * mean
        scale_g, scale_x, offset = (v.to(x.dtype)[:, :, None, None] for v in (rate * weight, scale_x, offset))
        return torch.addcmul(offset, g, scale_g).addcmul_(x, scale_x), grad_weight.sum(0), grad_bias.sum(0), None, None


class FastGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with the same parameters and values, and a faster gradient on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [n, c, h, w]; other shapes, and tensors on a GPU, take torch's own implementation."""
        if input.ndim != 4 or input.device.type != "cpu":
            return super().forward(input)
        return _GroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)


def use_fast_group_norm(net: Network) -> Network:
    """Replace the group norms of a network by `FastGroupNorm` with the same parameters, in place, and return it."""
    for parent in list(net.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.GroupNorm:
                fast = FastGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
                fast.weight, fast.bias = norm.weight, norm.bias
                setattr(parent, name, fast)
    return net


def prepare_for_device(net: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move a network to the device, in the memory format and with the group norms that train fastest there.

    dtype: the type that it computes in, which decides the memory format; the weights keep theirs.
    """
    net = net.to(device, memory_format=fastest_memory_format(device, dtype))  # type: ignore[call-overload]  # torch forgot it
    return use_fast_group_norm(net) if device.type == "cpu" else net
