"""VideoCrafter1: temporal layers are trained on top of a text-to-image model (Chen et al. 2023, section 3).

The network denoises all frames of a video together, at one noise level, conditioned on the text and the frame rate, for
image-to-video also on an image. Sampling is plain; the paper's contribution is the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kineograph import noise
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.temporal.config import ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.plan import Combination, Method, Plan, SamplingRun, bind_model, pin_known_frames
from kineograph.request import OverlapOptions, VideoModelOptions
from kineograph.samplers import BY_NAME, Sampler, Step

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from kineograph.models.conditioning.condition import Condition
    from kineograph.models.schedule import Schedule
    from kineograph.models.unet.forward import CallStage
    from kineograph.models.unet.video_unet import VideoUNet

# The released models: temporal transformers everywhere. Those of the text-to-video models have relative positions; the
# image-to-video model gets the order of frames from its convolutions. The layer after conv_in has eight heads at any
# width. Their sampler is DDIM with eta 1, which is euler-ancestral.
RELATIVE = TransformerConfig(head_width=64, relative=16)
NO_POSITIONS = TransformerConfig(head_width=64)
TEXT_TO_VIDEO_512 = TemporalConfig(
    layers=((Site("conv_in"), RELATIVE.model_copy(update={"heads": 8})), (Site("transformer"), RELATIVE)),
    sampler="euler-ancestral",
)
TEXT_TO_VIDEO_1024 = TEXT_TO_VIDEO_512.model_copy(update={"frame_rate": True})
IMAGE_TO_VIDEO_512 = TemporalConfig(
    layers=(
        (Site("conv_in"), NO_POSITIONS.model_copy(update={"heads": 8})),
        (Site("resnet"), ConvConfig()),
        (Site("transformer"), NO_POSITIONS),
    ),
    frame_rate=True,
    sampler="euler-ancestral",
)


def attach(
    image_unet: UNet2DConditionModel,
    config: TemporalConfig = TEXT_TO_VIDEO_1024,
    call_stage: CallStage | None = None,
) -> VideoUNet:
    """Return the video network with this image network and new temporal layers, all initialised to the identity.

    call_stage: as in `VideoUNet`.
    """
    from kineograph.models.temporal.temporal_layers import TemporalLayers
    from kineograph.models.unet.forward import call_directly
    from kineograph.models.unet.video_unet import VideoUNet

    return VideoUNet(image_unet, TemporalLayers(image_unet, config), call_stage or call_directly)


def loss(
    net: VideoUNet,
    schedule: Schedule,
    cond: Condition,
    x0: Latents,
    noise: Latents,
    timesteps: Int[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Return the squared error of the network's prediction for each video; an image is a video of one frame.

    Temporal layers do not act on one frame. Joint training takes the mean over images and videos (section 4.1).
    """
    return schedule.training_losses(lambda z, t: net(z, t, cond), x0, noise, timesteps)


@torch.no_grad()
def sample(denoise: Denoise, noise: Latents, sigmas: Sequence[float], *, sampler: Sampler) -> Iterator[Step]:
    """Sample a video, all frames together, along falling sigmas.

    The paper's sampler is DDIM with eta 1, `samplers.ddim_eta(1.0, noise_at)`.
    """
    yield from sampler(denoise, sigmas[0] * noise, sigmas)


def run(plan: Plan) -> SamplingRun:
    """Sample a clip from the prompt and, if there is one, the image."""
    from kineograph.models.unet.frame_attention import own

    model = plan.model
    sigmas = plan.sigmas(model.schedule)
    ratio = 0.0 if model.temporal is None else model.temporal.noise_ratio
    own_noise = noise.partly_shared(ratio, plan.seeds, plan.frames, plan.latent_shape, plan.clip).to(model.device)
    initial = plan.continue_noise(own_noise)
    denoise = pin_known_frames(plan, bind_model(plan, frame_attention=own).guided, initial)
    noise_at = noise.partly_shared_per_sigma(ratio, plan.seeds, plan.frames, plan.latent_shape)
    sampler = plan.adapt_sampler(BY_NAME[plan.sampler](noise_at, model.schedule.scale_timestep), sigmas)
    start = plan.start_noise(initial, sigmas[0])
    return SamplingRun(len(sigmas), initial, sample(denoise, start, sigmas, sampler=sampler))


def check(combination: Combination) -> None:
    """Raise InputError for a model without temporal layers."""
    if combination.model.temporal is None:
        raise InputError(
            f"{combination.model.name} is an image model without temporal layers: leave `method` out, or load it with "
            "a motion module, or use a video model, such as pocket-video"
        )


def check_motion_module(combination: Combination) -> None:
    """Raise InputError for a model without AnimateDiff's motion module; one that has it is sampled in the same way."""
    temporal = combination.model.temporal
    if temporal is None or not temporal.is_motion_module:
        raise InputError(
            f"{combination.model.name} has no motion module of AnimateDiff: load an image model with one, "
            "`motion_module`, or leave `method` out"
        )


METHOD = Method(run, (VideoModelOptions, OverlapOptions), check)
