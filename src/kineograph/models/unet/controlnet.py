"""ControlNet on the frames of a video: what a picture of edges, depth or a pose adds to the U-Net's skip connections.

A ControlNet is the first half of a U-Net (Zhang et al. 2023, section 3.2), so its frames walk as the U-Net's do and see
each other by the same policy: without that, first-frame attention in the U-Net alone leaves the control to disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.condition import Condition, Residuals
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.unet import frame_attention
from kineograph.models.unet.cross_attention import TokenKeyValues
from kineograph.models.unet.forward import LayerInputs, down_block, mid_block
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, own
from kineograph.models.unet.supported_layers import check_unet_config
from kineograph.models.unet.video_unet import embedded_time, prepare_text

ControlMaps = Float[Tensor, "f 3 H W"]
ControlEmbedding = Float[Tensor, "f d h w"]
Added = tuple[list[Tensor], Tensor]


class VideoControlNet(nn.Module):
    """A `ControlNetModel` on all frames of a video together.

    Raises InputError for a network of another kind, naming what is not supported.
    """

    def __init__(self, controlnet: ControlNetModel) -> None:
        super().__init__()
        check_unet_config(controlnet)
        if controlnet.config.global_pool_conditions:
            raise InputError("this ControlNet has global_pool_conditions=True (shuffle), which is not supported")
        self.controlnet = controlnet

    @torch.no_grad()
    def embed(self, maps: ControlMaps) -> ControlEmbedding:
        """The control pictures, with values from 0 to 1, at the latents' size: they hold for all noise levels."""
        net = self.controlnet
        ordered = maps.flip(1) if net.config.controlnet_conditioning_channel_order == "bgr" else maps
        return net.controlnet_cond_embedding(ordered.to(net.device, net.dtype))

    def forward(
        self,
        z: Latents,
        timestep: Tensor | float,
        condition: Condition,
        cues: ControlEmbedding,
        *,
        see: FrameAttention = own,
        frames: Sequence[int] | None = None,
        memory: KeyValueCache | None = None,
        text: TokenKeyValues | None = None,
    ) -> Added:
        """What is added to each skip connection and to the middle, frames folded into the batch.

        cues: of the frames in z. frames, memory, text: as in `VideoUNet.forward`; the memory may be the U-Net's, which
        then is the one to forget.
        """
        net, numbers = self.controlnet, list(range(z.shape[1]) if frames is None else frames)
        text = prepare_text(net, condition) if text is None else text
        time = embedded_time(net, timestep, condition.embedding, z.shape[:2])
        told = LayerInputs(time, text, frame_attention.group_frames(see, numbers, memory), memory)
        x = net.conv_in(z.flatten(0, 1).to(net.dtype)) + cues.repeat(len(z), 1, 1, 1)
        skips = [x]
        for block in net.down_blocks:
            x = down_block(block, x, skips, told)
        x = mid_block(net.mid_block, x, told)
        added = [leave(skip) for leave, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
        return added, net.controlnet_mid_block(x)


def bind_controlnet(
    net: VideoControlNet,
    condition: Condition,
    cues: ControlEmbedding,
    *,
    see: FrameAttention = own,
    scale: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    timesteps: int = 1000,
) -> Residuals:
    """The `residuals` of a condition: the control pictures of all frames of a video, bound.

    cues: of frame 0 and up, see `VideoControlNet.embed`.
    start, end: from where to where on the way down control is exerted, in parts of the timesteps from the noisiest, 0,
        to the clean one, 1: a level of noise, so it means the same with any ladder.
    timesteps: how many the model was trained on.
    """
    with torch.no_grad():
        text = prepare_text(net.controlnet, condition)

    def residuals(z: Latents, timestep: Tensor, frames: Sequence[int], memory: KeyValueCache | None) -> Added | None:
        if not start <= 1 - float(timestep) / timesteps <= end:
            return None
        added, middle = net(
            z, timestep, condition, cues[list(frames)], see=see, frames=frames, memory=memory, text=text
        )
        return (added, middle) if scale == 1 else ([scale * each for each in added], scale * middle)

    return residuals


def sum_residuals(*controls: Residuals) -> Residuals:
    """Several ControlNets at once: what each adds, summed."""

    def residuals(z: Latents, timestep: Tensor, frames: Sequence[int], memory: KeyValueCache | None) -> Added | None:
        active = [added for each in controls if (added := each(z, timestep, frames, memory)) is not None]
        return reduce(_sum, active) if active else None

    return residuals


def _sum(one: Added, other: Added) -> Added:
    return [a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]
