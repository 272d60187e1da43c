"""Frame attention: grouped calls with a cache equal the definition, one frame at a time."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from kineograph.errors import InputError
from kineograph.models.unet.frame_attention import (
    FrameAttention,
    KeyValueCache,
    attend_frames,
    drop_unread,
    first,
    first_and_previous,
    group_frames,
    multi_head_attention,
    own,
    previous,
    project_output,
    split_scale,
)

CHANNELS = 12


def window(frame: int) -> tuple[int, ...]:
    """Read the frame itself and the two before it."""
    return tuple(range(max(frame - 2, 0), frame + 1))


def everything(frame: int) -> tuple[int, ...]:
    return tuple(range(5))


POLICIES = (own, first, previous, first_and_previous, window)
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)


@pytest.fixture
def attn() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=CHANNELS, heads=3, dim_head=4)


def frames(count: int, b: int = 2) -> Tensor:
    return torch.randn(b, count, 6, CHANNELS, generator=torch.Generator().manual_seed(count))


def attend(
    attn: Attention, x: Tensor, policy: FrameAttention, numbers: range, cache: KeyValueCache | None = None
) -> Tensor:
    groups = group_frames(policy, numbers, cache)
    output = attend_frames(attn, x.flatten(0, 1), groups, cache).unflatten(0, x.shape[:2])
    if cache is not None:
        drop_unread(cache, groups)
    return output


def one_by_one(attn: Attention, x: Tensor, policy: FrameAttention) -> Tensor:
    """Return the definition: attention of every frame to the tokens of all frames that it reads."""
    query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    outputs = [
        multi_head_attention(
            query[:, k], key[:, list(policy(k))].flatten(1, 2), value[:, list(policy(k))].flatten(1, 2), attn.heads
        )
        for k in range(x.shape[1])
    ]
    return project_output(attn, torch.stack(outputs, dim=1))


def test_policies() -> None:
    assert [own(k) for k in range(3)] == [(0,), (1,), (2,)]
    assert [first(k) for k in range(3)] == [(0,), (0,), (0,)]
    assert [previous(k) for k in range(3)] == [(0,), (0,), (1,)]
    assert [first_and_previous(k) for k in range(4)] == [(0,), (0,), (0, 1), (0, 2)]


def test_multi_head_attention_equals_its_formula() -> None:
    query, key, value = torch.randn(3, 2, 5, 8).unbind()
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (query, key, value)]
    scores = heads[0] @ heads[1].mT / 4**0.5
    expected = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(multi_head_attention(query, key, value, 2), expected)


@pytest.mark.parametrize("policy", [*POLICIES, everything], ids=lambda policy: policy.__name__)
def test_frames_read_the_frames_of_their_policy(attn: Attention, policy: FrameAttention) -> None:
    x = frames(5)
    torch.testing.assert_close(attend(attn, x, policy, range(5)), one_by_one(attn, x, policy))


def test_outputs_are_in_the_order_of_frames(attn: Attention) -> None:
    def policy(frame: int) -> tuple[int, ...]:
        return ((4, 1), (3,), (1, 4), (3,), (0,))[frame]

    x = frames(5)
    torch.testing.assert_close(attend(attn, x, policy, range(5)), one_by_one(attn, x, policy))


@each_policy
@pytest.mark.parametrize("cuts", [(0, 4, 8, 9), (0, 1, 2, 9), (0, 6, 7, 9)], ids=str)
def test_chunks_with_a_cache_equal_one_call(attn: Attention, policy: FrameAttention, cuts: tuple[int, ...]) -> None:
    x, cache = frames(9), {}
    ranges = [range(a, b) for a, b in pairwise(cuts)]
    parts = [attend(attn, x[:, [*part]], policy, part, cache) for part in ranges]
    torch.testing.assert_close(torch.cat(parts, dim=1), attend(attn, x, policy, range(9)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("policy", "kept"), [(own, []), (first, [0]), (previous, [7]), (first_and_previous, [0, 7]), (window, [6, 7])]
)
def test_the_cache_has_what_the_next_frame_reads(attn: Attention, policy: FrameAttention, kept: list[int]) -> None:
    x, cache = frames(8), {}
    for start in (0, 2, 4, 6):
        attend(attn, x[:, start : start + 2], policy, range(start, start + 2), cache)
    assert sorted(cache) == kept
    assert all(part.untyped_storage().nbytes() == x[:, :1].nbytes for kv in cache.values() for part in kv[attn])


def test_the_cache_of_an_earlier_clip_anchors_a_later_one(attn: Attention) -> None:
    earlier, later, cache = frames(3), frames(4), {}
    attend(attn, earlier, first, range(3), cache)
    got = attend(attn, later, first, range(1, 5), cache)
    expected = one_by_one(attn, torch.cat([earlier[:, :1], later], dim=1), first)[:, 1:]
    torch.testing.assert_close(got, expected)


def test_a_frame_that_is_neither_given_nor_in_the_cache_is_an_error() -> None:
    with pytest.raises(InputError, match=r"frames 4 to 7 read frames \[0, 3\].*same cache"):
        group_frames(first_and_previous, range(4, 8), None)
    with pytest.raises(InputError, match=r"read frames \[3\]"):
        group_frames(previous, range(4, 8), {0: {}})


@pytest.mark.parametrize(
    ("policy", "calls", "projected"), [(own, 1, 8), (first, 1, 1), (previous, 2, 7), (first_and_previous, 2, 7)]
)
def test_only_frames_that_are_read_are_projected(
    attn: Attention, monkeypatch: pytest.MonkeyPatch, policy: FrameAttention, calls: int, projected: int
) -> None:
    """Text2Video-Zero's attention is one call, on keys and values of one frame."""
    calls_made, rows = [], []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: calls_made.append(qkv) or real(*qkv))
    attn.to_k.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    with torch.no_grad():
        attend(attn, frames(8), policy, range(8))
    assert len(calls_made) == calls and rows == [projected]


