"""VideoCrafter1: temporal layers are trained on top of a text-to-image model (Chen et al. 2023, section 3).

The network denoises all frames of a video together, at one noise level, conditioned on the text and the frame rate, for
image-to-video also on an image. Sampling is plain; the paper's contribution is the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from kineograph import noise
from kineograph.condition import Condition
from kineograph.denoise import Denoise, replace_known_frames
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.media.images import InputImage
from kineograph.models.conditioning.image_encoder import crop_to_size
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import ConvConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.forward import CallStage, call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.plan import Plan, SamplingRun, guide, spaced_sigmas
from kineograph.request import Request
from kineograph.samplers import BY_NAME, Sampler, Step

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


def image_model_error(model: Model) -> InputError:
    """Return the error to raise for a model without temporal layers."""
    return InputError(
        f"{model.name} is an image model without temporal layers: leave the method out, or load it with motion="
        "(--motion-module) or use a video model, such as pocket-video"
    )


def attach(
    image_unet: UNet2DConditionModel,
    config: TemporalConfig = TEXT_TO_VIDEO_1024,
    call_stage: CallStage = call_directly,
) -> VideoUNet:
    """Return the video network with this image network and new temporal layers, all initialised to the identity."""
    return VideoUNet(image_unet, TemporalLayers(image_unet, config), call_stage)


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


def run(model: Model, request: Request, plan: Plan) -> SamplingRun:
    """Sample a clip from the prompt and, if there is one, the image."""
    if model.temporal is None:
        raise image_model_error(model)
    sigmas = spaced_sigmas(request, plan, model.schedule)
    ratio = model.temporal.noise_ratio
    own_noise = noise.partly_shared(ratio, plan.seed, plan.frames, plan.latent_shape, plan.clip).to(model.device)
    initial = plan.continue_noise(own_noise)
    denoise = _bind(model, request, plan)
    if request.first_frame == "pinned" and plan.inputs.image and plan.clip == 0:
        known = model.encode(crop_to_size(_to_tensor(plan.inputs.image), plan.height, plan.width)[:, None])
        denoise = replace_known_frames(denoise, known.to(model.device), initial[:, :1])
    noise_at = noise.partly_shared_per_sigma(ratio, plan.seed, plan.frames, plan.latent_shape)
    sampler = plan.continue_sampler(BY_NAME[plan.sampler].sampler(noise_at), sigmas)
    return SamplingRun(len(sigmas), initial, sample(denoise, initial, sigmas, sampler=sampler))


def _bind(model: Model, request: Request, plan: Plan) -> Denoise:
    """Bind prompts, frame rate, image, controls and guidance."""
    cond, uncond = (
        plan.add_control(model.prompt([text], size=(plan.height, plan.width), fps=plan.inputs.fps))
        for text in (request.prompt, request.negative_prompt)
    )
    cond, uncond = _add_image(model, request, plan, cond, uncond)
    bind = partial(model.bind, window=request.window, overlap=request.overlap, motion_scale=request.motion_scale)
    return guide(request, plan, model.schedule, bind(cond), bind(uncond))


def _add_image(
    model: Model, request: Request, plan: Plan, cond: Condition, uncond: Condition
) -> tuple[Condition, Condition]:
    """Add image tokens for models that read them: the image's to `cond`, those of no image to `uncond`."""
    if model.image_encoder is None:
        if request.image is not None and request.first_frame == "shown":
            raise InputError(
                f"{model.name} takes no images: use an image-to-video model such as pocket-animate, load the model "
                "with an IP-Adapter, or pin the first frame to the image (--first-frame pinned)"
            )
        return cond, uncond
    tokens = model.image_tokens(_to_tensor(plan.inputs.image) if plan.inputs.image else None)
    cond = replace(cond, image_tokens=tokens, image_scale=request.image_scale)
    return cond, replace(uncond, image_tokens=model.image_tokens(None), image_scale=request.image_scale)


def _to_tensor(image: InputImage) -> Float[Tensor, "1 3 H W"]:
    return torch.from_numpy(image.pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
