"""Text2Video-Zero with a model, as a request asks for it: moved by a camera, or by control videos."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from kineograph import noise
from kineograph import sigmas as ladder
from kineograph.denoise import Denoise
from kineograph.generate import controls
from kineograph.latents import Latents, Mask
from kineograph.media.annotators import salient
from kineograph.methods import text2video_zero as method
from kineograph.models.model import Model
from kineograph.models.unet.foreground import bind_foreground_mask
from kineograph.models.unet.frame_attention import first
from kineograph.motion import Warp, frame_warp, parse
from kineograph.plan import DESCENTS, Plan, SamplingRun, begun, following, look, solver, solver_in_step, sparing
from kineograph.request import Request
from kineograph.samplers import ForegroundMasks, Sampler, smooth_background

HALF = 0.5  # of a cell


def plan(model: Model, request: Request, start: Plan) -> SamplingRun:
    """The walk of a clip."""
    sigmas = DESCENTS[start.solver].rungs(model.schedule.sigmas, request.num_inference_steps)
    estimate = _look(model, request, start)
    if start.inputs.motion is None:
        begin = noise.shared(start.seed, start.frames, start.shape).to(model.device)
        return SamplingRun(len(sigmas), begin, solver_in_step(request, start)(estimate, sigmas[0] * begin, sigmas))
    renoise_to, warp_at = method.paper_sigmas(start.shape, highest=sigmas[0])
    sigmas = ladder.insert_sigmas(sigmas, renoise_to, warp_at)
    alone, together = ladder.until(sigmas, warp_at)[:-1], ladder.starting_at(sigmas, renoise_to)
    warp = frame_warp(parse(start.inputs.motion), frames=len(start.frames), seed=start.seed)
    begin = begun(request, start, noise.independent(start.seed, start.frames, start.shape).to(model.device))
    walk = method.sample(
        sparing(request, start, estimate, sigmas),
        begin,
        sigmas,
        warp=warp,
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=_steadied(following(request, start, solver(request, start), sigmas), warp, model, request),
    )
    return SamplingRun(len(alone) + len(together) if len(start.frames) > 1 else len(sigmas), begin, walk)


def _look(model: Model, request: Request, start: Plan) -> Denoise:
    """The model told the prompt and guided away from the negative one, every frame looking at the first."""
    with_maps = controls.bound(model, request, start)
    told, blank = (
        model.bind(
            with_maps(model.prompt([text], size=(start.height, start.width))), see=first, chunk_size=request.chunk_size
        )
        for text in (request.prompt, request.negative_prompt)
    )
    return look(request, start, model.schedule, told, blank)


def _steadied(sampler: Sampler, warp: Warp, model: Model, request: Request) -> Sampler:
    """The solver, with background smoothing if it is asked for."""
    if not request.smooth_background:
        return sampler
    if request.masks == "rembg":
        masks = _salient(model)
    else:
        masks = bind_foreground_mask(model, [request.prompt], chunk_size=request.chunk_size)
    return smooth_background(sampler, warp, masks, request.smooth_background)


def _salient(model: Model) -> ForegroundMasks:
    """Masks of the decoded frames by a network for salient objects, at the latents' size."""
    found = salient()

    def masks(x0: Latents, sigma: float) -> Mask:
        frames = (255 * model.decode(x0)[0]).byte().permute(0, 2, 3, 1).numpy()
        seen = torch.from_numpy(np.stack([found(frame) for frame in frames])).float() / 255
        cells = F.interpolate(seen[None], x0.shape[-2:], mode="area")
        return (cells > HALF).float()[:, :, None].to(x0)

    return masks
