"""Layers along time: what video papers put between the layers of an image network.

Each takes frames folded into the batch, `(b f) c h w` or `(b f) n c`, and gives the same shape back. Each begins as the
identity: its last layer is zero. Their parameters carry the names of the released checkpoints. How queries, keys and
values are projected is an argument, `project`, so that branches can be added there for a call (models/branches.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import SinusoidalPositionalEmbedding, TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from kineograph.models.unet.frame_attention import multi_head_attention

Back = Callable[[Tensor, torch.Size], Tensor]  # (tokens `(b h w) f c`, h and w) -> `b f c h w`
ApplyProjection = Callable[
    [nn.Module, Tensor], Tensor
]  # (a projection of an attention, tokens) -> what it makes of them
EPS = 1e-6  # of the group norm of transformers, in Stable Diffusion and all that follow it


def apply_projection(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def as_frames(tokens: Tensor, size: torch.Size) -> Tensor:
    """`(b h w) f c` -> `b f c h w`, a view."""
    return tokens.unflatten(0, (-1, *size)).permute(0, 3, 4, 1, 2)


def as_frames_misread(tokens: Tensor, size: torch.Size) -> Tensor:
    """The same, where tokens `f c` are taken for `c f`: what VidRD's weights were trained with, so they need it."""
    places, frames, channels = tokens.shape
    return as_frames(tokens.reshape(places, channels, frames).transpose(1, 2), size)


class RelativePositions(nn.Module):
    """A learnt vector for each distance between two frames, of at most `farthest` either way (Shaw et al. 2018)."""

    def __init__(self, width: int, farthest: int) -> None:
        super().__init__()
        self.farthest = farthest
        self.embeddings_table = nn.Parameter(torch.empty(2 * farthest + 1, width))
        nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, frames: int) -> Tensor:
        """[f, f, width]: of frame j as frame i sees it; what is farther is taken to be at the farthest distance."""
        place = torch.arange(frames, device=self.embeddings_table.device)
        distance = (place[None, :] - place[:, None]).clamp(-self.farthest, self.farthest)
        return self.embeddings_table[distance + self.farthest]


class TemporalAttention(nn.Module):
    """Self-attention of the frames of one place in the picture: `n f c` -> `n f c`.

    relative: the farthest distance between frames that is told from others; None for no relative positions.
    Source: VideoCrafter1's temporal attention; without `relative` that of ModelScope, AnimateDiff and VidRD.
    """

    def __init__(self, width: int, heads: int, head_width: int, relative: int | None = None) -> None:
        super().__init__()
        self.heads, inside = heads, heads * head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inside, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inside, width))
        if relative is not None:
            self.relative_position_k = RelativePositions(head_width, relative)
            self.relative_position_v = RelativePositions(head_width, relative)

    def forward(self, x: Tensor, project: ApplyProjection = apply_projection) -> Tensor:
        query, key, value = (project(layer, x) for layer in (self.to_q, self.to_k, self.to_v))
        if not hasattr(self, "relative_position_k"):
            return self.to_out(multi_head_attention(query, key, value, self.heads))
        return self.to_out(self._relative(query, key, value))

    def _relative(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Logits q (k + a_k) / sqrt(d), answers p (v + a_v), with the vectors `a` of the distances."""
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        frames, width = query.shape[-2:]
        of_keys, of_values = (a(frames).to(query.dtype) for a in (self.relative_position_k, self.relative_position_v))
        logits = query @ key.mT + torch.einsum("n h i d, i j d -> n h i j", query, of_keys)
        share = (logits * width**-0.5).softmax(-1)
        answer = share @ value + torch.einsum("n h i j, i j d -> n h i d", share, of_values)
        return answer.transpose(1, 2).flatten(2)


class TemporalBlock(nn.Module):
    """One or two temporal self-attentions and a feed-forward, each added to what it reads: `n f c` -> `n f c`.

    positions: how many frames have a sinusoidal position, added to what attention reads; None for no positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        attentions: int = 2,
        positions: int | None = None,
        relative: int | None = None,
        widening: int = 4,
    ) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), TemporalAttention(width, heads, head_width, relative)
        if attentions > 1:
            self.norm2, self.attn2 = nn.LayerNorm(width), TemporalAttention(width, heads, head_width, relative)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, mult=widening, activation_fn="geglu")
        self.pos_embed = nn.Identity() if positions is None else SinusoidalPositionalEmbedding(width, positions)

    def forward(self, x: Tensor, project: ApplyProjection = apply_projection) -> Tensor:
        x = self.attn1(self.pos_embed(self.norm1(x)).to(x.dtype), project) + x
        if hasattr(self, "attn2"):
            x = self.attn2(self.pos_embed(self.norm2(x)).to(x.dtype), project) + x
        return self.ff(self.norm3(x)) + x


