"""Video Instruct-Pix2Pix: an editing model changes every frame of a video by an instruction.

Each frame is conditioned on its own frame of the input, with guidance by text and by image (Brooks et al. 2023), and
attends to the first frame (Text2Video-Zero, section 3.5).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kineograph import noise
from kineograph.condition import Condition
from kineograph.denoise import Denoise, text_and_image_guidance
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.media.footage import stack_in_chunks
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.plan import Plan, SamplingRun, build_sampler, fit_to_sampler, spaced_sigmas
from kineograph.request import Request


def refuse_text_to_image_model(model: Model) -> None:
    """Raise InputError for a model that takes no input image beside the latents."""
    if model.net.image_unet.config.in_channels != 2 * model.vae.config.latent_channels:
        raise InputError(
            f"{model.name} generates from text alone: editing needs a model trained on instructions, such as "
            "timbrooks/instruct-pix2pix, or the pocket model's own, pocket-edit"
        )


def run(model: Model, request: Request, plan: Plan) -> SamplingRun:
    """Edit a video; `request.noise` says if its frames share their initial noise and the sampler's noise."""
    sigmas = spaced_sigmas(request, plan, model.schedule)
    generate_noise, noise_frames = {
        "shared": (noise.shared, [0] * len(plan.frames)),
        "independent": (noise.independent, plan.frames),
    }[request.noise]
    initial = generate_noise(plan.seed, plan.frames, plan.latent_shape).to(model.device)
    steps = build_sampler(plan, noise_frames)(_bind(model, request, plan), sigmas[0] * initial, sigmas)
    return SamplingRun(len(sigmas), initial, steps)


def _bind(model: Model, request: Request, plan: Plan) -> Denoise:
    refuse_text_to_image_model(model)
    image = encode_input(model, plan, request.chunk_size)
    cond, uncond = (model.prompt([text]) for text in (request.prompt, request.negative_prompt))

    def bind(condition: Condition, channels: Latents) -> Denoise:
        return model.bind(replace(condition, channels=channels), frame_attention=first, chunk_size=request.chunk_size)

    denoise = text_and_image_guidance(
        bind(cond, image), bind(uncond, image), bind(uncond, torch.zeros_like(image)),
        request.guidance_scale, request.image_guidance_scale,
    )  # fmt: skip
    return fit_to_sampler(denoise, plan.sampler, model.schedule)


def encode_input(model: Model, plan: Plan, chunk_size: int) -> Latents:
    """Encode the input's frames as the editing model reads them: without the latents' scaling factor."""
    (footage,) = plan.inputs.footage
    encoded = [
        model.encode(torch.from_numpy(chunk).permute(0, 3, 1, 2)[None].float() / 255)
        for chunk in stack_in_chunks(footage.frames(plan.height, plan.width), chunk_size)
    ]
    shift, scale = model.vae.config.shift_factor or 0.0, model.vae.config.scaling_factor
    return torch.cat(encoded, dim=1) / scale + shift
