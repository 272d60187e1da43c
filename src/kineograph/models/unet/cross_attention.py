"""Cross-attention to text tokens, and to image tokens as IP-Adapter adds them.

Keys and values of the tokens do not depend on the noise level, so they are computed once for a condition; all frames
read them, or each frame its own. Image tokens have a second attention with keys and values of its own,
`attention(text) + scale * attention(image)` (IP-Adapter, arXiv 2308.06721, eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
from kineograph.models.hooks import execution_device, onload
from kineograph.models.unet.frame_attention import multi_head_attention, project_output
from kineograph.models.unet.supported_layers import (
    IP_ADAPTER_PROCESSORS,
    check_attention_processors,
    transformer_blocks,
)

ImageTokens = Float[Tensor, "b m d"] | Float[Tensor, "b f m d"]


class KeysAndValues(NamedTuple):
    """Keys and values of some tokens in one layer: `b m c`, or `b f m c` if each frame has its own tokens."""

    key: Tensor
    value: Tensor
    scale: float


TokenKeyValues = dict[nn.Module, list[KeysAndValues]]  # cross-attention layer -> of text, then of image tokens


def project_image_tokens(
    unet: UNet2DConditionModel, embeddings: list[Float[Tensor, "b i ..."]]
) -> Float[Tensor, "b m d"]:
    """Return image tokens for a `Condition`, from an image encoder's embeddings, by the U-Net's IP-Adapters.

    embeddings: of `i` images, one tensor for each IP-Adapter: `b i e`, or `b i n e` for adapters that read patches.
    Raises InputError if the network has no IP-Adapter.
    """
    if unet.config.encoder_hid_dim_type != "ip_image_proj":
        raise InputError("nothing on this U-Net reads images: load an IP-Adapter on it first")
    onload(unet)
    tokens = unet.encoder_hid_proj([each.to(execution_device(unet), unet.dtype) for each in embeddings])
    return torch.cat([each.flatten(1, 2) for each in tokens], dim=1)


def project_tokens(net: Any, condition: Condition) -> TokenKeyValues:
    """Return keys and values of a condition's tokens in every cross-attention layer of a U-Net or ControlNet.

    They hold for all frames and noise levels, and for the weights and adapters that are on the network now.
    Raises InputError for image tokens that no IP-Adapter reads, and for unsupported attention processors.
    """
    check_attention_processors(net)
    onload(net)
    up_tokens, images = condition.tokens.to(execution_device(net), net.dtype), condition.image_tokens
    down_tokens = up_tokens if condition.down_tokens is None else condition.down_tokens.to(up_tokens)
    images = None if images is None else images.to(up_tokens)
    key_values: TokenKeyValues = {}
    for name, block in transformer_blocks(net):
        layer, tokens = block.attn2, up_tokens if name.startswith("up_blocks") else down_tokens
        key_values[layer] = [KeysAndValues(layer.to_k(tokens), layer.to_v(tokens), 1.0)]
        if images is not None:
            key_values[layer] += _project_images(layer.processor, images, condition.image_scale)
    return key_values


def _project_images(adapter: object, image_tokens: ImageTokens, image_scale: float) -> Iterator[KeysAndValues]:
    """Yield keys and values for each IP-Adapter on the layer; `image_scale` multiplies its scale there."""
    if not isinstance(adapter, IP_ADAPTER_PROCESSORS):
        raise InputError(
            "the condition has image tokens, but nothing on this U-Net reads them: "
            "load an IP-Adapter on it, or leave image_tokens away"
        )
    parts = _split_tokens(image_tokens, list(adapter.num_tokens))
    for part, scale, to_k, to_v in zip(parts, adapter.scale, adapter.to_k_ip, adapter.to_v_ip, strict=True):
        if isinstance(scale, list):
            raise InputError(f"an IP-Adapter has a scale for each image ({scale}), which needs masks: give it one")
        if scale != 0:
            yield KeysAndValues(to_k(part), to_v(part), image_scale * float(scale))


def _split_tokens(image_tokens: ImageTokens, sizes: list[int]) -> tuple[Tensor, ...]:
    """Split image tokens between IP-Adapters: one takes all, of any number of images; several take one image each."""
    if len(sizes) == 1:
        return (image_tokens,)
    if image_tokens.shape[-2] != sum(sizes):
        raise InputError(
            f"the IP-Adapters on this U-Net read {sizes} image tokens, {sum(sizes)} together, and the condition has "
            f"{image_tokens.shape[-2]}: give each adapter one image"
        )
    return image_tokens.split(sizes, dim=-2)


def cross_attend(
    attn: Attention, x: Float[Tensor, "bf n c"], key_values: list[KeysAndValues], frames: list[int]
) -> Tensor:
    """Return a layer's cross-attention of frames folded into the batch. key_values: of text, then of image tokens."""
    query, (text, *images) = attn.to_q(x), key_values
    output = _attend(query, text, frames, attn.heads)
    for image in images:
        output = output + image.scale * _attend(query, image, frames, attn.heads)
    return project_output(attn, output)


def _attend(query: Tensor, tokens: KeysAndValues, frames: list[int], heads: int) -> Tensor:
    if tokens.key.ndim == 4:
        videos = len(query) // len(frames)
        key, value = (x[:, frames].expand(videos, -1, -1, -1).flatten(0, 1) for x in (tokens.key, tokens.value))
        return multi_head_attention(query, key, value, heads)
    by_video = query.reshape(len(tokens.key), -1, query.shape[-1])
    return multi_head_attention(by_video, tokens.key, tokens.value, heads).view_as(query)
