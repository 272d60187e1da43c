"""Foreground masks of a video from the model's own self-attention.

Pixels that attend to each other belong together: a normalised cut splits the latent pixels of a frame in two where the
least attention crosses, and the part that touches the frame's border less is the foreground. This needs no other
weights, and no word of the prompt is singled out.
Source: normalised cuts (Shi & Malik 2000) of attention, as TokenCut (Wang et al. 2022) computes for vision
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.latents import Latents, Mask, add_noise
from kineograph.models.conditioning.condition import Condition
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import own
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.noise import shared

MIN_SIGMA = 1.0  # where attention separates objects best; noisier frames are evaluated at their own sigma
MAX_TOKENS = 256  # layers with more separate objects no better, and cost more
NOISE_SEED = 0

LayerOutputs = dict[nn.Module, list[Tensor]]
Field = Float[Tensor, "b f h w"]


def bind_foreground_mask(
    model: Model, condition: Condition, *, chunk_size: int = 8
) -> Callable[[Latents, float], Mask]:
    """Return a function (x0, sigma) -> mask of a video's foreground, 1 inside and 0 outside, `[b f 1 h w]`.

    x0 is an estimate of the clean video at this sigma. Each call evaluates the image network once, with frame attention
    `own` and without temporal layers. condition: prompts and inputs of the videos of a batch.
    """
    image_model = replace(model, net=VideoUNet(model.net.image_unet))
    condition = model.net.image_condition(condition)
    denoise = image_model.bind(condition, frame_attention=own, chunk_size=chunk_size)
    layers = [
        block.attn1
        for up in model.net.image_unet.up_blocks
        for transformer in getattr(up, "attentions", ())
        for block in transformer.transformer_blocks
    ]

    @torch.no_grad()
    def foreground_mask(x0: Latents, sigma: float) -> Mask:
        sigma = max(sigma, MIN_SIGMA)
        noise = shared(NOISE_SEED, [0], (1, *x0.shape[2:])).expand(x0.shape).to(x0)
        with _record_outputs([each for layer in layers for each in (layer.to_q, layer.to_k)]) as outputs:
            denoise(add_noise(x0, noise, sigma), sigma)
        affinity = _mean_attention(layers, outputs, len(x0)).cpu()  # Apple's GPUs have no eigh
        return _threshold(_normalised_cut(affinity, x0.shape[-2:]))[:, :, None].to(x0)

    return foreground_mask


@contextmanager
def _record_outputs(layers: Sequence[nn.Module]) -> Iterator[LayerOutputs]:
    """Record the outputs of these layers inside the `with` block, one tensor for each call."""
    outputs: LayerOutputs = {layer: [] for layer in layers}

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        outputs[layer].append(output.detach())

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _mean_attention(layers: Sequence[Attention], outputs: LayerOutputs, videos: int) -> Float[Tensor, "b f n n"]:
    """Return the attention weights, averaged over heads and the layers with the most tokens up to MAX_TOKENS."""
    counts = {layer: outputs[layer.to_q][0].shape[1] for layer in layers}
    tokens = max((count for count in counts.values() if count <= MAX_TOKENS), default=MAX_TOKENS)
    weights = []
    for layer in (layer for layer, count in counts.items() if count == tokens):
        query, key = (_split_heads(outputs[each], videos, layer.heads) for each in (layer.to_q, layer.to_k))
        scores = torch.einsum("bfnhd,bfmhd->bfhnm", query, key) / query.shape[-1] ** 0.5
        weights.append(scores.softmax(-1).mean(2))
    return torch.stack(weights).mean(0)


def _split_heads(chunks: Sequence[Tensor], videos: int, heads: int) -> Float[Tensor, "b f n h d"]:
    """Concatenate a layer's outputs for chunks of frames, which may be folded into the batch, and split the heads."""
    unfolded = [chunk if chunk.ndim == 4 else chunk.unflatten(0, (videos, -1)) for chunk in chunks]
    return torch.cat(unfolded, dim=1).float().unflatten(-1, (heads, -1))


def _normalised_cut(affinity: Float[Tensor, "b f n n"], size: Sequence[int]) -> Field:
    """Return the second eigenvector of the normalised affinity, at the latents' size, larger in the foreground."""
    symmetric = affinity + affinity.mT
    norm = symmetric.sum(-1).rsqrt()
    vectors = torch.linalg.eigh(norm[..., None] * symmetric * norm[..., None, :]).eigenvectors
    field = (vectors[..., -2] * norm).unflatten(-1, _grid(affinity.shape[-1], size))
    border = torch.ones(field.shape[-2:], device=field.device)
    border[1:-1, 1:-1] = 0
    above = _threshold(field)
    on_border = [((side * border).sum((-2, -1)) / side.sum((-2, -1)).clamp(min=1)) for side in (above, 1 - above)]
    inverted = on_border[0] > on_border[1]
    return F.interpolate(torch.where(inverted[..., None, None], -field, field), tuple(size), mode="bilinear")


def _grid(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a layer with so many tokens, in a network that halves the latents' size."""
    height, width = size
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _threshold(field: Field) -> Field:
    """Return 1 where a field is above Otsu's threshold, else 0 (Otsu 1979)."""
    values = field.flatten(2).sort(-1).values
    count = values.shape[-1]
    below = torch.arange(1, count, device=field.device)
    sums = values.cumsum(-1)
    means = sums[..., :-1] / below, (sums[..., -1:] - sums[..., :-1]) / (count - below)
    best = (below * (count - below) * (means[1] - means[0]) ** 2).argmax(-1, keepdim=True)
    threshold = (values.gather(-1, best) + values.gather(-1, best + 1)) / 2
    return (field > threshold[..., None]).to(field.dtype)