class TemporalTransformer(nn.Module):
    """Blocks along time around which the frames pass: `(b f) c h w` -> the same. Its group norm spans all frames.

    back: how tokens become frames again.
    Source: VideoCrafter1 (Chen et al. 2023), section 3.1, TT; ModelScope's and AnimateDiff's are the same shape.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_width: int,
        *,
        groups: int = 32,
        depth: int = 1,
        attentions: int = 2,
        positions: int | None = None,
        relative: int | None = None,
        widening: int = 4,
        back: Back = as_frames,
    ) -> None:
        super().__init__()
        self.back, self.channels = back, channels
        width = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.proj_in = nn.Linear(channels, width)
        self.transformer_blocks = nn.Sequential(
            *(
                TemporalBlock(
                    width,
                    heads,
                    head_width,
                    attentions=attentions,
                    positions=positions,
                    relative=relative,
                    widening=widening,
                )
                for _ in range(depth)
            )
        )
        self.proj_out = _zeroed(nn.Linear(width, channels))

    def forward(self, x: Tensor, frames: int, project: ApplyProjection = apply_projection) -> Tensor:
        size = x.shape[2:]
        tokens = self.proj_in(self.norm(ensure_gradient(as_plane(x, frames))).permute(0, 3, 2, 1).flatten(0, 1))
        for block in self.transformer_blocks:
            tokens = block(tokens, project)
        return (x.unflatten(0, (-1, frames)) + self.back(self.proj_out(tokens), size)).flatten(0, 1)


class TemporalConv(nn.Module):
    """Convolutions over three frames each, added to what they read: `(b f) c h w` -> the same.

    Frames are the rows of a picture whose columns are all places: filters of 3 x 1 are over time. Dropout: in training.
    Source: ModelScope's temporal convolution, which VideoCrafter1 (I2V) and VidRD have after every resnet.
    """

    def __init__(self, channels: int, groups: int = 32, count: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        for number in range(1, count + 1):
            conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
            self.add_module(f"conv{number}", nn.ModuleDict({"norm": nn.GroupNorm(groups, channels), "conv": conv}))
        _zeroed(conv)

    def forward(self, x: Tensor, frames: int, project: ApplyProjection = apply_projection) -> Tensor:
        plane = ensure_gradient(as_plane(x, frames))  # nothing here is an attention's
        for norm, conv in self.rooms():
            plane = conv(self.ready(norm(plane)))
        return x + plane.unflatten(3, x.shape[2:]).transpose(1, 2).flatten(0, 1)

    def rooms(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each group norm with the convolution behind it."""
        return [(room.get_submodule("norm"), room.get_submodule("conv")) for room in self.children()]

    def ready(self, normed: Tensor) -> Tensor:
        """What a convolution reads, of what its norm gives."""
        return dropout(silu(normed), self.dropout, self.training)


class AttentionInBlock(nn.Module):
    """Temporal attention between the layers of a spatial transformer block: tokens `(b f) n c` -> the same.

    A sinusoidal position is added to the tokens themselves, and stays: so it begins as more than the identity.
    Source: VidRD's Temp-Attn (its released code; the figure shows none added, and neither distances, `relative`).
    """

    def __init__(
        self, channels: int, heads: int, head_width: int, positions: int | None = None, relative: int | None = None
    ) -> None:
        super().__init__()
        self.channels = channels
        self.temp_norm = nn.LayerNorm(channels)
        self.temp_attn = TemporalAttention(channels, heads, head_width, relative)
        for weight in self.temp_attn.to_out.parameters():
            nn.init.zeros_(weight)
        self.pos_embed = nn.Identity() if positions is None else SinusoidalPositionalEmbedding(channels, positions)

    def forward(self, x: Tensor, frames: int, project: ApplyProjection = apply_projection) -> Tensor:
        places = x.shape[1]
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (b n) f c
        tokens = self.pos_embed(tokens).to(x.dtype)
        tokens = tokens + self.temp_attn(self.temp_norm(tokens), project)
        return tokens.unflatten(0, (-1, places)).transpose(1, 2).flatten(0, 1)


class FrameRate(nn.Module):
    """Frames a second as a part of the timestep's embedding: `b` -> `b e`. Source: VideoCrafter1, section 3.1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.sinusoid = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedding = TimestepEmbedding(channels, width)
        _zeroed(self.embedding.linear_2)

    def forward(self, fps: Tensor) -> Tensor:
        return self.embedding(self.sinusoid(fps).to(self.embedding.linear_1.weight.dtype))


def as_plane(x: Tensor, frames: int) -> Tensor:
    """`(b f) c h w` -> `b c f (h w)`, channels_last and a view where x is."""
    _, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, frames, h * w, c).permute(0, 3, 1, 2)


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def ensure_gradient(x: Tensor) -> Tensor:
    """The same numbers, for a group norm that learns: with a gradient of their own where they have none.

    On a CPU torch (2.13) crashes in a group norm's backward pass when what it read is `channels_last` and has none.
    """
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()
