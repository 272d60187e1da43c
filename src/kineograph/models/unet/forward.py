"""Forward pass of a UNet2DConditionModel on the frames of a video.

The layers stay the user's own (docs/decisions/0003). Each is called as a module and its weights are never read, so
LoRA, quantisation and hooks on it keep working. Frames are folded into the batch; only attention and temporal layers
distinguish them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.hooks import execution_device
from kineograph.models.temporal.temporal_layers import AfterLayer
from kineograph.models.unet.cross_attention import TokenKeyValues, cross_attend
from kineograph.models.unet.deepcache import DeepFeature
from kineograph.models.unet.frame_attention import FrameGroups, KeyValueCache, attend_frames, group_frames, own

ApplyResnet = Callable[[ResnetBlock2D, Tensor, Tensor, int], Tensor]  # (resnet, x, temb, number of frames) -> x
ApplyNorm = Callable[[nn.Module, Tensor, int], Tensor]  # (group norm, x, number of frames) -> x
CallStage = Callable[..., Tensor]  # (a stage of the forward pass, its arguments) -> its output
Block = Any  # of a U-Net or a ControlNet: torch types what it holds as Tensor | Module
Network = Any  # a U-Net or a ControlNet


def skip_temporal(layer: nn.Module, x: Tensor, frames: int) -> Tensor:
    """Return the image layer's output unchanged, as without temporal layers."""
    return x


def apply_resnet(resnet: ResnetBlock2D, x: Tensor, temb: Tensor, frames: int) -> Tensor:
    """Apply a ResNet block to each frame separately."""
    return resnet(x, temb)


def apply_norm(norm: nn.Module, x: Tensor, frames: int) -> Tensor:
    """Apply a group norm to each frame separately."""
    return norm(x)


