"""Still-Moving: a customised image model inside a video model (Chefer et al. 2024, section 4).

Under layers along time that never saw it, a customised image network draws features that those layers do not expect. A
spatial adapter before each of them puts that right. It can only be trained on still pictures, so motion must be
switched off meanwhile: that is what a motion adapter has learnt, once for a video model and for all its customers.
Drawing is then a plain walk of the video model with the motion adapter at scale 0 and the spatial adapter at 1.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.condition import Condition
from kineograph.latents import Latents
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.adapters import AdapterConfig, MotionAdapter, SpatialAdapter
from kineograph.models.unet.video_unet import VideoUNet

STILL, MOVING = 1.0, 0.0  # the motion adapter's scales in training


def attach(net: VideoUNet, *, motion: AdapterConfig | None = None, spatial: AdapterConfig | None = None) -> VideoUNet:
    """The video network with new adapters, which change nothing yet; one that is not asked for stays what it is.

    Step I trains a motion adapter (`branches.MOTION`), step II a spatial one (`branches.SPATIAL`); nothing else learns.
    Raises ValueError for a network without layers along time.
    """
    if net.temporal is None:
        raise ValueError("Still-Moving's adapters go with layers along time: this network has none.")
    return VideoUNet(
        net.image_unet,
        net.temporal,
        net.through,
        motion_adapter=net.motion_adapter if motion is None else MotionAdapter(net.temporal, motion),
        spatial_adapter=net.spatial_adapter if spatial is None else SpatialAdapter(net.temporal, spatial),
    )


def inject(customised: UNet2DConditionModel, net: VideoUNet) -> VideoUNet:
    """The customised image network under the video network's layers along time, with its adapters.

    Without a spatial adapter this is the paper's baseline of plain injection.
    """
    return VideoUNet(
        customised,
        net.temporal,
        net.through,
        motion_adapter=net.motion_adapter,
        spatial_adapter=net.spatial_adapter,
    )


@torch.no_grad()
def interpolate_weights(
    customised: UNet2DConditionModel, image: UNet2DConditionModel, share: float
) -> UNet2DConditionModel:
    """The baseline of interpolated weights: `share` of the customised network's and the rest of the image network's.

    For a network that a LoRA customised this is the LoRA at that scale. Raises ValueError for networks that differ in
    more than their weights.
    """
    ours, theirs = customised.state_dict(), image.state_dict()
    if {name: each.shape for name, each in ours.items()} != {name: each.shape for name, each in theirs.items()}:
        raise ValueError("Weights are interpolated between networks of the same layers: merge LoRAs into them first.")
    mixed = deepcopy(image)
    mixed.load_state_dict({name: share * ours[name] + (1 - share) * theirs[name] for name in ours})
    return mixed


def frozen_videos(videos: Latents, chosen: Int[Tensor, " b"], frames: int) -> Float[Tensor, "b n c h w"]:
    """Frozen videos: of each, or of each picture, one frame, so many times over."""
    return videos[torch.arange(len(videos)), chosen][:, None].expand(-1, frames, -1, -1, -1)


def join_frozen_and_natural(
    stills: Float[Tensor, "s f c h w"], natural: Float[Tensor, "n f c h w"]
) -> tuple[Latents, Float[Tensor, " b"]]:
    """One batch of step II and its motion scales: frozen videos of the customised model's pictures, and natural videos,
    so that what the video model knew is preserved."""
    scales = torch.tensor([STILL] * len(stills) + [MOVING] * len(natural), device=stills.device)
    return torch.cat([stills, natural]), scales


def loss(
    net: VideoUNet,
    schedule: Schedule,
    told: Condition,
    x0: Latents,
    noise: Latents,
    timesteps: Int[Tensor, " b"],
    motion_scale: float | Float[Tensor, " b"] = STILL,
) -> Float[Tensor, " b"]:
    """The squared error of the predicted noise of each video.

    Step I is of frozen videos at scale 1; step II of `together`. Noise is each frame's own, in frozen videos too.
    """
    return schedule.error(lambda z, t: net(z, t, told, motion_scale=motion_scale), x0, noise, timesteps)
