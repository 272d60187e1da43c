"""The walk: in which order the layers of an image network are called on the frames of a video.

The layers stay the user's own (docs/decisions/0003). Each is called as a module and its weights are never read, so
LoRA, quantisation and hooks on it keep working. Frames are folded into the batch; only attention knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models import attention, image_tokens
from kineograph.models.attention import Memory, Plan, See, own
from kineograph.models.image_tokens import Text
from kineograph.models.rooms import check_processors, check_settings, cross_attentions
from kineograph.models.temporal import as_plane
from kineograph.models.temporal_layers import After, TemporalLayers

Resnet = Callable[[ResnetBlock2D, Tensor, Tensor, int], Tensor]  # (resnet, x, embedded time, number of frames) -> x
Norm = Callable[[nn.Module, Tensor, int], Tensor]  # (group norm, x, number of frames) -> x
Through = Callable[..., Tensor]  # (a part of the walk, what it is given) -> what it gives
Network = Any  # a U-Net, or a ControlNet for one
Block = Any  # of either: torch would have what it holds be Tensor | Module


def still(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    return x


def each_alone(room: ResnetBlock2D, x: Tensor, time: Tensor, frames: int) -> Tensor:
    return room(x, time)


def at_once(part: Callable[..., Tensor], *given: Any) -> Tensor:
    return part(*given)


def normed_alone(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    return layer(x)


class Told(NamedTuple):
    """What every layer of one walk is told."""

    time: Tensor
    text: Text
    plan: Plan
    memory: Memory | None
    after: After = still
    resnet: Resnet = each_alone
    norm: Norm = normed_alone
    through: Through = at_once


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
        x = _walk(unet, _input(z, condition.channels, numbers).to(unet.dtype), added, told)
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


def _walk(unet: UNet2DConditionModel, z: Tensor, added: tuple[list[Tensor], Tensor] | None, told: Told) -> Tensor:
    x = told.through(told.after, unet.conv_in, unet.conv_in(z), len(told.plan.frames))
    skips = [x]
    for block in unet.down_blocks:
        x = down(block, x, skips, told)
    if unet.mid_block is not None:
        x = middle(unet.mid_block, x, told)
    if added is not None:
        skips = [skip + more.to(skip) for skip, more in zip(skips, added[0], strict=True)]
        x = x + added[1].to(x)
    for block in unet.up_blocks:
        x = _up(block, x, skips, told)
    return unet.conv_out(unet.conv_act(told.norm(unet.conv_norm_out, x, len(told.plan.frames))))


def down(block: Block, x: Tensor, skips: list[Tensor], told: Told) -> Tensor:
    for resnet, transformer in _stages(block):
        x = told.through(_stage, resnet, transformer, x, told)
        skips.append(x)
    for downsample in block.downsamplers or ():
        x = downsample(x)
        skips.append(x)
    return x


def middle(block: Block, x: Tensor, told: Told) -> Tensor:
    for resnet, transformer in _stages(block):
        x = told.through(_stage, resnet, transformer, x, told)
    return x


def _up(block: Block, x: Tensor, skips: list[Tensor], told: Told) -> Tensor:
    for resnet, transformer in _stages(block):
        x = torch.cat(_freed(block, x, skips.pop()), dim=1)
        x = told.through(_stage, resnet, transformer, x, told)
    for upsample in block.upsamplers or ():
        x = upsample(x, skips[-1].shape[2:])
    return x


def _stages(block: Block) -> Iterator[tuple[ResnetBlock2D, Transformer2DModel | None]]:
    """The resnets of a block, each with the transformer that follows it, if one does."""
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _stage(resnet: ResnetBlock2D, transformer: Transformer2DModel | None, x: Tensor, told: Told) -> Tensor:
    frames = len(told.plan.frames)
    x = told.after(resnet, told.resnet(resnet, x, told.time, frames), frames)
    return x if transformer is None else told.after(transformer, _transformer(transformer, x, told), frames)


def _freed(block: Block, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """FreeU, where `enable_freeu` has left its strengths on a block."""
    strengths = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    if not all(strengths.values()):
        return x, skip
    return apply_freeu(block.resolution_idx, x, skip, **strengths)


def _transformer(room: Transformer2DModel, x: Tensor, told: Told) -> Tensor:
    normed = room.norm(x)
    linear = room.use_linear_projection  # SD 2.x and SDXL; a 1x1 convolution in SD 1.x
    tokens = room.proj_in(_as_tokens(normed)) if linear else _as_tokens(room.proj_in(normed))
    for block in room.transformer_blocks:
        tokens = _block(block, tokens, told)
    return x + (_as_image(room.proj_out(tokens), x) if linear else room.proj_out(_as_image(tokens, x)))


def _block(block: BasicTransformerBlock, x: Tensor, told: Told) -> Tensor:
    frames = told.plan.frames
    x = attention.look(block.attn1, block.norm1(x), told.plan, told.memory) + x
    x = image_tokens.read(block.attn2, block.norm2(x), told.text[block.attn2], frames) + x
    x = told.after(block.attn2, x, len(frames))
    return block.ff(block.norm3(x)) + x


def _as_tokens(x: Tensor) -> Tensor:
    """`n c h w` -> `n (h w) c`, a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """`n (h w) c` -> `n c h w` in the memory layout of `like`, a view where that is channels_last."""
    image = tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return image.contiguous() if like.is_contiguous() else image
