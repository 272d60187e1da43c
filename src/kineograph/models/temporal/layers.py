"""Temporal layers: what video papers add between the layers of an image U-Net.

Each takes frames folded into the batch, `(b f) c h w` or `(b f) n c`, and returns the same shape (resamplers: another
number of frames). Each starts as the identity, since its last layer starts at zero. Their parameters have the names of
the released checkpoints. An argument, `policy`, says how attention is computed for one call: a motion adapter adds to
its projections (models/temporal/adapters.py), and its windows of frames may overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import SinusoidalPositionalEmbedding, TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, dropout, pad, silu

from kineograph.models.temporal.config import AttentionConfig, TransformerConfig, split_heads
from kineograph.models.unet.frame_attention import multi_head_attention, split_batch, split_scale
from kineograph.models.unet.windows import AttentionWindows, average_windows, one_window

ApplyProjection = Callable[[nn.Module, Tensor], Tensor]  # (projection of an attention, tokens) -> projected tokens
EPS = 1e-6  # of transformers' group norms, in Stable Diffusion and all that follow it


def apply_projection(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's output."""
    return layer(x)


class AttentionPolicy(NamedTuple):
    """Computation of temporal attention in one forward pass.

    project  computes queries, keys and values
    windows  the windows of frames in which a layer's attentions are computed; their outputs are averaged
    """

    project: ApplyProjection = apply_projection
    windows: AttentionWindows = one_window


PLAIN = AttentionPolicy()


def tokens_to_frames(tokens: Tensor, size: torch.Size) -> Tensor:
    """Return tokens `(b h w) f c` as frames `b f c h w`, a view."""
    return tokens.unflatten(0, (-1, *size)).permute(0, 3, 4, 1, 2)


def transposed_tokens_to_frames(tokens: Tensor, size: torch.Size) -> Tensor:
    """Return the frames of tokens whose `f c` numbers are read as `c f`: VidRD's weights were trained with this."""
    pixels, frames, channels = tokens.shape
    return tokens_to_frames(tokens.reshape(pixels, channels, frames).transpose(1, 2), size)


class RelativePositions(nn.Module):
    """A learnt vector for each distance between two frames, clipped to `max_distance` (Shaw et al. 2018)."""

    def __init__(self, width: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.embeddings_table = nn.Parameter(torch.empty(2 * max_distance + 1, width))
        nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, frames: int) -> Tensor:
        """Return the vectors `[f, f, width]` of frame j relative to frame i."""
        index = torch.arange(frames, device=self.embeddings_table.device)
        distance = (index[None, :] - index[:, None]).clamp(-self.max_distance, self.max_distance)
        return self.embeddings_table[distance + self.max_distance]


class TemporalAttention(nn.Module):
    """Self-attention over the frames of one pixel: `n f c` -> `n f c`; `relative` as in `TransformerConfig`.

    Source: VideoCrafter1's temporal attention; without `relative`, that of ModelScope, AnimateDiff and VidRD.
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
        heads = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.to_out(split_batch(self._relative_attention, *heads).transpose(1, 2).flatten(2))

    def _relative_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return p (v + a_v), with p = softmax(q (k + a_k) / sqrt(d)) and the vectors `a` of the distances."""
        frames, width = query.shape[-2:]
        a_k, a_v = (a(frames).to(query.dtype) for a in (self.relative_position_k, self.relative_position_v))
        before, after = split_scale(width)
        query = query * before
        logits = query @ key.transpose(-2, -1) + torch.einsum("n h i d, i j d -> n h i j", query, a_k)
        weights = (logits * after).softmax(-1)
        return weights @ value + torch.einsum("n h i j, i j d -> n h i d", weights, a_v)


