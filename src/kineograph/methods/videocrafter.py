"""VideoCrafter1: layers along time are trained on top of a text-to-image model (Chen et al. 2023, section 3).

The network sees all frames of a video together, at one noise level, and is told the text and the frame rate; for
image-to-video also a picture. So sampling is a plain walk, and what is peculiar sits in the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.condition import Condition
from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.samplers import Sampler, Step

RELATIVE = TransformerConfig(head_width=64, relative=16)
UNORDERED = TransformerConfig(head_width=64)

# The released models: temporal transformers everywhere, of which the text-to-video ones know distances between frames
# and the image-to-video one knows order by its convolutions. The entry has eight heads, whatever the width. They are
# drawn with by DDIM with eta 1, which is euler-ancestral.
TEXT_TO_VIDEO_512 = TemporalConfig(
    entry=RELATIVE.model_copy(update={"heads": 8}), transformer=RELATIVE, solver="euler-ancestral"
)
TEXT_TO_VIDEO_1024 = TEXT_TO_VIDEO_512.model_copy(update={"frame_rate": True})
IMAGE_TO_VIDEO_512 = TemporalConfig(
    entry=UNORDERED.model_copy(update={"heads": 8}), transformer=UNORDERED, convolution=True, frame_rate=True,
    solver="euler-ancestral",
)  # fmt: skip


def attach(image_unet: UNet2DConditionModel, config: TemporalConfig = TEXT_TO_VIDEO_1024) -> VideoUNet:
    """The video network that begins as this image network: every new layer begins as the identity."""
    return VideoUNet(image_unet, TemporalLayers(image_unet, config))


def loss(
    net: VideoUNet,
    schedule: Schedule,
    told: Condition,
    x0: Latents,
    noise: Latents,
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """The squared error of the predicted noise of each video, or, for videos of one frame, each picture.

    A picture passes the layers along time by, so joint training on both is the mean over both (section 4.1).
    """
    return schedule.error(lambda z, t: net(z, t, told), x0, noise, timesteps)


@torch.no_grad()
def sample(look: Denoise, noise: Latents, sigmas: Sequence[float], *, sampler: Sampler) -> Iterator[Step]:
    """Draw a video, all frames together, down a falling ladder.

    The paper's solver is DDIM with eta 1, `trajectory.ddim_eta(1.0, draw)`.
    """
    yield from sampler(look, sigmas[0] * noise, sigmas)
