"""Conditioning inputs of a network, grouped by where they enter.

Text is `tokens`; an image for image-to-video or an IP-Adapter is `image_tokens`; a frame rate and SDXL's sizes are
`embedding`, as is the guidance scale of a latent consistency model, `guidance_scale`; ControlNet and T2I-Adapter are
`residuals`; InstructPix2Pix's image is `channels`. A new kind of input takes one of these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.hooks import execution_device
from kineograph.request import EncodedPrompt, Prompt

# (scaled latents z, timestep, numbers of the frames in z, keys and values of earlier frames in this evaluation) ->
# what is added inside the network (`unet.forward.AddedResiduals`), frames folded into the batch; or None for nothing
Residuals = Callable[
    [Latents, Tensor, Sequence[int], Any], tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]] | None
]


@dataclass(frozen=True, eq=False)  # tensors have no single truth value, so a Condition equals only itself
class Condition:
    """Conditioning inputs for one batch of videos.

    tokens          [b n d], or [b f n d] when every frame has its own: read by cross-attention
    image_tokens    [b m d], or [b f m d] when every frame has its own: read by cross-attention, beside the text
    image_scale     factor on the attention to image tokens, beside the IP-Adapter's own scale
    embedding       [b e], or [b f e] when every frame has its own: added to the embedding of the timestep; for a video
                    model with a frame-rate condition, its last number is frames per second
    guidance_scale  of a network that was distilled with it as an input: added to the embedding of the timestep
    residuals       called with the network's own inputs; added to its skip connections and blocks
    channels        [b f k h w]: concatenated to the latents' channels
    down_tokens     [b n d]: read by the down and mid blocks in place of `tokens`
    """

    tokens: Float[Tensor, "b n d"] | Float[Tensor, "b f n d"]
    image_tokens: Float[Tensor, "b m d"] | Float[Tensor, "b f m d"] | None = None
    image_scale: float = 1.0
    embedding: Float[Tensor, "b e"] | Float[Tensor, "b f e"] | None = None
    guidance_scale: float | None = None
    residuals: Residuals | None = None
    channels: Float[Tensor, "b f k h w"] | None = None
    down_tokens: Float[Tensor, "b n d"] | None = None


def stack_encoded(prompts: Sequence[Prompt], network: UNet2DConditionModel) -> tuple[Tensor, Tensor | None] | None:
    """Return tokens [b n d] and SDXL's pooled embeddings [b e] of prompts that are encoded; None for texts.

    Raises InputError for tensors that the network does not read.
    """
    encoded = [each for each in prompts if isinstance(each, EncodedPrompt)]
    if not encoded:
        return None
    place = {"device": execution_device(network), "dtype": network.dtype}
    tokens = torch.stack([each.tokens for each in encoded]).to(**place)
    if (width := network.config.cross_attention_dim) != tokens.shape[-1]:
        raise InputError(
            f"`prompt_embeds` are [b n {width}] for this model, not {[*tokens.shape]}: encode the prompt with the text "
            "encoder of the model"
        )
    pooled = [each.pooled for each in encoded if each.pooled is not None]
    if bool(pooled) != (network.config.addition_embed_type is not None):
        raise InputError(
            "`pooled_prompt_embeds` belong to `prompt_embeds` of SDXL models, and only to those; so do "
            "`negative_pooled_prompt_embeds`"
        )
    return tokens, torch.stack(pooled).to(**place) if pooled else None


def interpolate_conditions(keyframes: Mapping[int, Condition], frames: Sequence[int]) -> Condition:
    """Return the condition of these frames, whose text moves linearly from each keyframe's to the next one's.

    keyframes: the conditions of encoded prompts by frame number. Frames before the first keyframe have its text, those
    after the last one have the last one's. Raises InputError for texts of different numbers of tokens.
    """
    if len({each.tokens.shape[1] for each in keyframes.values()}) > 1:
        raise InputError("`prompt_embeds` and the texts of `prompt_at` have different numbers of tokens: give one")
    numbers = sorted(keyframes)
    after = [bisect_right(numbers, frame) for frame in frames]
    pairs = [(numbers[max(k - 1, 0)], numbers[min(k, len(numbers) - 1)]) for k in after]
    weights = [(frame - a) / (b - a) if b > a else 0.0 for frame, (a, b) in zip(frames, pairs, strict=True)]

    def of_frames(values: Mapping[int, Tensor]) -> Tensor:
        parts = [torch.lerp(values[a], values[b], weight) for (a, b), weight in zip(pairs, weights, strict=True)]
        return torch.stack(parts, dim=1)

    embeddings = {number: each.embedding for number, each in keyframes.items() if each.embedding is not None}
    return replace(
        keyframes[numbers[0]],
        tokens=of_frames({number: each.tokens for number, each in keyframes.items()}),
        embedding=of_frames(embeddings) if embeddings else None,
    )
