"""Attention of more samples and heads than a grid of CUDA has, and of large numbers in half precision."""

from __future__ import annotations

import pytest
import torch
from gpu.comparing import relative_error
from torch import Tensor

from kineograph.models.temporal.layers import TemporalAttention
from kineograph.models.unet.frame_attention import multi_head_attention

pytestmark = pytest.mark.gpu

DTYPES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PIXELS = 72 * 128  # of latents of 1024 x 576
SIZES = [(PIXELS, 8), (66_000, 1), (131_072, 1)]  # samples, heads


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
@each_dtype
@pytest.mark.parametrize(("samples", "heads"), SIZES)
def test_attention_of_large_batches(device: torch.device, dtype: torch.dtype, samples: int, heads: int) -> None:
    query, key, value = (random_tensor(samples, 4, heads * 8 + k)[..., : heads * 8] for k in range(3))
    got = multi_head_attention(*(x.to(device, dtype) for x in (query, key, value)), heads)
    some = [0, 1, samples // 2, samples - 2, samples - 1]
    wanted = multi_head_attention(*(x[some] for x in (query, key, value)), heads)
    assert relative_error(got[some], wanted) < DTYPES[dtype]


@each_dtype
def test_gradients_of_large_batches(device: torch.device, dtype: torch.dtype) -> None:
    query = random_tensor(PIXELS, 4, 64).to(device, dtype).requires_grad_()
    multi_head_attention(query, query, query, 8).float().square().sum().backward()
    some = [0, 1, PIXELS - 1]
    alone = random_tensor(PIXELS, 4, 64)[some].requires_grad_()
    multi_head_attention(alone, alone, alone, 8).square().sum().backward()
    assert query.grad is not None and alone.grad is not None
    assert relative_error(query.grad[some], alone.grad) < 3 * DTYPES[dtype]


@torch.no_grad()
@each_dtype
@pytest.mark.parametrize("relative", [None, 16])
def test_temporal_attention_of_large_frames(device: torch.device, dtype: torch.dtype, relative: int | None) -> None:
    torch.manual_seed(0)
    attention, x = TemporalAttention(64, 8, 8, relative), random_tensor(PIXELS, 4, 64)
    some = [0, 1, PIXELS - 1]
    wanted = attention(x[some])
    got = attention.to(device, dtype)(x.to(device, dtype))
    assert relative_error(got[some], wanted) < DTYPES[dtype]


@torch.no_grad()
def test_relative_positions_do_not_overflow_in_float16(device: torch.device) -> None:
    torch.manual_seed(0)
    attention, x = TemporalAttention(64, 1, 64, relative=2), random_tensor(3, 4, 64)
    attention.to_q.weight.copy_(torch.eye(64) * 200)
    attention.to_k.weight.copy_(torch.eye(64) * 20)
    wanted = attention(x)
    assert (attention.to_q(x) @ attention.to_k(x).mT).abs().max() > 2 * 65_504
    got = attention.to(device, torch.float16)(x.to(device, torch.float16))
    assert got.isfinite().all() and relative_error(got, wanted) < 0.02
