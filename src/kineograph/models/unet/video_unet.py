"""Video U-Net: a UNet2DConditionModel on all frames of a video, with temporal layers around it if it has some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Condition
from kineograph.models.hooks import onload
from kineograph.models.temporal import adapters
from kineograph.models.temporal.adapters import AdapterScale, MotionAdapter, SpatialAdapter
from kineograph.models.temporal.layers import AttentionPolicy, frames_to_plane, plane_to_frames
from kineograph.models.temporal.temporal_layers import AfterLayer, TemporalLayers
from kineograph.models.unet import cross_attention
from kineograph.models.unet.cross_attention import TokenKeyValues
from kineograph.models.unet.forward import (
    AddedResiduals,
    CallStage,
    LayerInputs,
    call_directly,
    embed_time,
    forward_unet,
)
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, drop_unread, group_frames, own
from kineograph.models.unet.supported_layers import check_resnet_config, check_unet_config
from kineograph.models.unet.windows import AttentionWindows, one_window


class TemporalSettings(NamedTuple):
    """Settings of temporal layers and adapters in one forward pass; see `VideoUNet.forward`."""

    motion_scale: AdapterScale = 0.0
    spatial_scale: AdapterScale = 1.0
    attention_windows: AttentionWindows = one_window


class VideoUNet(nn.Module):
    """A `UNet2DConditionModel` of SD 1.x, 2.x or SDXL on all frames of a video together.

    Without temporal layers, and with frame attention `own`, its output is the image network's for each frame. So it is
    for a video of one frame in any case: temporal layers, and the frame rate, apply to more than one.

    Args:
        call_stage: calls each stage of the forward pass, for gradient checkpointing.
        motion_adapter: low-rank branches in the temporal attentions.
        spatial_adapter: low-rank branches before the temporal layers.

    Raises InputError for a network of another kind, naming what is not supported.
    """

    def __init__(
        self,
        image_unet: UNet2DConditionModel,
        temporal: TemporalLayers | None = None,
        call_stage: CallStage = call_directly,
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
        self.call_stage = call_stage
        self.motion_adapter = motion_adapter
        self.spatial_adapter = spatial_adapter

    @property
    def has_frame_rate(self) -> bool:
        """True if the last number of a condition's embedding is frames per second."""
        return self.temporal is not None and self.temporal.fps is not None

    @property
    def reads_guidance_scale(self) -> bool:
        """True for a network that was distilled with the guidance scale as an input, a latent consistency model."""
        return self.image_unet.config.time_cond_proj_dim is not None

    def _split_embedding(self, embedding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the image network's part of a condition's embedding, and frames per second `[b]`, if it has each."""
        if embedding is None or not self.has_frame_rate:
            return embedding, None
        rest, fps = embedding[..., :-1], embedding[..., -1]
        return rest if rest.shape[-1] else None, fps[:, 0] if fps.ndim == 2 else fps

    def image_condition(self, condition: Condition) -> Condition:
        """Return the condition for the image network, and for its ControlNets: without a frame rate."""
        return replace(condition, embedding=self._split_embedding(condition.embedding)[0])

    def project_tokens(self, condition: Condition) -> TokenKeyValues:
        """Return the `key_values` of `forward` for a condition, see `cross_attention.project_tokens`."""
        return cross_attention.project_tokens(self.image_unet, condition)

    def check_motion_scale(self, scale: AdapterScale, name: str = "this network") -> None:
        """Raise InputError for a scale other than 0 if the network has no motion adapter."""
        if not adapters.is_off(scale) and self.motion_adapter is None:
            what = "motion adapter" if self.temporal is not None else "temporal layers, and so no motion adapter"
            raise InputError(
                f"{name} has no {what}, and a motion_scale other than 0 needs one: {adapters.MOTION_ADAPTER_HINT}"
            )

    def forward(
        self,
        z: Latents,
        timestep: Tensor | float,
        condition: Condition,
        *,
        frame_attention: FrameAttention = own,
        frames: Sequence[int] | None = None,
        cache: KeyValueCache | None = None,
        key_values: TokenKeyValues | None = None,
        motion_scale: AdapterScale = 0.0,
        spatial_scale: AdapterScale = 1.0,
        attention_windows: AttentionWindows = one_window,
        run_layers: RunLayers | None = None,
    ) -> Latents:
        """Return the network's raw output for frames `z` of a video, in the dtype of `z`.

        Args:
            timestep: one number, or one for each sample, `[b]`.
            frame_attention: which frames each frame reads in self-attention.
            frames: the numbers of the frames in z; 0 and up by default. Entries of a condition that hold one item per
                frame start at frame 0, and the items of these frames are used.
            cache: `{}` in the first of several calls for one video at one timestep, the same dict in the others; the
                calls together then return what one call returns. The cache of another clip anchors this one to it.
            key_values: what `project_tokens` returns for the condition.
            motion_scale, spatial_scale: of the adapters, for all samples or one each, `[b]`; at 0 the result is that
                without the adapter, to the bit. At motion_scale 1 a video is frozen; below 0 it moves more.
            attention_windows: the windows of frames in temporal attention, see `AttentionPolicy`.
            run_layers: computes `VideoUNet.run_layers`, by torch by default.

        Raises InputError if a frame reads one that is neither in `frames` nor in the cache, or the condition is not for
        this network or this batch.
        """
        unet, numbers = self.image_unet, list(range(z.shape[1]) if frames is None else frames)
        if len(numbers) != z.shape[1]:
            raise InputError(f"got {z.shape[1]} frames with {len(numbers)} numbers: give each frame one")
        if len(condition.tokens) not in (1, len(z)):
            raise InputError(
                f"got {len(z)} videos and a condition for {len(condition.tokens)}: give each its own, or one for all"
            )
        groups = group_frames(frame_attention, numbers, cache)
        onload(unet)
        self.check_motion_scale(motion_scale)
        key_values = self.project_tokens(condition) if key_values is None else key_values
        embedding, fps = self._split_embedding(condition.embedding)
        temb = embed_time(unet, timestep, embedding, len(z), numbers, condition.guidance_scale)
        if self.temporal is not None and len(numbers) > 1:
            for name, scale in (("motion_scale", motion_scale), ("spatial_scale", spatial_scale)):
                adapters.check_scale_shape(name, scale, len(z))
            if self.temporal.config.resamples_frames:
                _check_resampling(condition, numbers, frame_attention, cache)
            temb = _add_frame_rate(self.temporal, fps, temb)
        added = condition.residuals and condition.residuals(z, torch.as_tensor(timestep), numbers, cache)
        x, _ = (run_layers or VideoUNet.run_layers)(
            self,
            _add_channels(z, condition.channels, numbers),
            AddedResiduals(*(added or ())),
            LayerInputs(temb, key_values, groups, cache, call_stage=self.call_stage),
            TemporalSettings(motion_scale, spatial_scale, attention_windows),
        )
        if cache is not None:
            drop_unread(cache, groups)
        return x.unflatten(0, z.shape[:2]).to(z.dtype)

    def run_layers(
        self, x: Tensor, residuals: AddedResiduals, inputs: LayerInputs, settings: TemporalSettings
    ) -> tuple[Tensor, Tensor | None]:
        """Return the network's output for frames folded into the batch, and the feature that DeepCache keeps.

        A function of tensors alone.

        inputs: of the image network's layers; those of the temporal layers are added.
        """
        if self.temporal is not None and inputs.frames > 1:
            inputs = self._bind_temporal(self.temporal, inputs, settings)
        return forward_unet(self.image_unet, x.to(self.image_unet.dtype), residuals, inputs)

    def _bind_temporal(self, temporal: TemporalLayers, inputs: LayerInputs, settings: TemporalSettings) -> LayerInputs:
        """Return the inputs of a forward pass with temporal layers and adapters."""
        if temporal.config.joint_norms:
            inputs = inputs._replace(resnet=joint_resnet, norm=joint_norm)
        policy = AttentionPolicy(windows=settings.attention_windows)
        if self.motion_adapter is not None and not adapters.is_off(settings.motion_scale):
            policy = policy._replace(project=self.motion_adapter.bind(temporal, settings.motion_scale))
        after: AfterLayer = temporal.bind(self.image_unet, policy)
        if self.spatial_adapter is not None and not adapters.is_off(settings.spatial_scale):
            after = self.spatial_adapter.bind(after, self.image_unet, settings.spatial_scale)
        return inputs._replace(after=after)


# (network, frames folded into the batch, residuals, inputs of all layers, settings of the temporal ones) -> output,
# and the feature that DeepCache keeps
RunLayers = Callable[[VideoUNet, Tensor, AddedResiduals, LayerInputs, TemporalSettings], tuple[Tensor, Tensor | None]]


def _add_frame_rate(temporal: TemporalLayers, fps: Tensor | None, temb: Tensor) -> Tensor:
    """Return the embedding of the timestep with that of frames per second, for a network that takes them."""
    if temporal.fps is None:
        return temb
    if fps is None:
        raise InputError(
            "this video network takes a frame rate, and the condition has none: "
            "bind Model.prompt(..., fps=8), or append frames per second to the condition's embedding"
        )
    added = temporal.fps(fps.to(temb.device)).to(temb)
    return temb + added.repeat_interleave(len(temb) // len(added), dim=0)


def _check_resampling(
    condition: Condition, frames: list[int], frame_attention: FrameAttention, cache: KeyValueCache | None
) -> None:
    """Raise InputError for inputs of single frames and for frames that read others: their number changes inside."""
    images = condition.image_tokens
    if condition.residuals is not None or condition.tokens.ndim == 4 or (images is not None and images.ndim == 4):
        raise InputError(
            "a space-time network takes no ControlNet, and no text or image of single frames: use another one"
        )
    if cache is not None or [frame_attention(frame) for frame in frames] != [(frame,) for frame in frames]:
        raise InputError(
            "in a space-time network every frame's self-attention reads that frame: frame_attention=own, no cache"
        )


def _add_channels(z: Latents, channels: Tensor | None, frames: list[int]) -> Tensor:
    """Concatenate the condition's channels to the latents': `(b f) c h w`."""
    if channels is None:
        return z.flatten(0, 1)
    added = channels[:, frames] if channels.shape[1] > 1 else channels.expand(-1, len(frames), -1, -1, -1)
    return torch.cat([z, added.to(z)], dim=2).flatten(0, 1)


def joint_resnet(resnet: ResnetBlock2D, x: Tensor, temb: Tensor, frames: int) -> Tensor:
    """Apply a ResNet block with group norms that span all frames."""
    inside = resnet.conv1(resnet.nonlinearity(joint_norm(resnet.norm1, x, frames)))
    inside = inside + resnet.time_emb_proj(resnet.nonlinearity(temb))[:, :, None, None]
    inside = resnet.conv2(resnet.dropout(resnet.nonlinearity(joint_norm(resnet.norm2, inside, frames))))
    shortcut = x if resnet.conv_shortcut is None else resnet.conv_shortcut(x)
    return (shortcut + inside) / resnet.output_scale_factor


def joint_norm(norm: nn.Module, x: Tensor, frames: int) -> Tensor:
    """Apply a group norm over all frames of each video."""
    return plane_to_frames(norm(frames_to_plane(x, frames)), x.shape[2:])
