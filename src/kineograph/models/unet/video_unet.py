"""A `UNet2DConditionModel` on all frames of a video, with layers along time around it where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.temporal import adapters
from kineograph.models.temporal.adapters import AdapterScale, MotionAdapter, SpatialAdapter
from kineograph.models.temporal.config import AfterLayer, TemporalLayers
from kineograph.models.temporal.layers import ApplyProjection, apply_projection, as_plane
from kineograph.models.unet import cross_attention, frame_attention
from kineograph.models.unet.cross_attention import TokenKeyValues
from kineograph.models.unet.forward import CallStage, LayerInputs, call_directly, forward_unet
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, own
from kineograph.models.unet.supported_layers import check_attention_processors, check_resnet_config, check_unet_config, cross_attentions

Network = Any  # a U-Net, or a ControlNet for one


class VideoUNet(nn.Module):
    """A `UNet2DConditionModel` of SD 1.x, 2.x or SDXL on all frames of a video together.

    Without temporal layers, and with every frame seeing itself, it gives what the image network gives for each frame.
    So it does for a video of one frame in any case: layers along time, and the frame rate, are for more than one.
    through: what calls each stage of the walk, such as one that computes it again in the backward pass.
    motion_adapter, spatial_adapter: branches in and before the layers along time.
    Raises InputError for a network of another kind, naming what is not supported.
    """

    def __init__(
        self,
        image_unet: UNet2DConditionModel,
        temporal: TemporalLayers | None = None,
        through: CallStage = call_directly,
        *,
        motion_adapter: MotionAdapter | None = None,
        spatial_adapter: SpatialAdapter | None = None,
    ) -> None:
        super().__init__()
        check_unet_config(image_unet)
        if temporal is not None and temporal.config.joint_norms:
            check_resnet_config(image_unet)
        self.image_unet = image_unet
        self.temporal = temporal
        self.through = through
        self.motion_adapter = motion_adapter
        self.spatial_adapter = spatial_adapter

    @property
    def has_frame_rate(self) -> bool:
        """Whether the last number of a condition's embedding is frames a second."""
        return self.temporal is not None and self.temporal.fps is not None

    def _split(self, embedding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What the image network is told in numbers, and frames a second `[b]` behind it, if that is told."""
        if embedding is None or not self.has_frame_rate:
            return embedding, None
        rest = embedding[:, :-1]
        return rest if rest.shape[1] else None, embedding[:, -1]

    def of_image(self, condition: Condition) -> Condition:
        """What the image network, and a ControlNet for it, is told of a condition: no frame rate."""
        return replace(condition, embedding=self._split(condition.embedding)[0])

    def prepare(self, condition: Condition) -> TokenKeyValues:
        """Keys and values of what the condition tells every frame, for `text` of `forward`.

        They hold for all frames and noise levels, and for the weights and adapters on the network as they are now.
        Raises InputError for image tokens that nothing reads, and for attention that is not supported.
        """
        return prepare_text(self.image_unet, condition)

    def check_motion_scale(self, scale: AdapterScale, name: str = "this network") -> None:
        """Raises InputError for a scale other than 0 where no motion adapter can heed it."""
        if not adapters.is_off(scale) and self.motion_adapter is None:
            what = "motion adapter" if self.temporal is not None else "layers along time, and so no motion adapter"
            raise InputError(
                f"{name} has no {what}, and a motion_scale other than 0 needs one: {adapters.MOTION_ADAPTER_HINT}"
            )

    def _after(self, motion_scale: AdapterScale, spatial_scale: AdapterScale) -> AfterLayer:
        """The layers along time with the branches in and before them."""
        assert self.temporal is not None
        project: ApplyProjection = apply_projection
        if self.motion_adapter is not None and not adapters.is_off(motion_scale):
            project = self.motion_adapter.around(self.temporal, motion_scale)
        after = self.temporal.around(self.image_unet, project)
        if self.spatial_adapter is None or adapters.is_off(spatial_scale):
            return after
        return self.spatial_adapter.before(after, self.image_unet, spatial_scale)

    def forward(
        self,
        z: Latents,
        timestep: Tensor | float,
        condition: Condition,
        *,
        see: FrameAttention = own,
        frames: Sequence[int] | None = None,
        memory: KeyValueCache | None = None,
        text: TokenKeyValues | None = None,
        motion_scale: AdapterScale = 0.0,
        spatial_scale: AdapterScale = 1.0,
    ) -> Latents:
        """The network's raw output for frames `z` of a video, in the dtype of `z`.

        timestep: one number, or one for each sample, `[b]`.
        frames: the numbers of the frames in z; 0 and up unless given. What a condition says frame by frame is for
            frame 0 and up, of which these are taken.
        memory: `{}` in the first of several walks through one video at one timestep, the same dict in the others;
            walking in parts then gives what one walk gives. From another clip it is an anchor.
        text: what `prepare` made of the condition.
        motion_scale, spatial_scale: of the adapters, for all samples or one for each, `[b]`; at 0 the network is as it
            is without, to the bit. A motion adapter makes a video still at 1, and moves it more below 0.
        Raises InputError when a frame reads one that is neither here nor remembered, and when the condition is not
            for this network or this batch.
        """
        unet, numbers = self.image_unet, list(range(z.shape[1]) if frames is None else frames)
        _check(z, numbers, condition)
        plan = frame_attention.group_frames(see, numbers, memory)
        self.check_motion_scale(motion_scale)
        text = self.prepare(condition) if text is None else text
        own, rate = self._split(condition.embedding)
        time = embedded_time(unet, timestep, own, z.shape[:2])
        told = LayerInputs(time, text, plan, memory, through=self.through)
        if self.temporal is not None and len(numbers) > 1:
            for name, scale in (("motion_scale", motion_scale), ("spatial_scale", spatial_scale)):
                adapters.check_scale_shape(name, scale, len(z))
            _refuse_other_paces(self.temporal, condition, numbers, see, memory)
            told = _along(self.temporal, rate, told)._replace(after=self._after(motion_scale, spatial_scale))
        added = condition.residuals and condition.residuals(z, torch.as_tensor(timestep), numbers, memory)
        x = forward_unet(unet, _input(z, condition.channels, numbers).to(unet.dtype), added, told)
        if memory is not None:
            frame_attention.drop_unread(memory, plan)
        return x.unflatten(0, z.shape[:2]).to(z.dtype)


def prepare_text(net: Network, condition: Condition) -> TokenKeyValues:
    """What `VideoUNet.prepare` says, of a U-Net or a ControlNet."""
    check_attention_processors(net)
    tokens, images = condition.tokens.to(net.device, net.dtype), condition.image_tokens
    images = None if images is None else images.to(net.device, net.dtype)
    return {
        layer: cross_attention.layer_key_values(layer, tokens, images, condition.image_scale)
        for layer in cross_attentions(net)
    }


def _check(z: Latents, frames: list[int], condition: Condition) -> None:
    if len(frames) != z.shape[1]:
        raise InputError(f"got {z.shape[1]} frames with {len(frames)} numbers: give each frame one")
    if len(condition.tokens) not in (1, len(z)):
        raise InputError(
            f"got {len(z)} videos and a condition for {len(condition.tokens)}: tell each one, or all the same"
        )


def _refuse_other_paces(
    temporal: TemporalLayers, condition: Condition, frames: list[int], see: FrameAttention, memory: KeyValueCache | None
) -> None:
    """Where the number of frames changes on the way, nothing can be said to single frames, and each reads itself."""
    if not temporal.config.fewer:
        return
    images = condition.image_tokens
    if condition.residuals is not None or (images is not None and images.ndim == 4):
        raise InputError("a space-time network takes no ControlNet and no picture for each frame: use another one")
    if memory is not None or [see(frame) for frame in frames] != [(frame,) for frame in frames]:
        raise InputError("in a space-time network every frame's self-attention reads that frame: see=own, no memory")


def _input(z: Latents, channels: Tensor | None, frames: list[int]) -> Tensor:
    """The latents and behind them the condition's channels, `(b f) c h w`."""
    if channels is None:
        return z.flatten(0, 1)
    beside = channels[:, frames] if channels.shape[1] > 1 else channels.expand(-1, len(frames), -1, -1, -1)
    return torch.cat([z, beside.to(z)], dim=2).flatten(0, 1)


def _along(temporal: TemporalLayers, rate: Tensor | None, told: LayerInputs) -> LayerInputs:
    """What a walk over several frames is told where there are layers along time."""
    time = told.time
    if temporal.fps is not None:
        if rate is None:
            raise InputError(
                "this video network is told the frame rate, and the condition has none: "
                "bind Model.prompt(..., fps=8), or put frames a second behind the condition's embedding"
            )
        rates = temporal.fps(rate.to(time.device)).to(time)
        time = time + rates.repeat_interleave(len(time) // len(rates), dim=0)
    told = told._replace(time=time)
    return told._replace(resnet=together, norm=normed_together) if temporal.config.joint_norms else told


def together(room: ResnetBlock2D, x: Tensor, time: Tensor, frames: int) -> Tensor:
    """A resnet whose group norms span all frames."""
    inside = room.conv1(room.nonlinearity(normed_together(room.norm1, x, frames)))
    inside = inside + room.time_emb_proj(room.nonlinearity(time))[:, :, None, None]
    inside = room.conv2(room.dropout(room.nonlinearity(normed_together(room.norm2, inside, frames))))
    beside = x if room.conv_shortcut is None else room.conv_shortcut(x)
    return (beside + inside) / room.output_scale_factor


def normed_together(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    return layer(as_plane(x, frames)).unflatten(3, x.shape[2:]).transpose(1, 2).flatten(0, 1)


def embedded_time(net: Network, timestep: Tensor | float, embedding: Tensor | None, size: torch.Size) -> Tensor:
    """The embedding of the timestep and of what comes with it, for each image, `(b f) e`."""
    b, f = size
    if (embedding is None) != (net.config.addition_embed_type is None):
        has, wants = ("no", "one") if embedding is None else ("an", "none")
        raise InputError(f"the condition has {has} embedding, this network takes {wants}: SDXL takes one, SD does not")
    timesteps = torch.as_tensor(timestep, device=net.device).expand(b).repeat_interleave(f)
    time = net.time_embedding(net.time_proj(timesteps).to(net.dtype))
    if embedding is None:
        return time
    return time + net.add_embedding(embedding.to(time)).expand(b, -1).repeat_interleave(f, dim=0)
