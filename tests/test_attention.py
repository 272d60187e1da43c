"""Which frames see which, and that one call for many frames gives what many calls give."""

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
)

CHANNELS = 12


def window(frame: int) -> tuple[int, ...]:
    """Itself and the two frames before it."""
    return tuple(range(max(frame - 2, 0), frame + 1))


def everything(frame: int) -> tuple[int, ...]:
    return tuple(range(5))


POLICIES = (own, first, previous, first_and_previous, window)
each_policy = pytest.mark.parametrize("see", POLICIES, ids=lambda see: see.__name__)


@pytest.fixture
def attn() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=CHANNELS, heads=3, dim_head=4)


def frames(count: int, b: int = 2) -> Tensor:
    return torch.randn(b, count, 6, CHANNELS, generator=torch.Generator().manual_seed(count))


def walk(
    attn: Attention, x: Tensor, see: FrameAttention, numbers: range, memory: KeyValueCache | None = None
) -> Tensor:
    steps = group_frames(see, numbers, memory)
    seen = attend_frames(attn, x.flatten(0, 1), steps, memory).unflatten(0, x.shape[:2])
    if memory is not None:
        drop_unread(memory, steps)
    return seen


def one_by_one(attn: Attention, x: Tensor, see: FrameAttention) -> Tensor:
    """The definition: every frame on its own, on the tokens of all the frames it reads."""
    query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    answers = [
        multi_head_attention(
            query[:, k], key[:, list(see(k))].flatten(1, 2), value[:, list(see(k))].flatten(1, 2), attn.heads
        )
        for k in range(x.shape[1])
    ]
    return project_output(attn, torch.stack(answers, dim=1))


def test_policies():
    assert [own(k) for k in range(3)] == [(0,), (1,), (2,)]
    assert [first(k) for k in range(3)] == [(0,), (0,), (0,)]
    assert [previous(k) for k in range(3)] == [(0,), (0,), (1,)]
    assert [first_and_previous(k) for k in range(4)] == [(0,), (0,), (0, 1), (0, 2)]


def test_attend_is_softmax_of_scores_times_values():
    query, key, value = torch.randn(3, 2, 5, 8).unbind()
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (query, key, value)]
    scores = heads[0] @ heads[1].mT / 4**0.5
    expected = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(multi_head_attention(query, key, value, 2), expected)


@pytest.mark.parametrize("see", [*POLICIES, everything], ids=lambda see: see.__name__)
def test_frames_see_what_their_policy_says(attn: Attention, see: FrameAttention):
    x = frames(5)
    torch.testing.assert_close(walk(attn, x, see, range(5)), one_by_one(attn, x, see))


def test_frames_come_back_in_order_whatever_they_read(attn: Attention):
    def see(frame: int) -> tuple[int, ...]:
        return ((4, 1), (3,), (1, 4), (3,), (0,))[frame]

    x = frames(5)
    torch.testing.assert_close(walk(attn, x, see, range(5)), one_by_one(attn, x, see))


@each_policy
@pytest.mark.parametrize("cuts", [(0, 4, 8, 9), (0, 1, 2, 9), (0, 6, 7, 9)], ids=str)
def test_in_parts_as_at_once(attn: Attention, see: FrameAttention, cuts: tuple[int, ...]):
    x, memory = frames(9), {}
    ranges = [range(a, b) for a, b in pairwise(cuts)]
    parts = [walk(attn, x[:, [*part]], see, part, memory) for part in ranges]
    torch.testing.assert_close(torch.cat(parts, dim=1), walk(attn, x, see, range(9)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("see", "kept"), [(own, []), (first, [0]), (previous, [7]), (first_and_previous, [0, 7]), (window, [6, 7])]
)
def test_a_memory_keeps_what_the_next_frame_reads(attn: Attention, see: FrameAttention, kept: list[int]):
    x, memory = frames(8), {}
    for start in (0, 2, 4, 6):
        walk(attn, x[:, start : start + 2], see, range(start, start + 2), memory)
    assert sorted(memory) == kept
    assert all(part.untyped_storage().nbytes() == x[:, :1].nbytes for kv in memory.values() for part in kv[attn])


def test_an_earlier_clip_is_an_anchor(attn: Attention):
    earlier, later, memory = frames(3), frames(4), {}
    walk(attn, earlier, first, range(3), memory)
    seen = walk(attn, later, first, range(1, 5), memory)
    expected = one_by_one(attn, torch.cat([earlier[:, :1], later], dim=1), first)[:, 1:]
    torch.testing.assert_close(seen, expected)


def test_a_frame_that_is_neither_here_nor_remembered_is_an_error():
    with pytest.raises(InputError, match=r"frames 4 to 7 read frames \[0, 3\].*same cache"):
        group_frames(first_and_previous, range(4, 8), None)
    with pytest.raises(InputError, match=r"read frames \[3\]"):
        group_frames(previous, range(4, 8), {0: {}})


@pytest.mark.parametrize(
    ("see", "calls", "projected"), [(own, 1, 8), (first, 1, 1), (previous, 2, 7), (first_and_previous, 2, 7)]
)
def test_only_frames_that_are_read_are_projected(
    attn: Attention, monkeypatch, see: FrameAttention, calls: int, projected: int
):
    """Text2Video-Zero's attention is one call, on keys and values of one frame."""
    asked, rows = [], []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: asked.append(qkv) or real(*qkv))
    attn.to_k.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    with torch.no_grad():
        walk(attn, frames(8), see, range(8))
    assert len(asked) == calls and rows == [projected]


def test_with_gradients_the_answer_is_the_same(attn: Attention):
    x = frames(4)
    with torch.no_grad():
        fused = walk(attn, x, first_and_previous, range(4))
    torch.testing.assert_close(walk(attn, x, first_and_previous, range(4)), fused, atol=1e-6, rtol=1e-5)


def test_nothing_is_projected_when_all_that_is_read_is_remembered(attn: Attention):
    memory, rows = {}, []
    walk(attn, frames(3), first, range(3), memory)
    attn.to_v.register_forward_hook(lambda *_: rows.append(1))
    walk(attn, frames(4), first, range(3, 7), memory)
    assert rows == []
