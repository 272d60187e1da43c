"""Which frames a frame sees, and attention between the frames of a video.

A policy is a function from a frame's number to the numbers of the frames whose keys and values it reads. From it
follows, once for each walk, a `Plan`: the fewest attention calls, and the few frames whose keys and values are wanted.
Frames that read the same frames ask in one call, their queries one after another; so Text2Video-Zero's cross-frame
attention is one call on keys and values of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.errors import InputError

FrameAttention = Callable[[int], tuple[int, ...]]
KeyValue = tuple[Float[Tensor, "b 1 _ _"], Float[Tensor, "b 1 _ _"]]  # tokens and channels differ from layer to layer
KeyValueCache = dict[int, dict[nn.Module, KeyValue]]  # frame -> attention layer -> what later frames read there


def own(frame: int) -> tuple[int, ...]:
    """Every frame reads itself, as in an image model."""
    return (frame,)


def first(frame: int) -> tuple[int, ...]:
    """Every frame reads frame 0 (Text2Video-Zero, cross-frame attention)."""
    return (0,)


def previous(frame: int) -> tuple[int, ...]:
    """Every frame reads the one before it, and frame 0 itself."""
    return (max(frame - 1, 0),)


def first_and_previous(frame: int) -> tuple[int, ...]:
    """Every frame reads frame 0 and the one before it, which counts once where they are the same."""
    return (0,) if frame <= 1 else (0, frame - 1)


class AttentionCall(NamedTuple):
    """One attention call. Groups of frames, as many in each, ask together and read as many frames each."""

    groups: int
    asking: list[int]  # places among the frames walked
    read: list[int]  # places among the frames known


class FrameGroups(NamedTuple):
    """How the frames of one walk see each other, the same in every layer.

    Known are the frames that somebody reads: those recalled from a memory, then those projected here.
    """

    frames: list[int]
    recalled: list[int]  # numbers of frames
    projected: list[int]  # places among the frames walked
    kept: dict[int, int]  # numbers of frames, and their places among the frames known
    calls: list[AttentionCall]
    order: list[int]  # places among the answers of the frames walked


def group_frames(see: FrameAttention, frames: Sequence[int], memory: KeyValueCache | None) -> FrameGroups:
    """How these frames see each other and, through the memory, those of earlier walks.

    What the next frame would read is kept for it. That is enough for any policy by which frame k + 1 reads nothing
    but itself, frame k and what frame k read, like those above or a sliding window.
    Raises InputError when a frame reads one that is neither walked nor remembered.
    """
    frames, last = list(frames), max(frames)
    keep = [] if memory is None else [k for k in see(last + 1) if k <= last]
    wanted = sorted({*keep, *chain.from_iterable(map(see, frames))})
    recalled = [k for k in wanted if k not in frames]
    if missing := [k for k in recalled if k not in (memory or {})]:
        raise InputError(
            f"frames {frames[0]} to {frames[-1]} read frames {missing}, which are neither among them nor remembered: "
            "walk those first, and give both walks the same memory"
        )
    projected = [k for k in wanted if k in frames]
    place = {k: at for at, k in enumerate(recalled + projected)}
    calls = _calls([tuple(place[k] for k in see(frame)) for frame in frames])
    answered = [at for call in calls for at in call.asking]
    order = [answered.index(at) for at in range(len(frames))]
    return FrameGroups(
        frames, recalled, [frames.index(k) for k in projected], {k: place[k] for k in keep}, calls, order
    )


def _calls(reads: list[tuple[int, ...]]) -> list[AttentionCall]:
    """The fewest calls in which frames that read these others can ask: groups of one shape share one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, read in enumerate(reads):
        groups.setdefault(read, []).append(at)
    shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for read, asking in groups.items():
        shapes.setdefault((len(asking), len(read)), []).append(read)
    return [
        AttentionCall(len(same), [at for read in same for at in groups[read]], list(chain.from_iterable(same)))
        for same in shapes.values()
    ]


def drop_unread(memory: KeyValueCache, plan: FrameGroups) -> None:
    """Drop what no later frame reads, so that a memory does not grow with the number of frames."""
    for frame in memory.keys() - plan.kept.keys():
        del memory[frame]


def attend_frames(
    attn: Attention, x: Float[Tensor, "bf n c"], plan: FrameGroups, memory: KeyValueCache | None
) -> Float[Tensor, "bf n c"]:
    """Self-attention of the frames of a walk, folded into the batch."""
    query = attn.to_q(x).unflatten(0, (-1, len(plan.frames)))
    key, value = _known(attn, x.unflatten(0, (-1, len(plan.frames))), plan, memory)
    answers = []
    for groups, asking, read in plan.calls:
        pairs = ((query, asking), (key, read), (value, read))
        asked, keys, values = (_grouped(tensor, places, groups) for tensor, places in pairs)
        answers.append(
            multi_head_attention(asked, keys, values, attn.heads).reshape(len(query), len(asking), *query.shape[2:])
        )
    return project_output(attn, _pick(_joined(answers), plan.order).flatten(0, 1))


def _known(attn: Attention, x: Tensor, plan: FrameGroups, memory: KeyValueCache | None) -> tuple[Tensor, Tensor]:
    """Keys and values of the frames that are read, `b known n c` each."""
    remembered = {} if memory is None else memory
    pairs = [remembered[frame][attn] for frame in plan.recalled]
    if plan.projected:
        read = _pick(x, plan.projected)
        pairs.append((attn.to_k(read), attn.to_v(read)))
    key, value = (_joined(parts) for parts in zip(*pairs, strict=True))
    for frame, at in plan.kept.items():
        remembered.setdefault(frame, {})[attn] = (key[:, at : at + 1].clone(), value[:, at : at + 1].clone())
    return key, value


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _pick(x: Tensor, places: list[int]) -> Tensor:
    """Some of the frames of `b f ...`: a view where they adjoin."""
    start, stop = places[0], places[0] + len(places)
    return x[:, start:stop] if places == list(range(start, stop)) else x[:, places]


def _grouped(x: Tensor, places: list[int], groups: int) -> Tensor:
    """Frames of a group one after another: `b f n c` -> `(b groups) (members n) c`."""
    return _pick(x, places).reshape(len(x) * groups, -1, x.shape[-1])


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of `b n c` on `b m c`, without ever holding the scores.

    They are held where gradients are wanted on a CPU: there the fused one takes three times as long on a few cells.
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    if query.device.type == "cpu" and query.requires_grad:
        answer = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1).to(value.dtype) @ value
    else:
        answer = F.scaled_dot_product_attention(query, key, value)
    return answer.transpose(1, 2).flatten(2)


def project_output(attn: Attention, x: Tensor) -> Tensor:
    """What an attention layer does after its softmax."""
    project, dropout = attn.to_out
    return dropout(project(x))
