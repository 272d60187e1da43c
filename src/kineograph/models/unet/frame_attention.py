"""Frame attention: which frames' keys and values each frame reads in self-attention.

A policy is a function from a frame's number to the numbers of the frames that it reads. From it follow, once for each
forward pass, `FrameGroups`: the smallest number of attention calls, and the few frames whose keys and values are
needed. Frames that read the same frames share one call, with their queries concatenated; so Text2Video-Zero's
cross-frame attention is one call on keys and values of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.errors import InputError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

FrameAttention = Callable[[int], tuple[int, ...]]
KeyValue = tuple[Float[Tensor, "b 1 _ _"], Float[Tensor, "b 1 _ _"]]  # tokens and channels differ from layer to layer
MAX_HEADS = 65_535  # of all samples of one fused attention call: CUDA's limit for the size of a grid
KeyValueCache = dict[int, dict[nn.Module, KeyValue]]  # frame -> self-attention layer -> what later frames read there


def own(frame: int) -> tuple[int, ...]:
    """Let every frame read itself, as in an image model."""
    return (frame,)


def first(frame: int) -> tuple[int, ...]:
    """Let every frame read frame 0 (Text2Video-Zero, cross-frame attention)."""
    return (0,)


def previous(frame: int) -> tuple[int, ...]:
    """Let every frame read the one before it, and frame 0 itself."""
    return (max(frame - 1, 0),)


def first_and_previous(frame: int) -> tuple[int, ...]:
    """Let every frame read frame 0 and the one before it; once if they are the same."""
    return (0,) if frame <= 1 else (0, frame - 1)


class AttentionCall(NamedTuple):
    """One attention call for groups of frames. All groups have the same size and read the same number of frames."""

    groups: int
    queries: list[int]  # indices into the frames of the forward pass
    reads: list[int]  # indices into the frames that are read


class FrameGroups(NamedTuple):
    """The attention calls of one forward pass, the same in every layer.

    The frames that are read are first those from the cache, then those whose keys and values are computed here.
    """

    frames: list[int]  # their numbers in the video
    cached: list[int]  # numbers of the frames read from the cache
    projected: list[int]  # indices into `frames`
    to_cache: dict[int, int]  # number of a frame to put into the cache -> its index into the frames that are read
    calls: list[AttentionCall]
    order: list[int]  # for each of `frames`, its index into the concatenated outputs of the calls


def group_frames(frame_attention: FrameAttention, frames: Sequence[int], cache: KeyValueCache | None) -> FrameGroups:
    """Return the attention calls for these frames, which may read frames of earlier calls through the cache.

    The frames that the next frame would read are put into the cache. That is enough for any policy by which frame k + 1
    reads nothing but itself, frame k and what frame k reads, like those above or a sliding window. Raises InputError if
    a frame reads one that is neither among them nor in the cache.
    """
    frames, last = list(frames), max(frames)
    keep = [] if cache is None else [k for k in frame_attention(last + 1) if k <= last]
    read = sorted({*keep, *chain.from_iterable(map(frame_attention, frames))})
    cached = [k for k in read if k not in frames]
    if missing := [k for k in cached if k not in (cache or {})]:
        raise InputError(
            f"frames {frames[0]} to {frames[-1]} read frames {missing}, which are neither among them nor in the cache: "
            "compute those first, and pass both calls the same cache"
        )
    projected = [k for k in read if k in frames]
    index = {k: at for at, k in enumerate(cached + projected)}
    calls = _group_calls([tuple(index[k] for k in frame_attention(frame)) for frame in frames])
    outputs = [at for call in calls for at in call.queries]
    order = [outputs.index(at) for at in range(len(frames))]
    return FrameGroups(frames, cached, [frames.index(k) for k in projected], {k: index[k] for k in keep}, calls, order)


def _group_calls(reads: list[tuple[int, ...]]) -> list[AttentionCall]:
    """Return the fewest calls: frames that read the same form a group, groups of one size share a call."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, read in enumerate(reads):
        groups.setdefault(read, []).append(at)
    shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for read, members in groups.items():
        shapes.setdefault((len(members), len(read)), []).append(read)
    return [
        AttentionCall(len(same), [at for read in same for at in groups[read]], list(chain.from_iterable(same)))
        for same in shapes.values()
    ]


