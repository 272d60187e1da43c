"""CLIP image encoder whose states a U-Net with an IP-Adapter reads as image tokens.

IP-Adapters and VideoCrafter1's image-to-video model project CLIP's states to tokens on the U-Net. They differ in the
layer that they read, in how an image is resized, and in the input that stands for no image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFullImageProjection,
    MultiIPAdapterImageProjection,
)
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from kineograph.errors import InputError
from kineograph.models.hooks import execution_device
from kineograph.models.unet import cross_attention

Images = Float[Tensor, "b 3 H W"]
ImageTokens = Float[Tensor, "b m d"]
ResizedImages = Float[Tensor, "b 3 _ _"]
Resize = Callable[[Images, int], ResizedImages]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PENULTIMATE, LAST = -2, -1
GREY = (0.5, 0.5, 0.5)
FACE_ID = (
    "an IP-Adapter FaceID, which reads the embedding of a face by insightface and is not supported: take "
    "ip-adapter-plus-face, which reads an image"
)


def stretch_to_square(images: Images, side: int) -> ResizedImages:
    """Resize images to a square without keeping their shape, as VideoCrafter1 does (with align_corners)."""
    return interpolate(images, (side, side), mode="bicubic", align_corners=True)


def crop_to_square(images: Images, side: int) -> ResizedImages:
    """Resize the shorter side and center-crop the longer one, as CLIP's image processor does."""
    return crop_to_size(images, side, side)


def crop_to_size(images: Images, height: int, width: int) -> ResizedImages:
    """Resize images to cover a height and width, and center-crop them."""
    scale = max(height / images.shape[-2], width / images.shape[-1])
    size = [max(least, round(scale * side)) for least, side in zip((height, width), images.shape[-2:], strict=True)]
    resized = interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[..., top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A CLIP image encoder with the preprocessing of its images.

    network      a CLIP vision model of transformers
    layer        index of the hidden states that are read: `PENULTIMATE` or `LAST`
    resize       resizes images to a square
    mean, std    normalisation of the color channels
    empty_color  color of the image that stands for no image: red, green and blue from 0 to 1
    num_states   number of states that are read, of which the first is the class token; None for all
    """

    network: CLIPVisionModel | CLIPVisionModelWithProjection
    layer: int = PENULTIMATE
    resize: Resize = crop_to_square
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    empty_color: tuple[float, float, float] = CLIP_MEAN
    num_states: int | None = None

    @property
    def side(self) -> int:
        """Width and height of the encoder's input in pixels."""
        side = self.network.config.image_size
        if not isinstance(side, int):
            raise InputError(
                f"the image encoder reads images of {side} pixels: expected one number, the side of a square"
            )
        return side

    def image_tokens(self, unet: UNet2DConditionModel, images: Images) -> ImageTokens:
        """Return a U-Net's image tokens for images with values from 0 to 1, one for each video."""
        pixels = self._normalize(self.resize(images.float(), self.side))
        states = [self._states(pixels, projection)[:, None] for projection in image_projections(unet)]
        return cross_attention.project_image_tokens(unet, states)

    def empty_tokens(self, unet: UNet2DConditionModel, count: int) -> ImageTokens:
        """Return a U-Net's image tokens for no image, for `count` videos."""
        pixels = self._normalize(torch.tensor(self.empty_color).view(1, 3, 1, 1).expand(count, 3, self.side, self.side))
        states = []
        for projection in image_projections(unet):
            state = self._states(pixels, projection)[:, None]
            states.append(torch.zeros_like(state) if isinstance(projection, ImageProjection) else state)
        return cross_attention.project_image_tokens(unet, states)

    def _normalize(self, images: ResizedImages) -> Tensor:
        mean, std = (torch.tensor(each, device=images.device).view(3, 1, 1) for each in (self.mean, self.std))
        return ((images - mean) / std).to(execution_device(self.network), self.network.dtype)

    @torch.no_grad()
    def _states(self, pixels: Tensor, projection: nn.Module) -> Tensor:
        """Return the input of one projection: the embedding of the whole image, or the states of its patches."""
        if isinstance(projection, ImageProjection):
            return self.network(pixels).image_embeds
        return self.network(pixels, output_hidden_states=True).hidden_states[self.layer][:, : self.num_states]


def check_image_encoder(unet: UNet2DConditionModel, encoder: ImageEncoder | None, name: str) -> None:
    """Raise InputError unless an image encoder gives what the IP-Adapters on a U-Net read.

    name: of the IP-Adapter, for the message.
    """
    if encoder is None:
        raise InputError(f"{name} has no image encoder: load it with one, `image_encoder_folder` of load_ip_adapter")
    config = encoder.network.config
    for layer in image_projections(unet):
        if "FaceID" in type(layer).__name__:
            raise InputError(f"{name} is {FACE_ID}")
        kind = "projection_dim" if isinstance(layer, ImageProjection) else "hidden_size"
        if (reads := _read_width(layer)) != getattr(config, kind):
            raise wrong_encoder_error(name, kind, reads, getattr(config, kind))


def wrong_encoder_error(name: str, kind: str, reads: int, gives: int) -> InputError:
    """Return the error for an image encoder whose `projection_dim` or `hidden_size` is not what an IP-Adapter reads."""
    return InputError(
        f"{name} reads an image encoder with {kind} {reads}, and the one beside it has {gives}: put the encoder there "
        "that it was made with. It is ViT-H (hidden_size 1280, projection_dim 1024) for most, and ViT-bigG (1664, "
        "1280) for ip-adapter_sdxl; 512 are the embeddings of a face by insightface, which are not supported"
    )


def _read_width(projection: Any) -> int:
    """Return the channels of the states that an IP-Adapter's projection reads."""
    if isinstance(projection, ImageProjection):
        return int(projection.image_embeds.in_features)
    if isinstance(projection, IPAdapterFullImageProjection):
        return int(projection.ff.net[0].proj.in_features)
    return int(projection.proj_in.in_features)


def image_projections(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Return the layers that project an encoder's states to image tokens, one for each IP-Adapter.

    Raises InputError if the U-Net has no IP-Adapter.
    """
    if not isinstance(getattr(unet, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
        raise InputError(
            "this model takes no images: take an image-to-video model, such as pocket-animate, or load it with an "
            "IP-Adapter"
        )
    return list(unet.encoder_hid_proj.image_projection_layers)
