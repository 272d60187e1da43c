"""VideoElevator: an image model samples, and a video model makes its estimates move (Zhang et al. 2024, section 3).

The two share no network, no schedule and no text encoder, only the space of clean latents. At some steps the image
model's clean estimate is refined: a temporal low-pass filter keeps its slow motion, the video model resamples it from
the same noise level (SDEdit), and inversion finds the image model's noisy latents of the result. The image model's
frames attend to the first frame, which is bound to it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from pydantic import AfterValidator
from typing_extensions import TypedDict

from kineograph import latents, noise
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, add_noise
from kineograph.options import Flag, Integer, Number, Text, declared, option
from kineograph.plan import (
    Combination,
    Method,
    Plan,
    SamplingRun,
    add_image,
    bind_model,
    build_sampler,
    deepcache_settings,
    encode_prompts,
    encode_texts,
    fit_to_sampler,
    guide_by_text,
    guide_in_interval,
    pin_known_frames,
    text_guidance_scale,
)
from kineograph.request import MAX_STEPS, ImageModelOptions, OverlapOptions, SharedOptions, VideoModelOptions
from kineograph.samplers import BY_NAME, NoiseAt, Sampler, Step, ddim, dpmpp_2m, step_to
from kineograph.sigmas import insert_sigmas, starting_at, until

if TYPE_CHECKING:
    from kineograph.models.model import Model
    from kineograph.models.temporal.config import TemporalConfig

log = logging.getLogger(__name__)

Refine = Callable[[Latents, float], Latents]  # (clean estimate, its sigma) -> clean estimate with better motion
Renoise = Callable[[Latents, float], list[Step]]  # (clean latents, sigma) -> rising steps, the last one at that sigma
Correct = Callable[[Sequence[Step], float, float], Latents | float]  # (steps of Renoise, sigma, next sigma) -> addend
LowPass = Callable[[Latents], Latents]


GROUP = "Second model"


class VideoElevatorOptions(TypedDict, total=False):
    """Options of VideoElevator; the defaults are its authors' unless stated."""

    video_prompt: Annotated[
        Text,
        option("", "Prompt of the video model, for words that only the image model knows.", group=GROUP,
               shown_default="the same"),
    ]  # fmt: skip
    refine_at: Annotated[
        list[Annotated[Number, Gt(0), Le(1)]] | tuple[Annotated[Number, Gt(0), Le(1)], ...],
        AfterValidator(tuple),
        option(
            (0.9, 0.7, 0.5, 0.3),
            "Steps at which the video model refines the image model's estimate, each as the fraction of the steps that "
            "remain: 1 is the first step. Without any, the image model samples alone.",
            group=GROUP,
        ),
    ]
    video_steps: Annotated[
        Integer, option(8, "Number of steps of the video model in each refinement.", group=GROUP, ge=1, le=MAX_STEPS)
    ]
    low_pass: Annotated[
        Number,
        option(
            0.5,
            "Width of the low-pass filter over the frames before a refinement, in units of the Nyquist frequency; 0 is "
            "no filter.",
            group=GROUP,
            ge=0,
        ),
    ]
    low_pass_space: Annotated[
        Number,
        option(
            0.0,
            "The same over rows and columns; VideoElevator's paper has none, its code 1.",
            group=GROUP,
            ge=0,
        ),
    ]
    shared_noise: Annotated[
        Number, option(1.0, "Ratio of the noise that all frames share to a frame's own.", group=GROUP, ge=0)
    ]
    renoise: Annotated[
        Literal["inversion", "same-noise", "fresh-noise"],
        option(
            "inversion",
            "Return from the video model's result to the image model's noise level: by DDIM inversion, with the "
            "initial noise, or with fresh noise.",
            group=GROUP,
        ),
    ]
    inversion_steps: Annotated[
        Integer,
        option(
            12,
            "Largest number of steps of an inversion; 0 for all sigmas below the current one, as the authors.",
            group=GROUP,
            ge=0,
            le=MAX_STEPS,
        ),
    ]
    drift_correction: Annotated[
        Flag,
        option(
            False,
            "Correct later steps by the inversion's error, as VideoElevator's code does; it then takes all steps.",
            group=GROUP,
        ),
    ]
    video_guidance_scale: Annotated[
        Number | None,
        option(
            None,
            "Guidance scale of the video model.",
            group=GROUP,
            shown_default="the image model's, or the one that its own authors recommend",
        ),
    ]