def test_the_result_is_the_same_with_gradients(attn: Attention) -> None:
    x = frames(4)
    with torch.no_grad():
        fused = attend(attn, x, first_and_previous, range(4))
    torch.testing.assert_close(attend(attn, x, first_and_previous, range(4)), fused, atol=1e-6, rtol=1e-5)


def test_nothing_is_projected_if_all_that_is_read_is_in_the_cache(attn: Attention) -> None:
    cache, rows = {}, []
    attend(attn, frames(3), first, range(3), cache)
    attn.to_v.register_forward_hook(lambda *_: rows.append(1))
    attend(attn, frames(4), first, range(3, 7), cache)
    assert rows == []


# --- limits of GPUs


def test_attention_of_more_pixels_than_a_grid_of_cuda_has_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal attention has a batch of every pixel: 1024 x 576 has 9,216 latent pixels, with 8 heads each."""
    query, key, value = (torch.randn(9216, 2, 16, generator=torch.Generator().manual_seed(k)) for k in range(3))
    wanted = torch.cat([multi_head_attention(*(x[part] for x in (query, key, value)), 8) for part in HALVES])
    calls, fused = list[torch.Size](), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x: calls.append(x[0].shape) or fused(*x))
    assert torch.equal(multi_head_attention(query, key, value, 8), wanted)
    assert sum(len_ for len_, *_ in calls) == 9216 and all(len_ * heads <= 65_535 for len_, heads, *_ in calls)


HALVES = (slice(0, 5000), slice(5000, None))


@pytest.mark.parametrize("width", [1, 2, 8, 17, 32, 40, 64, 80, 160])
def test_scale_of_attention_keeps_products_in_range_and_rounds_nothing(width: int) -> None:
    before, after = split_scale(width)
    assert before * after == width**-0.5 and before <= width**-0.5
    query, key = (torch.randn(5, width, generator=torch.Generator().manual_seed(width + k)) for k in range(2))
    assert torch.equal((query * before) @ key.mT * after, query @ key.mT * width**-0.5)


def test_large_products_of_half_precision_do_not_overflow() -> None:
    """The products are up to 80,000, which float16 has not, and the weights of attention are of 1/8 of them."""
    query, key, value = (torch.full((1, 2, 64), 35.0), torch.full((1, 2, 64), 35.0), torch.ones(1, 2, 64))
    output = multi_head_attention(query.half().requires_grad_(), key.half(), value.half(), 1)
    assert (35**2 * 64 > 65_504) and torch.equal(output, torch.ones_like(output))
