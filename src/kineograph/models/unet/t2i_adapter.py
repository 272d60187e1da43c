"""T2I-Adapter on the frames of a video: features of control maps that are added to the U-Net's down blocks.

The features depend on the map alone, neither on the noise level nor on the prompt, so they are computed once.
Source: T2I-Adapter (Mou et al. 2023, arXiv 2302.08453), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Residuals
from kineograph.models.hooks import execution_device
from kineograph.models.unet.controlnet import ControlEmbedding, ControlMaps, Progress, linear_progress
from kineograph.models.unet.forward import AddedResiduals

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, as PIL's "L"


class VideoT2IAdapter(nn.Module):
    """A `T2IAdapter` on all frames of a video together.

    Raises InputError if its features are not of the shapes of the U-Net's down blocks.
    """

    def __init__(self, adapter: T2IAdapter, unet: UNet2DConditionModel) -> None:
        super().__init__()
        is_xl = adapter.config.adapter_type == "full_adapter_xl"
        widths, last = list(unet.config.block_out_channels), unet.config.block_out_channels[-1:]
        expected = [*widths, *last] if is_xl else widths
        found = list(adapter.config.channels)
        if adapter.config.adapter_type == "light_adapter":
            found += found[-1:]
        if found != expected:
            raise InputError(
                f"this T2I-Adapter is for another architecture: its features have {_join(found)} channels, and the "
                f"model reads {_join(expected)}. Take one made for the model's family (SD 1.x, SD 2.x or SDXL)"
            )
        self.adapter = adapter

    @property
    def reduction(self) -> int:
        """Height and width of a map over those of the latents that it is for."""
        config = self.adapter.config  # SDXL's first features are for latents of half the size
        return config.downscale_factor // (2 if config.adapter_type == "full_adapter_xl" else 1)

    @torch.no_grad()
    def embed(self, maps: ControlMaps) -> ControlEmbedding:
        """Return the features of control maps, values from 0 to 1, for each down block.

        Raises InputError for a height or width that the adapter cannot divide.
        """
        factor = self.adapter.downscale_factor
        if any(side % factor for side in maps.shape[-2:]):
            height, width = maps.shape[-2:]
            raise InputError(
                f"this T2I-Adapter needs a `height` and `width` that are multiples of {factor}, not {height} x {width}"
            )
        if self.adapter.config.in_channels == 1:
            maps = (maps * maps.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        features: list[Tensor] = self.adapter(maps.to(execution_device(self.adapter), self.adapter.dtype))
        return features


def bind_t2i_adapter(
    features: ControlEmbedding,
    *,
    scale: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    progress: Progress = linear_progress,
) -> Residuals:
    """Return the `residuals` of a condition: features of all frames of a video. Arguments as in `bind_controlnet`."""

    def residuals(z: Latents, timestep: Tensor, frames: Sequence[int], cache: Any) -> AddedResiduals | None:
        if not start <= progress(float(timestep)) <= end:
            return None
        return AddedResiduals(blocks=[scale * each[list(frames)].repeat(len(z), 1, 1, 1) for each in features])

    return residuals


def _join(channels: list[int]) -> str:
    return ", ".join(map(str, channels))
