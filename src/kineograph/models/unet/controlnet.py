"""ControlNet on the frames of a video: residuals for the U-Net's skip connections from control maps.

A ControlNet is the first half of a U-Net (Zhang et al. 2023, section 3.2), so its frames use the U-Net's frame
attention: with first-frame attention in the U-Net alone, the two networks would disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Condition, Residuals
from kineograph.models.hooks import execution_device, onload
from kineograph.models.unet.cross_attention import TokenKeyValues, project_tokens
from kineograph.models.unet.forward import AddedResiduals, LayerInputs, down_block, embed_time, mid_block
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, group_frames, own
from kineograph.models.unet.supported_layers import check_unet_config

ControlMaps = Float[Tensor, "f 3 H W"]
ControlEmbedding = list[Float[Tensor, "f _ _ _"]]  # one tensor of a ControlNet, one a down block of a T2I-Adapter
Progress = Callable[[float], float]  # timestep, as the network takes it -> the share of the denoising that is done
ControlResiduals = tuple[list[Tensor], Tensor]  # of each skip connection, and of the mid block's output


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

    @property
    def reduction(self) -> int:
        """Height and width of a map over those of the latents that it is for."""
        return 2 ** (len(self.controlnet.config.conditioning_embedding_out_channels) - 1)

    @torch.no_grad()
    def embed(self, maps: ControlMaps) -> ControlEmbedding:
        """Embed control maps, values from 0 to 1, at the latents' size: the same for all noise levels."""
        net = self.controlnet
        onload(net)
        ordered = maps.flip(1) if net.config.controlnet_conditioning_channel_order == "bgr" else maps
        return [net.controlnet_cond_embedding(ordered.to(execution_device(net), net.dtype))]

    def forward(
        self,
        z: Latents,
        timestep: Tensor | float,
        condition: Condition,
        control: ControlEmbedding,
        *,
        frame_attention: FrameAttention = own,
        frames: Sequence[int] | None = None,
        cache: KeyValueCache | None = None,
        key_values: TokenKeyValues | None = None,
        run_layers: RunControl | None = None,
    ) -> ControlResiduals:
        """Return the residuals of each skip connection and of the mid block, frames folded into the batch.

        control: embedded control maps of the frames in z. The other arguments are those of `VideoUNet.forward`; the
        cache may be the U-Net's, which then drops what no frame reads any more. run_layers: computes
        `VideoControlNet.run_layers`, by torch by default.
        """
        net, numbers = self.controlnet, list(range(z.shape[1]) if frames is None else frames)
        onload(net)
        key_values = project_tokens(net, condition) if key_values is None else key_values
        temb = embed_time(net, timestep, condition.embedding, len(z), numbers)
        inputs = LayerInputs(temb, key_values, group_frames(frame_attention, numbers, cache), cache)
        return (run_layers or VideoControlNet.run_layers)(
            self, z.flatten(0, 1), control[0].repeat(len(z), 1, 1, 1), inputs
        )

    def run_layers(self, x: Tensor, control: Tensor, inputs: LayerInputs) -> ControlResiduals:
        """Return the residuals for frames folded into the batch: a function of tensors alone."""
        net = self.controlnet
        x = net.conv_in(x.to(net.dtype)) + control.to(net.dtype)
        skips = [x]
        for block in net.down_blocks:
            skips += down_block(block, skips[-1], inputs)
        x = mid_block(net.mid_block, skips[-1], inputs)
        residuals = [conv(skip) for conv, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
        return residuals, net.controlnet_mid_block(x)


# (network, frames folded into the batch, embedded maps of each, inputs of all layers) -> residuals
RunControl = Callable[[VideoControlNet, Tensor, Tensor, LayerInputs], ControlResiduals]


def linear_progress(timestep: float) -> float:
    """Return the share of 1,000 timesteps that are done, as `Schedule.progress_at` of most models."""
    return 1 - timestep / 1000


def bind_controlnet(
    net: VideoControlNet,
    condition: Condition,
    control: ControlEmbedding,
    *,
    frame_attention: FrameAttention = own,
    scale: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    progress: Progress = linear_progress,
    run_layers: RunControl | None = None,
) -> Residuals:
    """Return the `residuals` of a condition: a ControlNet bound to the control maps of all frames of a video.

    Args:
        control: embedded control maps of frame 0 and up, see `VideoControlNet.embed`.
        scale: factor on the residuals.
        start, end: the timesteps with control, as fractions from the noisiest, 0, to the clean one, 1. They are of
            noise levels and not of steps, so they mean the same for any list of sigmas.
        progress: the model's `Schedule.progress_at`.
        run_layers: as in `VideoControlNet.forward`.
    """
    with torch.no_grad():
        key_values = project_tokens(net.controlnet, condition)

    def residuals(
        z: Latents, timestep: Tensor, frames: Sequence[int], cache: KeyValueCache | None
    ) -> AddedResiduals | None:
        if not start <= progress(float(timestep)) <= end:
            return None
        skips, mid = net(
            z, timestep, condition, [control[0][list(frames)]],
            frame_attention=frame_attention, frames=frames, cache=cache, key_values=key_values, run_layers=run_layers,
        )  # fmt: skip
        if scale != 1:
            skips, mid = [scale * each for each in skips], scale * mid
        return AddedResiduals(skips, [mid])

    return residuals


def sum_residuals(*controls: Residuals) -> Residuals:
    """Return the residuals of several ControlNets and T2I-Adapters, summed."""

    def residuals(
        z: Latents, timestep: Tensor, frames: Sequence[int], cache: KeyValueCache | None
    ) -> AddedResiduals | None:
        active = [each for control in controls if (each := control(z, timestep, frames, cache)) is not None]
        return AddedResiduals(*(_sum_lists([each for each in place if each]) for place in zip(*active, strict=True)))

    return residuals


def _sum_lists(lists: list[Sequence[Tensor]]) -> list[Tensor]:
    """Return the sums of the first tensors of all lists, of the second, and so on."""
    return [sum(each[1:], each[0]) for each in zip(*lists, strict=True)]