def check(combination: Combination) -> None:
    """Raise InputError unless there are an image and a video model, and for options that exclude each other."""
    image, video, options = combination.model, combination.video_model, combination.options
    if image.temporal is not None:
        raise InputError(
            f"video-elevator samples with an image model, and {image.name} is a video model: pass it as `video_model`, "
            "and an image model as `model`"
        )
    if video is None:
        raise InputError(
            "video-elevator needs a second model, that knows motion: pass one as `video_model`, such as pocket-video "
            "or zeroscope's folder"
        )
    if video.temporal is None:
        raise InputError(
            f"{video.name} is an image model, and video-elevator needs a `video_model` with temporal layers: load it "
            "with a motion module, or use a video model"
        )
    if video.edits:
        raise InputError(f"{video.name} is an editing model, and the `video_model` has nothing to edit: use another")
    _check_options(options)
    if options["image"] is not None and not (
        image.takes_images or options["refine_at"] or options["first_frame"] == "pinned"
    ):
        raise InputError("`image` does nothing here: `refine_at` is empty, so the image model samples alone")


def _check_options(options: Mapping[str, Any]) -> None:
    if options["drift_correction"] and options["renoise"] != "inversion":
        raise InputError(f"`drift_correction` corrects an inversion, and `renoise` is {options['renoise']}")


def unread(combination: Combination) -> dict[str, str]:
    """Return the options without an effect: those of refinements that there are none of."""
    options = combination.options
    if not options["refine_at"]:
        kinds = (VideoElevatorOptions, VideoModelOptions, OverlapOptions)
        others = declared(*kinds).keys() - {"refine_at", "shared_noise"}
        return dict.fromkeys(others, "`refine_at` is empty, so the image model samples alone")
    if options["renoise"] != "inversion" or options["drift_correction"]:
        return {"inversion_steps": "it is read for `renoise` inversion without `drift_correction`"}
    return {}


def refinement_sigmas(sigmas: Sequence[float], parts: Iterable[float]) -> set[float]:
    """Return the sigmas at which these fractions of the steps remain, for `refine_at`."""
    steps = len(sigmas) - 1
    return {sigmas[steps - max(1, round(part * steps))] for part in parts}


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Latents,
    sigmas: Sequence[float],
    *,
    refine_at: Collection[float],
    refine: Refine,
    renoise: Renoise,
    correct: Correct | None = None,
    sampler: Sampler = ddim,
) -> Iterator[Step]:
    """Sample a video along the image model's sigmas.

    refine_at  sigmas whose estimate is refined; the sampler starts anew after each; with none it samples plainly
    refine     see `refine_with_video_model`
    renoise    takes the refined estimate to the next sigma, see `invert`, `noise_again`
    correct    returns what is added after a step that is not refined, see `correct_drift`
    Raises InputError for a sigma that is not listed, and for the last one, where the model is not evaluated.
    """
    refined = _listed(sigmas, refine_at)
    x, inversion = sigmas[0] * noise, list[Step]()
    for part in _split(sigmas, sigmas if correct else refined):
        step = Step(part[0], x, x)
        for after in sampler(denoise, x, part):
            if after.sigma == part[-1]:
                break
            yield (step := after)
        if step.sigma in refined:
            inversion = renoise(refine(step.x0, step.sigma), part[-1])
            x = inversion[-1].x
        else:
            x = after.x + (correct(inversion, step.sigma, part[-1]) if correct else 0)
    yield Step(sigmas[-1], x, x)


def _split(sigmas: Sequence[float], ends: Collection[float]) -> Iterator[Sequence[float]]:
    """Split a list of sigmas after each step from one of `ends`; the parts share their ends."""
    start = 0
    for number, sigma in enumerate(sigmas[:-1], 1):
        if sigma in ends or number + 1 == len(sigmas):
            yield sigmas[start : number + 1]
            start = number


