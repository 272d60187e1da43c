"""Still-Moving: a customised image model inside a video model (Chefer et al. 2024, section 4).

The features of a customised image network are out of distribution for temporal layers that were not trained with it. A
spatial adapter before each temporal layer corrects them. It is trained on frozen videos (repeated images), while a
motion adapter, trained once per video model for all customisations, switches motion off. Sampling is that of the video
model, with the motion adapter at scale 0 and the spatial adapter at 1.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.errors import InputError
from kineograph.latents import Latents

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from kineograph.models.conditioning.condition import Condition
    from kineograph.models.schedule import Schedule
    from kineograph.models.temporal.adapters import AdapterConfig
    from kineograph.models.unet.video_unet import VideoUNet

STILL, MOVING = 1.0, 0.0  # the motion adapter's scales in training


def attach(net: VideoUNet, *, motion: AdapterConfig | None = None, spatial: AdapterConfig | None = None) -> VideoUNet:
    """Return the video network with new adapters, initialised to zero; for None it keeps the adapter that it has.

    Step I trains a motion adapter (`adapters.MOTION_ADAPTER`), step II a spatial one (`adapters.SPATIAL_ADAPTER`);
    nothing else is trained. Raises InputError for a network without temporal layers.
    """
    if net.temporal is None:
        raise InputError("Still-Moving's adapters belong to temporal layers: this network has none.")
    from kineograph.models.temporal.adapters import MotionAdapter, SpatialAdapter
    from kineograph.models.unet.video_unet import VideoUNet

    return VideoUNet(
        net.image_unet,
        net.temporal,
        net.call_stage,
        motion_adapter=net.motion_adapter if motion is None else MotionAdapter(net.temporal, motion),
        spatial_adapter=net.spatial_adapter if spatial is None else SpatialAdapter(net.temporal, spatial),
    )


def inject(customised: UNet2DConditionModel, net: VideoUNet) -> VideoUNet:
    """Return the customised image network under the video network's temporal layers, with its adapters.

    Without a spatial adapter this is the paper's baseline of plain injection.
    """
    from kineograph.models.unet.video_unet import VideoUNet

    return VideoUNet(
        customised,
        net.temporal,
        net.call_stage,
        motion_adapter=net.motion_adapter,
        spatial_adapter=net.spatial_adapter,
    )


@torch.no_grad()
def interpolate_weights(
    customised: UNet2DConditionModel, image: UNet2DConditionModel, share: float
) -> UNet2DConditionModel:
    """Return `share * customised + (1 - share) * image`, weight by weight: the paper's interpolation baseline.

    For a merged LoRA this is the LoRA at that scale. Raises InputError for networks of different layers.
    """
    ours, theirs = customised.state_dict(), image.state_dict()
    if {name: each.shape for name, each in ours.items()} != {name: each.shape for name, each in theirs.items()}:
        raise InputError("Weights are interpolated between networks of the same layers: merge LoRAs into them first.")
    mixed = deepcopy(image)
    mixed.load_state_dict({name: share * ours[name] + (1 - share) * theirs[name] for name in ours})
    return mixed


def repeat_frame(videos: Latents, chosen: Int[Tensor, " b"], frames: int) -> Float[Tensor, "b n c h w"]:
    """Return frozen videos: one chosen frame of each video, or each image, repeated `frames` times."""
    return videos[torch.arange(len(videos)), chosen][:, None].expand(-1, frames, -1, -1, -1)


def loss(
    net: VideoUNet,
    schedule: Schedule,
    cond: Condition,
    x0: Latents,
    noise: Latents,
    timesteps: Int[Tensor, " b"],
    motion_scale: float | Float[Tensor, " b"] = STILL,
) -> Float[Tensor, " b"]:
    """Return the squared error of the network's prediction for each video.

    motion_scale  `STILL` for frozen videos, `MOVING` for natural ones. Step I trains on frozen videos; step II on
                  frozen videos of the customised model's images, and on natural videos, which preserve the prior.

    Each frame has its own noise, in frozen videos too.
    """
    return schedule.training_losses(lambda z, t: net(z, t, cond, motion_scale=motion_scale), x0, noise, timesteps)
