"""What a frame is told in tokens: text, and images beside it as IP-Adapter adds them.

The keys and values of the tokens depend on neither the noise level nor the frame, so they are made once for a bound
condition and read by all frames. An image enters as a second attention with keys and values of its own,
`attention(text) + scale * attention(image)` (IP-Adapter, arXiv 2308.06721, eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.unet.frame_attention import multi_head_attention, project_output
from kineograph.models.unet.supported_layers import IP_ADAPTER_PROCESSORS

ImageTokens = Float[Tensor, "b m d"] | Float[Tensor, "b f m d"]


class KeysAndValues(NamedTuple):
    """Keys and values of some tokens in one layer: `b m c`, or `b f m c` if each frame has its own."""

    key: Tensor
    value: Tensor
    scale: float


TokenKeyValues = dict[
    nn.Module, list[KeysAndValues]
]  # cross-attention layer -> what it is told: text first, then images


def project_image_tokens(
    unet: UNet2DConditionModel, embeddings: list[Float[Tensor, "b i ..."]]
) -> Float[Tensor, "b m d"]:
    """Image tokens for `Condition` from what an image encoder says of `i` images, by the IP-Adapters on the network.

    embeddings: one for each IP-Adapter, `b i e`, or `b i n e` for adapters that read the encoder's patches.
    Raises InputError when the network has no IP-Adapter.
    """
    if unet.config.encoder_hid_dim_type != "ip_image_proj":
        raise InputError("nothing on this U-Net reads images: load an IP-Adapter on it first")
    tokens = unet.encoder_hid_proj([each.to(unet.device, unet.dtype) for each in embeddings])
    return torch.cat([each.flatten(1, 2) for each in tokens], dim=1)


def layer_key_values(
    attn: Attention, tokens: Float[Tensor, "b n d"], image_tokens: ImageTokens | None, image_scale: float = 1.0
) -> list[KeysAndValues]:
    """Keys and values of text and image tokens in one cross-attention layer.

    image_tokens: for several IP-Adapters one after another. Their weights and scales are those on the layer now.
    Raises InputError when nothing on the layer reads them.
    """
    text = KeysAndValues(attn.to_k(tokens), attn.to_v(tokens), 1.0)
    if image_tokens is None:
        return [text]
    images = _images(attn.processor, image_tokens)
    return [text, *(image._replace(scale=image_scale * image.scale) for image in images)]


def _images(adapter: object, image_tokens: ImageTokens) -> Iterator[KeysAndValues]:
    if not isinstance(adapter, IP_ADAPTER_PROCESSORS):
        raise InputError(
            "the condition has image tokens, but nothing on this U-Net reads them: "
            "load an IP-Adapter on it, or leave image_tokens away"
        )
    shares = _shared_out(image_tokens, list(adapter.num_tokens))
    for share, scale, to_k, to_v in zip(shares, adapter.scale, adapter.to_k_ip, adapter.to_v_ip, strict=True):
        if isinstance(scale, list):
            raise InputError(f"an IP-Adapter has a scale for each image ({scale}), which needs masks: give it one")
        if scale != 0:
            yield KeysAndValues(to_k(share), to_v(share), float(scale))


def _shared_out(image_tokens: ImageTokens, sizes: list[int]) -> tuple[Tensor, ...]:
    """A single adapter takes all tokens, of however many images; several take those of one image each."""
    if len(sizes) == 1:
        return (image_tokens,)
    if image_tokens.shape[-2] != sum(sizes):
        raise InputError(
            f"the IP-Adapters on this U-Net read {sizes} image tokens, {sum(sizes)} together, and the condition has "
            f"{image_tokens.shape[-2]}: give each adapter one image"
        )
    return image_tokens.split(sizes, dim=-2)


def cross_attend(
    attn: Attention, x: Float[Tensor, "bf n c"], sources: list[KeysAndValues], frames: list[int]
) -> Tensor:
    """Cross-attention of these frames, folded into the batch, on what the layer is told."""
    query = attn.to_q(x)
    text, *images = sources
    answer = _answer(query, text, frames, attn.heads)
    for image in images:
        answer = answer + image.scale * _answer(query, image, frames, attn.heads)
    return project_output(attn, answer)


def _answer(query: Tensor, source: KeysAndValues, frames: list[int], heads: int) -> Tensor:
    if source.key.ndim == 4:
        key, value = source.key[:, frames].flatten(0, 1), source.value[:, frames].flatten(0, 1)
        return multi_head_attention(query, key, value, heads)
    asked = query.reshape(len(source.key), -1, query.shape[-1])
    return multi_head_attention(asked, source.key, source.value, heads).view_as(query)
