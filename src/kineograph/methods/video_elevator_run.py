"""VideoElevator with two models, as a request asks for it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial

from kineograph import noise
from kineograph.denoise import Denoise, classifier_free_guidance
from kineograph.errors import InputError
from kineograph.generate import controls as controls
from kineograph.latents import Latents, low_pass
from kineograph.methods import video_elevator as method
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.models.vae.files import same_latent_space
from kineograph.plan import DESCENTS, Plan, SamplingRun, begun, dependable, following, look, solver
from kineograph.request import Request
from kineograph.samplers import dpmpp_2m

log = logging.getLogger(__name__)


def plan(model: Model, request: Request, start: Plan) -> SamplingRun:
    """The walk of a clip, in steps of the image model."""
    asked, sigmas = request.elevation, DESCENTS[start.solver].rungs(model.schedule.sigmas, request.num_inference_steps)
    told, blank = _told(model, request, start)
    fresh = noise.partly_shared(asked.shared_noise, start.seed, start.frames, start.shape, start.clip.number).to(
        model.device
    )
    begin = begun(request, start, fresh)
    walk = method.sample(
        look(request, start, model.schedule, told, blank),
        begin,
        sigmas,
        refine_at=method.refinement_sigmas(sigmas, asked.refine_at),
        refine=refiner(model, request, start),
        back=_back(model, request, start, told, begin),
        correct=method.correct_drift(told) if asked.drift_correction else None,
        sampler=following(request, start, solver(request, start), sigmas),
    )
    return SamplingRun(len(sigmas), begin, walk)


def _told(model: Model, request: Request, start: Plan) -> tuple[Denoise, Denoise]:
    """The image model told the prompt, and the negative one, every frame looking at the first."""
    with_maps, size = controls.bound(model, request, start), (start.height, start.width)
    told, blank = (
        model.bind(with_maps(model.prompt([text], size=size)), see=first, chunk_size=request.chunk_size)
        for text in (request.prompt, request.negative_prompt)
    )
    return told, blank


def refiner(model: Model, request: Request, start: Plan) -> method.Refine:
    """What the video model makes of the image model's estimate: handed over as latents, or as frames where the two
    models' VAEs differ."""
    video, asked = start.video_model, request.elevation
    assert video is not None and video.temporal is not None, "settled by recipes.settling"
    shape = (1, *video.latent_shape(start.height, start.width))
    name = "lcm" if video.temporal.solver == "lcm" else "ddim"
    draw = noise.per_sigma(start.seed, start.frames, shape)
    refine = method.refine_with_video_model(
        _video_look(video, request, start, name),
        DESCENTS[name].rungs(video.schedule.sigmas, request.num_inference_steps),
        asked.video_steps,
        draw,
        keep=partial(low_pass, spatial=asked.low_pass_space or math.inf, temporal=asked.low_pass or math.inf),
        sampler=DESCENTS[name].solver(draw),
    )
    if same_latent_space(model.vae, video.vae):
        return refine
    log.warning(
        "%s and %s have different VAEs: they exchange decoded frames, which takes longer", model.name, video.name
    )

    def through_frames(x0: Latents, sigma: float) -> Latents:
        shown = video.encode(model.decode(x0)).to(video.device)
        return model.encode(video.decode(refine(shown, sigma))).to(x0)

    return through_frames


def _video_look(video: Model, request: Request, start: Plan, solver: str) -> Denoise:
    scale = request.elevation.video_guidance_scale
    unseen = None if video.reader is None else video.shown(None)
    told, blank = (
        video.bind(
            replace(video.prompt([text], size=(start.height, start.width), fps=start.inputs.fps), image_tokens=unseen),
            window=request.window,
            overlap=request.overlap,
            motion_scale=request.motion_scale,
        )
        for text in (request.elevation.video_prompt or request.prompt, request.negative_prompt)
    )
    estimate = classifier_free_guidance(told, blank, max(1.0, request.guidance_scale if scale is None else scale))
    return dependable(start._replace(solver=solver), video.schedule, estimate)


def _back(model: Model, request: Request, start: Plan, told: Denoise, begin: Latents) -> method.Return:
    asked, table = request.elevation, model.schedule.sigmas
    if asked.back == "same-noise":
        return method.add_noise_again(lambda level: begin)
    if asked.back == "fresh-noise":
        return method.add_noise_again(noise.per_sigma(start.seed, start.frames, start.shape))
    rungs = DESCENTS[start.solver].rungs(table, request.num_inference_steps)
    lowest_last = [*(rung for rung in rungs if rung > table[0]), table[0]]
    if asked.drift_correction:
        return method.invert(told, lowest_last)
    return method.invert(told, lowest_last, asked.inversion_steps, dpmpp_2m)


def refuse_misfits(model: Model, video: Model | None) -> None:
    """Raises InputError when the two cannot draw together."""
    if model.temporal is not None:
        raise InputError(
            f"video-elevator draws with an image model, and {model.name} is a video model: pass it as the video model "
            "(video_model=, --video-model), and an image model as the model"
        )
    if video is None:
        raise InputError(
            "video-elevator needs a second model, that knows motion: pass one as video_model= (--video-model), such as "
            "pocket-video or zeroscope's folder"
        )
    if video.temporal is None:
        raise InputError(
            f"{video.name} is an image model, and video-elevator needs one with layers along time: load it with motion="
            ", or take a video model"
        )