def refine_with_video_model(
    denoise: Denoise,
    sigmas: Sequence[float],
    steps: int,
    noise_at: NoiseAt,
    *,
    low_pass: LowPass,
    sampler: Sampler = ddim,
) -> Refine:
    """Refine by a video model: filter the estimate, add noise up to its sigma, and sample a few steps.

    sigmas    the video model's; the image model's current sigma is inserted and sampling starts there, or at the first
              of the list if that is lower
    steps     evaluations of the video model; its last estimate is the result
    low_pass  `latents.low_pass` over frames in the paper
    """
    if steps < 1:
        raise InputError(f"The video model takes at least 1 step, got {steps}.")

    def refine(x0: Latents, sigma: float) -> Latents:
        start = min(sigma, sigmas[0])
        remaining = starting_at(insert_sigmas(sigmas, start), start)[: steps + 1]
        x = add_noise(low_pass(x0), noise_at(start).to(x0), start)
        return list(sampler(denoise, x, remaining))[-2].x0

    return refine


def invert(denoise: Denoise, sigmas: Sequence[float], max_steps: int | None = None, sampler: Sampler = ddim) -> Renoise:
    """Renoise by inversion: find the noisy latents from which the image model would sample these clean ones.

    denoise    the image model with the prompt, without guidance, which would make the inversion diverge
    sigmas     falling, down to the lowest sigma of the image model's schedule
    max_steps  maximum number of evaluations, at evenly picked sigmas; None for all sigmas
    """

    def renoise(clean: Latents, sigma: float) -> list[Step]:
        if sigma <= sigmas[-1]:
            return [Step(sigma, clean, clean)]
        rising = starting_at(insert_sigmas(sigmas, sigma), sigma)[::-1]
        return list(sampler(denoise, clean, _pick_evenly(rising, max_steps)))

    return renoise


def noise_again(noise_at: NoiseAt) -> Renoise:
    """Renoise by adding noise: the initial noise or fresh noise (the paper's ablation)."""

    def renoise(clean: Latents, sigma: float) -> list[Step]:
        return [Step(sigma, add_noise(clean, noise_at(sigma).to(clean), sigma), clean)]

    return renoise


def correct_drift(denoise: Denoise) -> Correct:
    """Correct a sampling step by the inversion's error there, as in the released code (not in the paper).

    The error is the inverted latents at the next sigma minus a DDIM step to it from the inverted latents at this sigma.
    The inversion must have passed all of the sampler's sigmas: `invert` with `max_steps=None`. It has no estimate at
    its highest sigma, so `denoise` is called there, once per refined step.
    """

    def correct(inversion: Sequence[Step], sigma: float, to: float) -> Latents | float:
        if not inversion or inversion[-1].sigma < sigma:
            return 0.0
        here, there = (_step_at(inversion, each) for each in (sigma, max(to, inversion[0].sigma)))
        x0 = denoise(here.x, sigma) if here is inversion[-1] else here.x0
        return there.x - step_to(here.x, x0, here.sigma, there.sigma)

    return correct


def _step_at(steps: Sequence[Step], sigma: float) -> Step:
    for step in steps:
        if abs(step.sigma - sigma) <= 1e-4 * sigma:
            return step
    raise InputError(f"The inversion did not pass sigma {sigma:g}: invert along all of the sampler's own sigmas.")


def _listed(sigmas: Sequence[float], refine_at: Iterable[float]) -> set[float]:
    """Return the listed sigmas that are close to these."""
    found = {until(sigmas, sigma)[-1] for sigma in refine_at}
    if sigmas[-1] in found:
        raise InputError(f"Nothing is estimated at the last sigma, {sigmas[-1]:g}: refine at a higher one.")
    return found


def _pick_evenly(sigmas: list[float], max_steps: int | None) -> list[float]:
    """Return sigmas for at most `max_steps` steps, evenly picked by position, with both ends."""
    steps = len(sigmas) - 1
    if max_steps is None or steps <= max_steps:
        return sigmas
    return [sigmas[round(k * steps / max_steps)] for k in range(max_steps + 1)]


def run(plan: Plan) -> SamplingRun:
    """Sample a clip; the run's steps are the image model's."""
    from kineograph.models.unet.frame_attention import first

    options, model = plan.read(VideoElevatorOptions), plan.model
    sigmas, bound = plan.sigmas(model.schedule), bind_model(plan, frame_attention=first)
    denoise_cond = bound.bind_cond()
    ratio = options["shared_noise"]
    own_noise = noise.partly_shared(ratio, plan.seeds, plan.frames, plan.latent_shape, plan.clip).to(model.device)
    initial = plan.continue_noise(own_noise)
    steps = sample(
        pin_known_frames(plan, bound.guided, initial),
        plan.start_noise(initial, sigmas[0]),
        sigmas,
        refine_at=refinement_sigmas(sigmas, options["refine_at"]),
        refine=bind_video_model(plan),
        renoise=_bind_renoise(plan, denoise_cond, initial),
        correct=correct_drift(denoise_cond) if options["drift_correction"] else None,
        sampler=plan.adapt_sampler(build_sampler(plan, plan.frames), sigmas),
    )
    return SamplingRun(len(sigmas), initial, steps)