class TemporalBlock(nn.Module):
    """One or two temporal self-attentions and a feed-forward, each with a residual connection: `n f c` -> `n f c`.

    Sinusoidal positions, if the configuration has them, are added to the input of attention.
    """

    def __init__(self, width: int, heads: int, head_width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), TemporalAttention(width, heads, head_width, config.relative)
        if config.attentions > 1:
            self.norm2, self.attn2 = nn.LayerNorm(width), TemporalAttention(width, heads, head_width, config.relative)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, mult=config.ff_mult, activation_fn="geglu")
        self.pos_embed = _positions(width, config.positions)

    def forward(self, x: Tensor, policy: AttentionPolicy = PLAIN) -> Tensor:
        x = average_windows(lambda part, _: self._attend(part, policy.project), x, policy.windows(x.shape[1]))
        return self.ff(self.norm3(x)) + x

    def _attend(self, x: Tensor, project: ApplyProjection) -> Tensor:
        x = self.attn1(self.pos_embed(self.norm1(x)).to(x.dtype), project) + x
        if hasattr(self, "attn2"):
            x = self.attn2(self.pos_embed(self.norm2(x)).to(x.dtype), project) + x
        return x


class TemporalTransformer(nn.Module):
    """Temporal transformer with a residual connection: `(b f) c h w` -> the same. Its group norm spans all frames.

    Source: VideoCrafter1 (Chen et al. 2023), section 3.1, TT; ModelScope's and AnimateDiff's have the same form.
    """

    def __init__(self, channels: int, config: TransformerConfig, groups: int = 32) -> None:
        super().__init__()
        self.to_frames = transposed_tokens_to_frames if config.transposed else tokens_to_frames
        self.channels = channels
        heads, head_width = split_heads(config, channels)
        width = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.proj_in = nn.Linear(channels, width)
        self.transformer_blocks = nn.Sequential(
            *(TemporalBlock(width, heads, head_width, config) for _ in range(config.depth))
        )
        self.proj_out = _zero_init(nn.Linear(width, channels))

    def forward(self, x: Tensor, frames: int, policy: AttentionPolicy = PLAIN) -> Tensor:
        plane = ensure_gradient(frames_to_plane(x, frames))
        tokens = self.proj_in(self.norm(plane).permute(0, 3, 2, 1).flatten(0, 1))
        for block in self.transformer_blocks:
            tokens = block(tokens, policy)
        return (x.unflatten(0, (-1, frames)) + self.to_frames(self.proj_out(tokens), x.shape[2:])).flatten(0, 1)


