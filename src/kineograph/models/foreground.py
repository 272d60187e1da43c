"""Where a video's foreground is, told by the model's own attention: cells that look at each other belong together.

The cells of a picture are cut in two where the least attention is paid across, and the part that keeps away from the
edge of the picture is the foreground. No weights but the model's, and no word of the prompt is singled out.
Source: normalised cuts (Shi & Malik 2000) of attention, as TokenCut (Wang et al. 2022) makes of a vision transformer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.latents import Latents, Mask, add_noise
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import own
from kineograph.noise import shared

MIN_SIGMA = 1.0  # of noise, where attention tells things apart best; above, a picture is looked at as noisy as it is
MAX_TOKENS = 256  # layers with more are as blind to what belongs together as they are costly
NOISE_SEED = 0

Outputs = dict[nn.Module, list[Tensor]]
Field = Float[Tensor, "b f h w"]


def bind_foreground_mask(
    model: Model, prompts: Sequence[str], *, chunk_size: int = 8
) -> Callable[[Latents, float], Mask]:
    """What gives the foreground of a video from its clean estimate: 1 where it is, else 0, `[b f 1 h w]`.

    prompts: what the videos of a batch show. The other argument is the noise level that the estimate is from.
    Each call is one evaluation of the network, in which every frame looks at itself.
    """
    look = model.bind(model.prompt(prompts), frame_attention=own, chunk_size=chunk_size)
    layers = [
        block.attn1
        for up in model.net.image_unet.up_blocks
        for transformer in getattr(up, "attentions", ())
        for block in transformer.transformer_blocks
    ]

    @torch.no_grad()
    def masks(x0: Latents, sigma: float) -> Mask:
        level = max(sigma, MIN_SIGMA)
        grain = shared(NOISE_SEED, [0], (1, *x0.shape[2:])).expand(x0.shape).to(x0)
        with _watched([each for layer in layers for each in (layer.to_q, layer.to_k)]) as seen:
            look(add_noise(x0, grain, level), level)
        return _above(_cut(_affinity(layers, seen, len(x0)), x0.shape[-2:]))[:, :, None].to(x0)

    return masks


@contextmanager
def _watched(layers: Sequence[nn.Module]) -> Iterator[Outputs]:
    """What each of these layers gives out in the block, one tensor a call."""
    seen: Outputs = {layer: [] for layer in layers}

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        seen[layer].append(output.detach())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _affinity(layers: Sequence[Attention], seen: Outputs, videos: int) -> Float[Tensor, "b f n n"]:
    """How much each cell looks at each other, over the heads of the finest layers that are not too fine."""
    finest = max((n for layer in layers if (n := seen[layer.to_q][0].shape[1]) <= MAX_TOKENS), default=0)
    chosen = [layer for layer in layers if seen[layer.to_q][0].shape[1] == (finest or MAX_TOKENS)]
    looked = [_looked(layer, seen, videos) for layer in chosen]
    return torch.stack(looked).mean(0)


def _looked(layer: Attention, seen: Outputs, videos: int) -> Float[Tensor, "b f n n"]:
    query, key = (_of_heads(seen[each], videos, layer.heads) for each in (layer.to_q, layer.to_k))
    scores = torch.einsum("bfnhd,bfmhd->bfhnm", query, key) / query.shape[-1] ** 0.5
    return scores.softmax(-1).mean(2)


def _of_heads(parts: Sequence[Tensor], videos: int, heads: int) -> Float[Tensor, "b f n h d"]:
    """What a layer gave out for some frames after others, which may be folded into the batch."""
    unfolded = [part if part.ndim == 4 else part.unflatten(0, (videos, -1)) for part in parts]
    return torch.cat(unfolded, dim=1).float().unflatten(-1, (heads, -1))


def _cut(affinity: Float[Tensor, "b f n n"], size: Sequence[int]) -> Field:
    """The second eigenvector of the normalised affinity, in latent cells; its greater side is the foreground."""
    both = affinity + affinity.mT
    norm = both.sum(-1).rsqrt()
    vectors = torch.linalg.eigh(norm[..., None] * both * norm[..., None, :]).eigenvectors
    field = (vectors[..., -2] * norm).unflatten(-1, _grid(affinity.shape[-1], size))
    rim = torch.ones(field.shape[-2:], device=field.device)
    rim[1:-1, 1:-1] = 0
    above = _above(field)
    touched = [((side * rim).sum((-2, -1)) / side.sum((-2, -1)).clamp(min=1)) for side in (above, 1 - above)]
    outward = touched[0] > touched[1]
    return F.interpolate(torch.where(outward[..., None, None], -field, field), tuple(size), mode="bilinear")


def _grid(cells: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a layer with so many cells, in a network that halves the latents' size."""
    height, width = size
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _above(field: Field) -> Field:
    """1 where a field is above the threshold that parts it best, else 0 (Otsu 1979)."""
    values = field.flatten(2).sort(-1).values
    count = values.shape[-1]
    below = torch.arange(1, count, device=field.device)
    sums = values.cumsum(-1)
    means = sums[..., :-1] / below, (sums[..., -1:] - sums[..., :-1]) / (count - below)
    best = (below * (count - below) * (means[1] - means[0]) ** 2).argmax(-1, keepdim=True)
    threshold = (values.gather(-1, best) + values.gather(-1, best + 1)) / 2
    return (field > threshold[..., None]).to(field.dtype)