def bind_video_model(plan: Plan) -> Refine:
    """Bind the video model as `Refine`: the two exchange latents, or decoded frames where their VAEs differ."""
    from kineograph.models.vae.autoencoder import same_latent_space

    model, (video,), options = plan.model, plan.second_model, plan.read(VideoElevatorOptions)
    shape = (len(plan.prompts), *video.latent_shape(plan.height, plan.width))
    name, spacing = video_sampling(video.temporal, plan.read(SharedOptions)["spacing"])
    noise_at = noise.per_sigma(plan.seeds, plan.frames, shape)
    sigmas = video.schedule.sampling_sigmas(
        plan.num_inference_steps, name, spacing, plan.read(SharedOptions)["steps_offset"]
    )
    refine = refine_with_video_model(
        _bind_video_prompts(video, plan, name, sigmas),
        sigmas,
        options["video_steps"],
        noise_at,
        low_pass=partial(
            latents.low_pass, spatial=options["low_pass_space"] or math.inf, temporal=options["low_pass"] or math.inf
        ),
        sampler=BY_NAME[name](noise_at, video.schedule.scale_timestep),
    )
    if same_latent_space(model.vae, video.vae):
        return refine
    log.warning(
        "%s and %s have different VAEs: they exchange decoded frames, which takes longer", model.name, video.name
    )

    def refine_frames(x0: Latents, sigma: float) -> Latents:
        refined = refine(_reencode(model, video, x0).to(video.device), sigma)
        return _reencode(video, model, refined).to(x0)

    return refine_frames


def _reencode(model: Model, other: Model, x0: Latents) -> Latents:
    """Return a model's clean latents as another's, by frames of which a few are held at a time."""
    return torch.cat([other.encode(frames) for frames in model.decode_chunks(x0)], dim=1)


def video_sampling(temporal: TemporalConfig | None, spacing: str | None) -> tuple[str, str | None]:
    """Return the sampler and the spacing of the video model: the asked spacing, unless it is distilled for LCM's."""
    return ("lcm", "lcm") if temporal is not None and temporal.sampler == "lcm" else ("ddim", spacing)


def _bind_video_prompts(video: Model, plan: Plan, sampler: str, sigmas: Sequence[float]) -> Denoise:
    """Bind the video model's prompts, image and guidance."""
    options = plan.read(VideoElevatorOptions)
    if options["video_prompt"]:
        cond = encode_texts(plan, video, [options["video_prompt"]] * len(plan.prompts))
    else:
        cond = encode_prompts(plan, video)
    uncond = encode_texts(plan, video, plan.negative_prompts)
    bind = partial(
        video.bind,
        window=plan.window,
        overlap=plan.overlap,
        motion_scale=1 - plan.motion_strength,
        deepcache=deepcache_settings(plan, sigmas),
    )
    guide = partial(guide_by_text, text_guidance_scale(plan, video))
    guided = guide_in_interval(plan, video.schedule, guide, bind, *add_image(video, plan, cond, uncond))
    return fit_to_sampler(guided, sampler, video.schedule)


def _bind_renoise(plan: Plan, denoise_cond: Denoise, initial: Latents) -> Renoise:
    options, schedule = plan.read(VideoElevatorOptions), plan.model.schedule
    lowest = schedule.sigmas[0]
    if options["renoise"] == "same-noise":
        return noise_again(lambda sigma: initial)
    if options["renoise"] == "fresh-noise":
        return noise_again(noise.per_sigma(plan.seeds, plan.frames, plan.latent_shape))
    to_lowest = [*(sigma for sigma in plan.sigmas(schedule) if sigma > lowest), lowest]
    if options["drift_correction"]:
        return invert(denoise_cond, to_lowest)
    return invert(denoise_cond, to_lowest, options["inversion_steps"] or None, dpmpp_2m)


METHOD = Method(run, (ImageModelOptions, VideoModelOptions, OverlapOptions, VideoElevatorOptions), check, unread)