class TemporalConv(nn.Module):
    """Temporal convolutions over three frames, with one residual connection: `(b f) c h w` -> the same.

    Frames become the rows of an image whose columns are all pixels, so that a 3 x 1 kernel runs over time.
    Source: ModelScope's temporal convolution, which VideoCrafter1 (I2V) and VidRD have after every ResNet block.
    """

    def __init__(self, channels: int, groups: int = 32, count: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        for number in range(1, count + 1):
            conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
            self.add_module(f"conv{number}", nn.ModuleDict({"norm": nn.GroupNorm(groups, channels), "conv": conv}))
        _zero_init(conv)

    def forward(self, x: Tensor, frames: int, policy: AttentionPolicy = PLAIN) -> Tensor:
        plane = ensure_gradient(frames_to_plane(x, frames))  # `policy` is for attention: nothing here uses it
        for norm, conv in self.norms_and_convs():
            plane = conv(self.activate(norm(plane)))
        return x + plane_to_frames(plane, x.shape[2:])

    def norms_and_convs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return each group norm with the convolution that follows it."""
        return [(pair.get_submodule("norm"), pair.get_submodule("conv")) for pair in self.children()]

    def activate(self, normed: Tensor) -> Tensor:
        """Apply SiLU and dropout, between a group norm and its convolution."""
        return dropout(silu(normed), self.dropout, self.training)


class AttentionInBlock(nn.Module):
    """Temporal attention between the layers of a spatial transformer block: tokens `(b f) n c` -> the same.

    Sinusoidal positions are added to the tokens themselves and stay there, so with them the layer does not start as
    the identity. Source: VidRD's released code (Temp-Attn); the paper's figure has no positions, and neither relative.
    """

    def __init__(self, channels: int, config: AttentionConfig) -> None:
        super().__init__()
        self.channels = channels
        self.temp_norm = nn.LayerNorm(channels)
        self.temp_attn = TemporalAttention(channels, *split_heads(config, channels), config.relative)
        _zero_init(self.temp_attn.to_out)
        self.pos_embed = _positions(channels, config.positions)

    def forward(self, x: Tensor, frames: int, policy: AttentionPolicy = PLAIN) -> Tensor:
        pixels = x.shape[1]
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (b n) f c
        tokens = average_windows(lambda part, _: self._attend(part, policy.project), tokens, policy.windows(frames))
        return tokens.unflatten(0, (-1, pixels)).transpose(1, 2).flatten(0, 1)

    def _attend(self, tokens: Tensor, project: ApplyProjection) -> Tensor:
        tokens = self.pos_embed(tokens).to(tokens.dtype)
        return tokens + self.temp_attn(self.temp_norm(tokens), project)


class TemporalDownsample(nn.Module):
    """Temporal convolution, then means of `factor` successive frames: `(b f) c h w` -> `(b ceil(f / factor)) c h w`.

    The convolution has a residual connection and starts at zero. An incomplete last group is padded with the last
    frame.

    Source: the space-time U-Net of Lumiere (Bar-Tal et al. 2024, section 3). It changes the number of frames where the
    image U-Net changes the resolution, so that temporal attention at the lowest resolution reads the whole video.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.filter = _zero_init(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor, frames: int, policy: AttentionPolicy = PLAIN) -> Tensor:
        plane = frames_to_plane(x, frames)
        plane = plane + self.filter(plane)
        padded = pad(plane, (0, 0, 0, -frames % self.factor), mode="replicate")
        return plane_to_frames(avg_pool2d(padded, (self.factor, 1)), x.shape[2:])


class TemporalUpsample(nn.Module):
    """Every frame `factor` times, then a temporal convolution: `(b f) c h w` -> `(b f*factor) c h w`.

    The convolution has a residual connection and starts at zero. Source: as for `TemporalDownsample`.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.filter = _zero_init(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor, frames: int, policy: AttentionPolicy = PLAIN) -> Tensor:
        plane = frames_to_plane(x, frames).repeat_interleave(self.factor, dim=2)
        return plane_to_frames(plane + self.filter(plane), x.shape[2:])


class FrameRateEmbedding(nn.Module):
    """Embedding of frames per second, added to the timestep's: `b` -> `b e`. Source: VideoCrafter1, section 3.1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.sinusoid = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedding = TimestepEmbedding(channels, width)
        _zero_init(self.embedding.linear_2)

    def forward(self, fps: Tensor) -> Tensor:
        return self.embedding(self.sinusoid(fps).to(self.embedding.linear_1.weight.dtype))


def frames_to_plane(x: Tensor, frames: int) -> Tensor:
    """Return `(b f) c h w` as `b c f (h w)`, channels_last and a view where x is channels_last."""
    _, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, frames, h * w, c).permute(0, 3, 1, 2)


def plane_to_frames(plane: Tensor, size: torch.Size) -> Tensor:
    """Return `b c f (h w)` as `(b f) c h w`."""
    return plane.unflatten(3, size).transpose(1, 2).flatten(0, 1)


def _positions(width: int, positions: int | None) -> nn.Module:
    return nn.Identity() if positions is None else SinusoidalPositionalEmbedding(width, positions)


def _zero_init(layer: nn.Module) -> nn.Module:
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def ensure_gradient(x: Tensor) -> Tensor:
    """Return x as a leaf that requires a gradient, if it has none and gradients are enabled.

    On a CPU torch (2.13) crashes in a group norm's backward pass if its input is `channels_last` and has no gradient.
    """
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()
