"""A `UNet2DConditionModel` on all frames of a video, with layers along time around it where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models import attention, image_tokens
from kineograph.models.attention import Memory, See, own
from kineograph.models.image_tokens import Text
from kineograph.models.rooms import check_processors, check_settings, cross_attentions
from kineograph.models.temporal import as_plane
from kineograph.models.temporal_layers import TemporalLayers
from kineograph.models.walk import Through, Told, at_once, walk

Network = Any  # a U-Net, or a ControlNet for one


class VideoUNet(nn.Module):
    """A `UNet2DConditionModel` of SD 1.x, 2.x or SDXL on all frames of a video together.

    Without temporal layers, and with every frame seeing itself, it gives what the image network gives for each frame.
    So it does for a video of one frame in any case: layers along time, and the frame rate, are for more than one.
    through: what calls each stage of the walk, such as one that computes it again in the backward pass.
    Raises InputError for a network of another kind, naming what is not supported.
    """

    def __init__(
        self, image_unet: UNet2DConditionModel, temporal: TemporalLayers | None = None, through: Through = at_once
    ) -> None:
        super().__init__()
        check_settings(image_unet)
        self.image_unet = image_unet
        self.temporal = temporal
        self.through = through

    @property
    def tells_frame_rate(self) -> bool:
        """Whether the last number of a condition's embedding is frames a second."""
        return self.temporal is not None and self.temporal.fps is not None

    def _split(self, embedding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What the image network is told in numbers, and frames a second `[b]` behind it, if that is told."""
        if embedding is None or not self.tells_frame_rate:
            return embedding, None
        rest = embedding[:, :-1]
        return rest if rest.shape[1] else None, embedding[:, -1]

    def prepare(self, condition: Condition) -> Text:
        """Keys and values of what the condition tells every frame, for `text` of `forward`.

        They hold for all frames and noise levels, and for the weights and adapters on the network as they are now.
        Raises InputError for image tokens that nothing reads, and for attention that is not supported.
        """
        return prepare_text(self.image_unet, condition)

    def forward(
        self,
        z: Latents,
        timestep: Tensor | float,
        condition: Condition,
        *,
        see: See = own,
        frames: Sequence[int] | None = None,
        memory: Memory | None = None,
        text: Text | None = None,
    ) -> Latents:
        """The network's raw output for frames `z` of a video, in the dtype of `z`.

        timestep: one number, or one for each sample, `[b]`.
        frames: the numbers of the frames in z; 0 and up unless given. What a condition says frame by frame is for
            frame 0 and up, of which these are taken.
        memory: `{}` in the first of several walks through one video at one timestep, the same dict in the others;
            walking in parts then gives what one walk gives. From another clip it is an anchor.
        text: what `prepare` made of the condition.
        Raises InputError when a frame reads one that is neither here nor remembered, and when the condition is not
            for this network or this batch.
        """
        unet, numbers = self.image_unet, list(range(z.shape[1]) if frames is None else frames)
        _check(z, numbers, condition)
        plan = attention.plan(see, numbers, memory)
        text = self.prepare(condition) if text is None else text
        own, rate = self._split(condition.embedding)
        time = embedded_time(unet, timestep, own, z.shape[:2])
        told = Told(time, text, plan, memory, through=self.through)
        if self.temporal is not None and len(numbers) > 1:
            told = _along(self.temporal, unet, rate, told)
        added = condition.residuals and condition.residuals(z, torch.as_tensor(timestep), numbers, memory)
        x = walk(unet, _input(z, condition.channels, numbers).to(unet.dtype), added, told)
        if memory is not None:
            attention.forget(memory, plan)
        return x.unflatten(0, z.shape[:2]).to(z.dtype)


def prepare_text(net: Network, condition: Condition) -> Text:
    """What `VideoUNet.prepare` says, of a U-Net or a ControlNet."""
    check_processors(net)
    tokens, images = condition.tokens.to(net.device, net.dtype), condition.image_tokens
    images = None if images is None else images.to(net.device, net.dtype)
    return {
        layer: image_tokens.prepare(layer, tokens, images, condition.image_scale) for layer in cross_attentions(net)
    }


def _check(z: Latents, frames: list[int], condition: Condition) -> None:
    if len(frames) != z.shape[1]:
        raise InputError(f"got {z.shape[1]} frames with {len(frames)} numbers: give each frame one")
    if len(condition.tokens) not in (1, len(z)):
        raise InputError(
            f"got {len(z)} videos and a condition for {len(condition.tokens)}: tell each one, or all the same"
        )


def _input(z: Latents, channels: Tensor | None, frames: list[int]) -> Tensor:
    """The latents and behind them the condition's channels, `(b f) c h w`."""
    if channels is None:
        return z.flatten(0, 1)
    beside = channels[:, frames] if channels.shape[1] > 1 else channels.expand(-1, len(frames), -1, -1, -1)
    return torch.cat([z, beside.to(z)], dim=2).flatten(0, 1)


def _along(temporal: TemporalLayers, unet: Network, rate: Tensor | None, told: Told) -> Told:
    """What a walk over several frames is told, with the layers along time."""
    time = told.time
    if temporal.fps is not None:
        if rate is None:
            raise InputError(
                "this video network is told the frame rate, and the condition has none: "
                "bind Model.prompt(..., fps=8), or put frames a second behind the condition's embedding"
            )
        rates = temporal.fps(rate.to(time.device)).to(time)
        time = time + rates.repeat_interleave(len(time) // len(rates), dim=0)
    told = told._replace(time=time, after=temporal.around(unet))
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