def drop_unread(cache: KeyValueCache, groups: FrameGroups) -> None:
    """Drop from the cache what no later frame reads, so that it does not grow with the number of frames."""
    for frame in cache.keys() - groups.to_cache.keys():
        del cache[frame]


def attend_frames(
    attn: Attention, x: Float[Tensor, "bf n c"], groups: FrameGroups, cache: KeyValueCache | None
) -> Float[Tensor, "bf n c"]:
    """Return a layer's self-attention of frames folded into the batch."""
    query = attn.to_q(x).unflatten(0, (-1, len(groups.frames)))
    key, value = _keys_and_values(attn, x.unflatten(0, (-1, len(groups.frames))), groups, cache)
    outputs = []
    for count, queries, reads in groups.calls:
        q, k, v = _group(query, queries, count), _group(key, reads, count), _group(value, reads, count)
        outputs.append(multi_head_attention(q, k, v, attn.heads).reshape(len(query), len(queries), *query.shape[2:]))
    return project_output(attn, _select(_concatenate(outputs), groups.order).flatten(0, 1))


def _keys_and_values(
    attn: Attention, x: Tensor, groups: FrameGroups, cache: KeyValueCache | None
) -> tuple[Tensor, Tensor]:
    """Return keys and values of the frames that are read, each `b reads n c`, and put those to keep into the cache."""
    cache = {} if cache is None else cache
    pairs = [cache[frame][attn] for frame in groups.cached]
    if groups.projected:
        read = _select(x, groups.projected)
        pairs.append((attn.to_k(read), attn.to_v(read)))
    key, value = (_concatenate(parts) for parts in zip(*pairs, strict=True))
    for frame, at in groups.to_cache.items():
        cache.setdefault(frame, {})[attn] = (key[:, at : at + 1].clone(), value[:, at : at + 1].clone())
    return key, value


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


def _select(x: Tensor, indices: list[int]) -> Tensor:
    """Return some of the frames of `b f ...`: a view where they adjoin."""
    start, stop = indices[0], indices[0] + len(indices)
    return x[:, start:stop] if indices == list(range(start, stop)) else x[:, indices]


def _group(x: Tensor, indices: list[int], count: int) -> Tensor:
    """Concatenate the tokens of each group's frames: `b f n c` -> `(b count) (members n) c`."""
    return _select(x, indices).reshape(len(x) * count, -1, x.shape[-1])


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return multi-head attention of queries `b n c` on keys and values `b m c`, by torch's fused kernel.

    On a CPU with gradients the weights are computed explicitly: on few tokens the fused kernel takes three times as
    long there.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    if query.device.type == "cpu" and query.requires_grad:
        before, after = split_scale(query.shape[-1])
        output = ((query * before) @ key.transpose(-2, -1) * after).softmax(-1).to(value.dtype) @ value
    else:
        output = split_batch(F.scaled_dot_product_attention, query, key, value)
    return output.transpose(1, 2).flatten(2)


def split_batch(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of `b heads n c` in calls of at most `MAX_HEADS`: temporal attention has each pixel's."""
    size = MAX_HEADS // query.shape[1]
    if len(query) <= size:
        return attend(query, key, value)
    parts = zip(*(x.split(size) for x in (query, key, value)), strict=True)
    return torch.cat([attend(*part) for part in parts])


def split_scale(width: int) -> tuple[float, float]:
    """Return the scale of attention weights, `width ** -0.5`, as a factor of queries and one of their products.

    The first keeps products within float16 wherever the scaled ones are. It is a power of two, which rounds nothing.
    """
    before = 2.0 ** -math.ceil(math.log2(width) / 2)
    return before, width**-0.5 / before


def project_output(attn: Attention, x: Tensor) -> Tensor:
    """Apply an attention layer's output projection and dropout."""
    project, dropout = attn.to_out
    return dropout(project(x))
