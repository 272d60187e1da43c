"""Video Instruct-Pix2Pix: an editing model changes every frame of a video, as an instruction says.

Each frame is drawn with its own frame of the input beside it, guided by text and picture (Brooks et al. 2023), and
looks at the first (Text2Video-Zero, section 3.5).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from kineograph import noise
from kineograph.condition import Condition
from kineograph.denoise import Denoise, text_and_image_guidance
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.media.footage import in_chunks
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.plan import DESCENTS, Plan, SamplingRun, dependable, solver, solver_in_step
from kineograph.request import Request


def plan(model: Model, request: Request, start: Plan) -> SamplingRun:
    """The walk."""
    sigmas = DESCENTS[start.solver].rungs(model.schedule.sigmas, request.num_inference_steps)
    draw, sampler = {
        "shared": (noise.shared, solver_in_step),
        "independent": (noise.independent, solver),
    }[request.noise]
    begin = draw(start.seed, start.frames, start.shape).to(model.device)
    return SamplingRun(
        len(sigmas), begin, sampler(request, start)(_look(model, request, start), sigmas[0] * begin, sigmas)
    )


def _look(model: Model, request: Request, start: Plan) -> Denoise:
    edits = model.net.image_unet.config.in_channels == 2 * model.vae.config.latent_channels
    if not edits:
        raise InputError(
            f"{model.name} draws from text alone: editing takes a model trained on instructions, such as "
            "timbrooks/instruct-pix2pix, or the pocket model's own, pocket-edit"
        )
    shown = input_latents(model, start, request.chunk_size)
    said, nothing = (model.prompt([text]) for text in (request.prompt, request.negative_prompt))

    def bound(condition: Condition, channels: Latents) -> Denoise:
        return model.bind(replace(condition, channels=channels), see=first, chunk_size=request.chunk_size)

    estimate = text_and_image_guidance(
        bound(said, shown), bound(nothing, shown), bound(nothing, torch.zeros_like(shown)),
        request.guidance_scale, request.image_guidance_scale,
    )  # fmt: skip
    return dependable(start, model.schedule, estimate)


def input_latents(model: Model, start: Plan, at_once: int) -> Latents:
    """The input's frames as the editing model reads them: encoded, without the scale of the latents."""
    (footage,) = start.inputs.footage
    encoded = [
        model.encode(torch.from_numpy(chunk).permute(0, 3, 1, 2)[None].float() / 255)
        for chunk in in_chunks(footage.frames(start.height, start.width), at_once)
    ]
    shift, scale = model.vae.config.shift_factor or 0.0, model.vae.config.scaling_factor
    return torch.cat(encoded, dim=1) / scale + shift
