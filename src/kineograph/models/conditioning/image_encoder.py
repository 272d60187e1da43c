"""Pictures as an image encoder reads them, for networks that are shown one beside the text.

IP-Adapters and VideoCrafter1's image-to-video model read CLIP's patches through a projection on the U-Net; they differ
in which layer they read, how a picture is made to fit, and what they take for no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from kineograph.errors import InputError
from kineograph.models.unet import cross_attention

Images = Float[Tensor, "b 3 H W"]
ImageTokens = Float[Tensor, "b m d"]
ResizedImages = Float[Tensor, "b 3 _ _"]
Resize = Callable[[Images, int], ResizedImages]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PENULTIMATE, LAST = -2, -1
GREY = (0.5, 0.5, 0.5)


def stretch_to_square(pictures: Images, side: int) -> ResizedImages:
    """Both sides to this length, whatever the shape: as VideoCrafter1 shows its pictures (align_corners and all)."""
    return interpolate(pictures, (side, side), mode="bicubic", align_corners=True)


def crop_to_square(pictures: Images, side: int) -> ResizedImages:
    """The shorter side to this length, and the middle of the longer: as CLIP's own processor does."""
    return crop_to_size(pictures, side, side)


def crop_to_size(pictures: Images, height: int, width: int) -> ResizedImages:
    """As small as covers this height and width, and the middle of it."""
    scale = max(height / pictures.shape[-2], width / pictures.shape[-1])
    size = [max(least, round(scale * side)) for least, side in zip((height, width), pictures.shape[-2:], strict=True)]
    fitted = interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return fitted[..., top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """An image encoder, and how pictures are given to it.

    network   a CLIP vision tower of transformers
    layer     which of its hidden states is read: the last but one, or the last
    fit       makes a picture a square
    blank     the colour that stands for no picture, red, green and blue from 0 to 1
    states    how many of the states there, of which the first is the class token; all unless given
    """

    network: CLIPVisionModel | CLIPVisionModelWithProjection
    layer: int = PENULTIMATE
    fit: Resize = crop_to_square
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    blank: tuple[float, float, float] = CLIP_MEAN
    states: int | None = None

    @property
    def side(self) -> int:
        """How many pixels wide and high the encoder sees."""
        return int(self.network.config.image_size)

    def tokens(self, unet: UNet2DConditionModel, pictures: Images) -> ImageTokens:
        """What the network is shown of these pictures, with values from 0 to 1: one for each video."""
        pixels = self._pixels(self.fit(pictures.float(), self.side))
        embeddings = [self._embedding(pixels, of)[:, None] for of in image_projections(unet)]
        return cross_attention.project_image_tokens(unet, embeddings)

    def no_tokens(self, unet: UNet2DConditionModel, count: int) -> ImageTokens:
        """What the network is shown where it is shown no picture."""
        pixels = self._pixels(torch.tensor(self.blank).view(1, 3, 1, 1).expand(count, 3, self.side, self.side))
        embeddings = [self._no_embedding(pixels, of)[:, None] for of in image_projections(unet)]
        return cross_attention.project_image_tokens(unet, embeddings)

    def _pixels(self, pictures: ResizedImages) -> Tensor:
        mean, std = (torch.tensor(each, device=pictures.device).view(3, 1, 1) for each in (self.mean, self.std))
        weight = next(self.network.parameters())
        return ((pictures - mean) / std).to(weight.device, weight.dtype)

    def _no_embedding(self, pixels: Tensor, of: nn.Module) -> Tensor:
        seen = self._embedding(pixels, of)
        return torch.zeros_like(seen) if isinstance(of, ImageProjection) else seen

    @torch.no_grad()
    def _embedding(self, pixels: Tensor, of: nn.Module) -> Tensor:
        """What one projection reads: the whole picture in one vector, or its patches."""
        if isinstance(of, ImageProjection):
            return self.network(pixels).image_embeds
        return self.network(pixels, output_hidden_states=True).hidden_states[self.layer][:, : self.states]


def image_projections(unet: UNet2DConditionModel) -> list[nn.Module]:
    """What makes tokens of an encoder's states, one for each IP-Adapter. Raises InputError when there is none."""
    if not isinstance(getattr(unet, "encoder_hid_proj", None), MultiIPAdapterImageProjection):
        raise InputError(
            "this model is shown no pictures: take an image-to-video model, such as pocket-animate, or load it with an "
            "IP-Adapter"
        )
    return list(unet.encoder_hid_proj.image_projection_layers)
