"""The walk: in which order the layers of an image network are called on the frames of a video.

The layers stay the user's own (docs/decisions/0003). Each is called as a module and its weights are never read, so
LoRA, quantisation and hooks on it keep working. Frames are folded into the batch; only attention knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from kineograph.models.temporal.config import AfterLayer
from kineograph.models.unet import cross_attention, frame_attention
from kineograph.models.unet.cross_attention import TokenKeyValues
from kineograph.models.unet.frame_attention import FrameGroups, KeyValueCache

Resnet = Callable[[ResnetBlock2D, Tensor, Tensor, int], Tensor]  # (resnet, x, embedded time, number of frames) -> x
Norm = Callable[[nn.Module, Tensor, int], Tensor]  # (group norm, x, number of frames) -> x
CallStage = Callable[..., Tensor]  # (a part of the walk, what it is given) -> what it gives
Block = Any  # of a U-Net or a ControlNet: torch would have what it holds be Tensor | Module


def still(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    return x


def each_alone(room: ResnetBlock2D, x: Tensor, time: Tensor, frames: int) -> Tensor:
    return room(x, time)


def call_directly(part: Callable[..., Tensor], *given: Any) -> Tensor:
    return part(*given)


def normed_alone(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    return layer(x)


class LayerInputs(NamedTuple):
    """What every layer of one walk is told."""

    time: Tensor
    text: TokenKeyValues
    plan: FrameGroups
    memory: KeyValueCache | None
    after: AfterLayer = still
    resnet: Resnet = each_alone
    norm: Norm = normed_alone
    through: CallStage = call_directly

    def of(self, x: Tensor) -> LayerInputs:
        """What the layers are told that read `x`, whose frames may have become fewer or more than they were.

        Then each reads itself and all are told the same, which `VideoUNet` has checked.
        """
        before = len(self.plan.frames)
        videos = len(self.time) // before
        frames = len(x) // videos
        if frames == before:
            return self
        time = self.time[::before].repeat_interleave(frames, dim=0)
        return self._replace(time=time, plan=frame_attention.group_frames(frame_attention.own, range(frames), None))


def forward_unet(
    unet: UNet2DConditionModel, z: Tensor, added: tuple[list[Tensor], Tensor] | None, told: LayerInputs
) -> Tensor:
    """A U-Net's raw output for frames folded into the batch; `added` is what ControlNets add to skips and middle."""
    x = told.through(told.after, unet.conv_in, unet.conv_in(z), len(told.plan.frames))
    skips = [x]
    for block in unet.down_blocks:
        x = down_block(block, x, skips, told)
        told = told.of(x)
    if unet.mid_block is not None:
        x = mid_block(unet.mid_block, x, told)
    if added is not None:
        skips = [skip + more.to(skip) for skip, more in zip(skips, added[0], strict=True)]
        x = x + added[1].to(x)
    for block in unet.up_blocks:
        x = _up(block, x, skips, told)
        told = told.of(x)
    return unet.conv_out(unet.conv_act(told.norm(unet.conv_norm_out, x, len(told.plan.frames))))


def down_block(block: Block, x: Tensor, skips: list[Tensor], told: LayerInputs) -> Tensor:
    for resnet, transformer in _stages(block):
        x = told.through(_stage, resnet, transformer, x, told)
        skips.append(x)
    for downsample in block.downsamplers or ():
        x = told.after(downsample, downsample(x), len(told.plan.frames))
        skips.append(x)
    return x


def mid_block(block: Block, x: Tensor, told: LayerInputs) -> Tensor:
    for resnet, transformer in _stages(block):
        x = told.through(_stage, resnet, transformer, x, told)
    return x


def _up(block: Block, x: Tensor, skips: list[Tensor], told: LayerInputs) -> Tensor:
    for resnet, transformer in _stages(block):
        x = torch.cat(_freed(block, x, skips.pop()), dim=1)
        x = told.through(_stage, resnet, transformer, x, told)
    for upsample in block.upsamplers or ():
        x = told.after(upsample, upsample(x, skips[-1].shape[2:]), len(told.plan.frames))
        x = _cut(x, len(told.time) // len(told.plan.frames), len(skips[-1]))
    return x


def _cut(x: Tensor, videos: int, wanted: int) -> Tensor:
    """The first frames of each video, so many in all: an odd number has been rounded up on the way down."""
    return x if len(x) == wanted else x.unflatten(0, (videos, -1))[:, : wanted // videos].flatten(0, 1)


def _stages(block: Block) -> Iterator[tuple[ResnetBlock2D, Transformer2DModel | None]]:
    """The resnets of a block, each with the transformer that follows it, if one does."""
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _stage(resnet: ResnetBlock2D, transformer: Transformer2DModel | None, x: Tensor, told: LayerInputs) -> Tensor:
    frames = len(told.plan.frames)
    x = told.after(resnet, told.resnet(resnet, x, told.time, frames), frames)
    return x if transformer is None else told.after(transformer, _transformer(transformer, x, told), frames)


def _freed(block: Block, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """FreeU, where `enable_freeu` has left its strengths on a block."""
    strengths = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    if not all(strengths.values()):
        return x, skip
    return apply_freeu(block.resolution_idx, x, skip, **strengths)


def _transformer(room: Transformer2DModel, x: Tensor, told: LayerInputs) -> Tensor:
    normed = room.norm(x)
    linear = room.use_linear_projection  # SD 2.x and SDXL; a 1x1 convolution in SD 1.x
    tokens = room.proj_in(_as_tokens(normed)) if linear else _as_tokens(room.proj_in(normed))
    for block in room.transformer_blocks:
        tokens = _block(block, tokens, told)
    return x + (_as_image(room.proj_out(tokens), x) if linear else room.proj_out(_as_image(tokens, x)))


def _block(block: BasicTransformerBlock, x: Tensor, told: LayerInputs) -> Tensor:
    frames = told.plan.frames
    x = frame_attention.attend_frames(block.attn1, block.norm1(x), told.plan, told.memory) + x
    x = cross_attention.cross_attend(block.attn2, block.norm2(x), told.text[block.attn2], frames) + x
    x = told.after(block.attn2, x, len(frames))
    return block.ff(block.norm3(x)) + x


def _as_tokens(x: Tensor) -> Tensor:
    """`n c h w` -> `n (h w) c`, a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """`n (h w) c` -> `n c h w` in the memory layout of `like`, a view where that is channels_last."""
    image = tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return image.contiguous() if like.is_contiguous() else image