def call_directly(stage: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a stage without gradient checkpointing."""
    return stage(*arguments)


class AddedResiduals(NamedTuple):
    """Tensors that are added inside a U-Net, frames folded into the batch; what is empty adds nothing.

    skips   to each skip connection (ControlNet)
    mid     to the output of the mid block: one, or none (ControlNet)
    blocks  to each down block, and to the mid block if there is one more (T2I-Adapter)
    """

    skips: Sequence[Tensor] = ()
    mid: Sequence[Tensor] = ()
    blocks: Sequence[Tensor] = ()


class LayerInputs(NamedTuple):
    """Inputs that all layers of one forward pass share, and the functions that call them.

    temb        embedding of the timestep and of what is added to it, for each frame: `(b f) e`
    key_values  keys and values of the condition's tokens in each cross-attention layer
    groups      the frames, and which frames' keys and values each reads in self-attention
    cache       keys and values of frames of earlier calls
    after       called after each image layer: the temporal layers
    resnet      calls a ResNet block
    norm        calls the last group norm
    call_stage  calls each stage, such as `torch.utils.checkpoint.checkpoint`
    deep        the feature that DeepCache keeps or reuses; None without it
    """

    temb: Tensor
    key_values: TokenKeyValues
    groups: FrameGroups
    cache: KeyValueCache | None
    after: AfterLayer = skip_temporal
    resnet: ApplyResnet = apply_resnet
    norm: ApplyNorm = apply_norm
    call_stage: CallStage = call_directly
    deep: DeepFeature | None = None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.groups.frames)

    def match_frames(self, x: Tensor) -> LayerInputs:
        """Return the inputs for the layers that read `x`, whose number of frames a temporal layer may have changed.

        If so, every frame reads itself and all have the same condition, which `VideoUNet` has checked.
        """
        videos = len(self.temb) // self.frames
        frames = len(x) // videos
        if frames == self.frames:
            return self
        temb = self.temb[:: self.frames].repeat_interleave(frames, dim=0)
        return self._replace(temb=temb, groups=group_frames(own, range(frames), None))


def forward_unet(
    unet: UNet2DConditionModel, z: Tensor, residuals: AddedResiduals, inputs: LayerInputs
) -> tuple[Tensor, Tensor | None]:
    """Return a U-Net's raw output for frames folded into the batch, and the feature that DeepCache keeps.

    The feature is what enters the up layer of `inputs.deep`, computed here or given there; None without `inputs.deep`.
    """
    deep, up_layers = inputs.deep, list(_up_layers(unet))
    inside = 0 if deep is None else len(up_layers) - deep.branch - 1  # up layers whose output DeepCache reuses
    if deep is None or deep.tensor is None:
        skips = list(_down_path(unet, z, residuals.blocks, inputs))
        x = _mid_path(unet, skips[-1], residuals, inputs.match_frames(skips[-1]))
        skips = _add_to_skips(skips, residuals.skips)
        for layer in up_layers[:inside]:
            x = _up_layer(layer, x, skips, inputs.match_frames(x))
    else:
        skips = list(islice(_down_path(unet, z, residuals.blocks, inputs), deep.branch + 1))
        x, skips = deep.tensor, _add_to_skips(skips, residuals.skips[: deep.branch + 1])
    feature = None if deep is None else x
    for layer in up_layers[inside:]:
        x = _up_layer(layer, x, skips, inputs.match_frames(x))
    normed = inputs.norm(unet.conv_norm_out, x, inputs.match_frames(x).frames)
    return unet.conv_out(unet.conv_act(normed)), feature


def _down_path(unet: UNet2DConditionModel, z: Tensor, added: Sequence[Tensor], inputs: LayerInputs) -> Iterator[Tensor]:
    """Yield the skip connections, each as it is computed. added: to the output of each down block (T2I-Adapter)."""
    x = inputs.call_stage(inputs.after, unet.conv_in, unet.conv_in(z), inputs.frames)
    yield x
    for block, of_block in zip_longest(unet.down_blocks, added[: len(unet.down_blocks)]):
        skips = down_block(block, x, inputs.match_frames(x), of_block)
        for x in skips:
            yield x


def down_block(block: Block, x: Tensor, inputs: LayerInputs, added: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the skip connections of a down block, the last of which is its output.

    added: added before downsampling in a block with transformers, after it in others, as diffusers adds the features of
    a T2I-Adapter; the skip connection there has it too.
    """
    stages, downsamplers = list(_stages(block)), block.downsamplers or ()
    with_added = len(stages) + (0 if hasattr(block, "attentions") else len(downsamplers))
    for number, layer in enumerate((*stages, *downsamplers), 1):
        if number <= len(stages):
            x = inputs.call_stage(_stage, *layer, x, inputs)
        else:
            x = inputs.after(layer, layer(x), inputs.frames)
        if added is not None and number == with_added:
            x = x + added.to(x)
        yield x


def _add_to_skips(skips: list[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """Return the skip connections with the residuals of a ControlNet, if there are any."""
    return [skip + added.to(skip) for skip, added in zip(skips, residuals, strict=True)] if residuals else skips


def _mid_path(unet: UNet2DConditionModel, x: Tensor, residuals: AddedResiduals, inputs: LayerInputs) -> Tensor:
    """Apply the mid block, if there is one, and what is added to its output."""
    if unet.mid_block is not None:
        x = mid_block(unet.mid_block, x, inputs)
    for added in (*residuals.blocks[len(unet.down_blocks) :], *residuals.mid):
        x = x + added.to(x)
    return x


def mid_block(block: Block, x: Tensor, inputs: LayerInputs) -> Tensor:
    """Apply a mid block."""
    for resnet, transformer in _stages(block):
        x = inputs.call_stage(_stage, resnet, transformer, x, inputs)
    return x


class _UpLayer(NamedTuple):
    """A ResNet block of an up block, which reads one skip connection, and the layers that follow it."""

    block: Block
    resnet: ResnetBlock2D
    transformer: Transformer2DModel | None
    upsamplers: Sequence[nn.Module]


def _up_layers(unet: UNet2DConditionModel) -> Iterator[_UpLayer]:
    """Return the layers of all up blocks: the last of them reads the first skip connection."""
    for block in unet.up_blocks:
        for resnet, transformer in (stages := list(_stages(block))):
            yield _UpLayer(block, resnet, transformer, block.upsamplers or () if resnet is stages[-1][0] else ())


def _up_layer(layer: _UpLayer, x: Tensor, skips: list[Tensor], inputs: LayerInputs) -> Tensor:
    """Apply a layer of the up path; take its skip connection from the end of `skips`."""
    x = torch.cat(_apply_freeu(layer.block, x, skips.pop()), dim=1)
    x = inputs.call_stage(_stage, layer.resnet, layer.transformer, x, inputs)
    for upsample in layer.upsamplers:
        x = inputs.after(upsample, upsample(x, skips[-1].shape[2:]), inputs.frames)
        if len(x) != (wanted := len(skips[-1])):  # an odd number of frames was rounded up by temporal downsampling
            videos = len(inputs.temb) // inputs.frames
            x = x.unflatten(0, (videos, -1))[:, : wanted // videos].flatten(0, 1)
    return x


def _stages(block: Block) -> Iterator[tuple[ResnetBlock2D, Transformer2DModel | None]]:
    """Return the ResNet blocks of a block, each with the transformer that follows it, if one does."""
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _stage(resnet: ResnetBlock2D, transformer: Transformer2DModel | None, x: Tensor, inputs: LayerInputs) -> Tensor:
    x = inputs.after(resnet, inputs.resnet(resnet, x, inputs.temb, inputs.frames), inputs.frames)
    return x if transformer is None else inputs.after(transformer, _transformer(transformer, x, inputs), inputs.frames)


def _apply_freeu(block: Block, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Apply FreeU, where `enable_freeu` has set its strengths on a block."""
    strengths = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    if not all(strengths.values()):
        return x, skip
    return apply_freeu(block.resolution_idx, x, skip, **strengths)


def _transformer(transformer: Transformer2DModel, x: Tensor, inputs: LayerInputs) -> Tensor:
    normed, linear = transformer.norm(x), transformer.use_linear_projection  # SD 2.x, SDXL; 1x1 convolution in SD 1.x
    tokens = transformer.proj_in(_as_tokens(normed)) if linear else _as_tokens(transformer.proj_in(normed))
    for block in transformer.transformer_blocks:
        tokens = _transformer_block(block, tokens, inputs)
    projected = _as_image(transformer.proj_out(tokens), x) if linear else transformer.proj_out(_as_image(tokens, x))
    return x + projected


def _transformer_block(block: BasicTransformerBlock, x: Tensor, inputs: LayerInputs) -> Tensor:
    x = attend_frames(block.attn1, block.norm1(x), inputs.groups, inputs.cache) + x
    x = cross_attend(block.attn2, block.norm2(x), inputs.key_values[block.attn2], inputs.groups.frames) + x
    x = inputs.after(block.attn2, x, inputs.frames)
    return block.ff(block.norm3(x)) + x


def _as_tokens(x: Tensor) -> Tensor:
    """Return `n c h w` as `n (h w) c`, a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """Return `n (h w) c` as `n c h w` in the memory layout of `like`, a view where that is channels_last."""
    image = tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return image.contiguous() if like.is_contiguous() else image


def embed_time(
    net: Network,
    timestep: Tensor | float,
    embedding: Tensor | None,
    videos: int,
    frames: Sequence[int],
    guidance_scale: float | None = None,
) -> Tensor:
    """Return the embedding of the timestep and of a condition's `embedding`, for these frames: `(b f) e`.

    guidance_scale: for a network that was distilled with it as an input; None adds nothing.

    Raises InputError if the network needs an embedding that the condition lacks, or takes none.
    """
    if (embedding is None) != (net.config.addition_embed_type is None):
        has, wants = ("no", "one") if embedding is None else ("an", "none")
        raise InputError(f"the condition has {has} embedding, this network takes {wants}: SDXL takes one, SD does not")
    timesteps = torch.as_tensor(timestep, device=execution_device(net)).expand(videos).repeat_interleave(len(frames))
    projected = net.time_proj(timesteps).to(net.dtype)
    scale = None if guidance_scale is None else embed_guidance_scale(net, guidance_scale).to(projected)
    temb = net.time_embedding(projected, scale)
    if embedding is None:
        return temb
    if embedding.ndim == 3:
        own = net.add_embedding(embedding[:, list(frames)].to(temb))
        return temb + own.expand(videos, -1, -1).flatten(0, 1)
    return temb + net.add_embedding(embedding.to(temb)).expand(videos, -1).repeat_interleave(len(frames), dim=0)


def embed_guidance_scale(net: Network, guidance_scale: float) -> Tensor:
    """Return the embedding of `w = guidance_scale - 1` of a latent consistency model: `1 e` (Luo et al. 2023, 4.2)."""
    w = torch.tensor([1000 * (guidance_scale - 1)])
    return get_timestep_embedding(w, net.config.time_cond_proj_dim, downscale_freq_shift=1)
