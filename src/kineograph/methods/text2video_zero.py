"""Text2Video-Zero: a text-to-image model generates a video (Khachatryan et al. 2023, section 3.3).

Frame 0 is sampled alone down to T', where its layout is fixed. Every other frame is then frame 0, warped by the camera
motion and noised up to T with its own noise; from T all frames are sampled together. Attention to frame 0, bound to the
model (`frame_attention=first`), keeps them consistent. Frames that follow a control video or a video to edit start from
one noise instead (section 3.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import TypedDict

from kineograph import noise
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, Mask, add_noise, renoise
from kineograph.motion import FrameWarp, Motion, Warp, frame_warp, parse
from kineograph.options import Flag, Number, Text, option
from kineograph.plan import (
    AddOn,
    Combination,
    Method,
    Plan,
    SamplingRun,
    bind_model,
    build_sampler,
    encode_prompts,
    pin_known_frames,
)
from kineograph.request import ImageModelOptions
from kineograph.samplers import ForegroundMasks, Sampler, Step, ddim, smooth_background
from kineograph.sigmas import insert_sigmas, starting_at, until

DEFAULT_CAMERA = "pan:12,12"
# The paper's T and T', timesteps 941 and 881 of Stable Diffusion, as sigmas; and the side of its latents.
RENOISE_TO, WARP_AT = 10.42504, 7.562388
SIDE = 64
MASK_THRESHOLD = 0.5  # a latent cell is foreground if more than this fraction of its pixels is


class CameraOptions(TypedDict, total=False):
    """The camera motion of Text2Video-Zero, which background smoothing reads too."""

    camera: Annotated[
        Text | None,
        option(
            None,
            "Movement of the camera from frame to frame: pan:X,Y in pixels of a frame 512 wide, zoom:FACTOR or "
            "rotate:DEGREES, as in pan:12,0+zoom:1.05; path:X,Y;X,Y;... for the position at each frame; or none.",
            shown_default=f"{DEFAULT_CAMERA} for an image model, none with an input video",
        ),
    ]


class SmoothingOptions(TypedDict, total=False):
    """Options of background smoothing (section 3.3.3), with which any method can sample."""

    smooth_background: Annotated[
        Number,
        option(
            0.0,
            "Strength that keeps the background the same while the camera moves (background smoothing of "
            "Text2Video-Zero, whose authors take 0.6); 0 is off.",
            ge=0,
            le=1,
        ),
    ]
    foreground_masks: Annotated[
        Literal["attention", "rembg"],
        option(
            "attention",
            "Source of the masks of the foreground, which `smooth_background` leaves as it is: the model's attention "
            "maps, or the package rembg.",
        ),
    ]


class Text2VideoZeroOptions(TypedDict, total=False):
    """Options of Text2Video-Zero alone."""

    noise: Annotated[
        Literal["shared", "independent"],
        option(
            "shared",
            "Initial noise of an image model's frames that follow a control video or a video to edit: the same for "
            "all, which keeps them alike, or independent.",
            group="Edits",
        ),
    ]
    insert_warp_sigmas: Annotated[
        Flag,
        option(
            False,
            "Add the steps that earlier versions took for a video of one frame, so that such videos are replayed.",
        ),
    ]


def paper_sigmas(latent_shape: Sequence[int], highest: float = math.inf) -> tuple[float, float]:
    """Return the noise levels T and T' as sigmas, for latents of this shape (..., h, w).

    At 64x64 the paper's; at other sizes times sqrt(h w) / 64, where the same layout is fixed, since noise averages out
    over the cells of an image region. Both are scaled down in proportion if T would exceed `highest`, the first sigma.
    """
    scale = min(math.sqrt(latent_shape[-2] * latent_shape[-1]) / SIDE, highest / RENOISE_TO)
    return RENOISE_TO * scale, WARP_AT * scale


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Latents,
    sigmas: Sequence[float],
    *,
    warp: Warp,
    warp_at: float,
    renoise_to: float,
    sampler: Sampler = ddim,
) -> Iterator[Step]:
    """Sample a video: first the steps of frame 0 alone, down to T' (`warp_at`), then from T those of all frames.

    noise       frame 0's is its initial noise; each other frame's takes it from T' to T
    sigmas      falling; T' and T (`renoise_to`) are inserted where they are missing
    warp        warps frame 0 to the other frames, see `motion.frame_warp`
    One frame is sampled as a plain image. Raises InputError unless T' <= T, both in range, T' below the first sigma.
    """
    if noise.shape[1] == 1:
        yield from sampler(denoise, sigmas[0] * noise, sigmas)
        return
    _check_sigmas(sigmas, warp_at, renoise_to)
    sigmas = insert_sigmas(sigmas, warp_at, renoise_to)
    alone, steps = until(sigmas, warp_at), list[Step]()
    for step in sampler(denoise, sigmas[0] * noise[:, :1], alone):
        steps.append(step)
        if len(steps) < len(alone):  # at T' frame 0 is warped, not evaluated
            yield step
    at_t, before, at_t_prime = steps[len(until(sigmas, renoise_to)) - 1], steps[-2], steps[-1]

    def at_renoised() -> Latents:
        x0, first_noise = warp(before.x0, (at_t_prime.x - before.x0) / at_t_prime.sigma)
        others = renoise(add_noise(x0, first_noise, at_t_prime.sigma), noise[:, 1:], at_t_prime.sigma, at_t.sigma)
        return torch.cat([at_t.x, others], dim=1)

    yield from sampler(denoise, at_renoised(), starting_at(sigmas, renoise_to))  # holds no other latents of all frames


def _check_sigmas(sigmas: Sequence[float], warp_at: float, renoise_to: float) -> None:
    if not sigmas[-1] < warp_at < sigmas[0] or renoise_to < warp_at:
        raise InputError(
            f"Text2Video-Zero warps frame 0 at a sigma below the first of its sigmas ({sigmas[0]:g} to {sigmas[-1]:g}) "
            f"and adds noise up to that sigma or a higher one; got warp_at={warp_at:g} and renoise_to={renoise_to:g}. "
            "paper_sigmas(latent_shape, highest=sigmas[0]) returns a valid pair."
        )


def follows_footage(plan: Plan) -> bool:
    """Return True if the frames follow an input video, without a camera motion of their own."""
    return bool(plan.start_footage) or (bool(plan.footage) and parse(plan.camera) == Motion())


def run(plan: Plan) -> SamplingRun:
    """Sample a clip with a camera motion, or one that follows an input video."""
    from kineograph.models.unet.frame_attention import first

    model, device = plan.model, plan.model.device
    sigmas = plan.sigmas(model.schedule)
    denoise = bind_model(plan, frame_attention=first).guided
    if follows_footage(plan):
        initial, noise_frames = _noise_of_followers(plan)
        initial = plan.continue_noise(initial.to(device))
        denoise = plan.skip_overwritten(pin_known_frames(plan, denoise, initial), sigmas)
        sampler = plan.adapt_sampler(build_sampler(plan, noise_frames), sigmas)
        x = sigmas[0] * plan.start_noise(initial, sigmas[0])
        return SamplingRun(len(sigmas), initial, sampler(denoise, x, sigmas))
    data = model.schedule.sigma_data  # the paper's are those of data with standard deviation 1
    renoise_to, warp_at = (data * each for each in paper_sigmas(plan.latent_shape, highest=sigmas[0] / data))
    if len(plan.frames) > 1 or plan.read(Text2VideoZeroOptions)["insert_warp_sigmas"]:
        sigmas = insert_sigmas(sigmas, renoise_to, warp_at)
    initial = plan.continue_noise(noise.independent(plan.seeds, plan.frames, plan.latent_shape).to(device))
    denoise = pin_known_frames(plan, denoise, initial)
    start = torch.cat([plan.start_noise(initial[:, :1], sigmas[0]), initial[:, 1:]], dim=1)
    steps = sample(
        plan.skip_overwritten(denoise, sigmas),
        start,
        sigmas,
        warp=_camera_warp(plan),
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=plan.adapt_sampler(build_sampler(plan, plan.frames), sigmas),
    )
    if len(plan.frames) == 1:
        return SamplingRun(len(sigmas), initial, steps)
    alone, together = until(sigmas, warp_at)[:-1], starting_at(sigmas, renoise_to)
    return SamplingRun(len(alone) + len(together), initial, steps)


def _noise_of_followers(plan: Plan) -> tuple[Latents, Sequence[int]]:
    """Return the initial noise, and the frame number whose sampler noise each frame gets."""
    if plan.read(Text2VideoZeroOptions)["noise"] == "independent":
        return noise.independent(plan.seeds, plan.frames, plan.latent_shape), plan.frames
    frames = [plan.frames.start] * len(plan.frames)
    return noise.shared(plan.seeds, plan.frames, plan.latent_shape, plan.clip), frames


def _camera_warp(plan: Plan) -> FrameWarp:
    return frame_warp(parse(plan.camera), frames=len(plan.frames), seed=plan.seeds)


def check(combination: Combination) -> None:
    """Raise InputError for a video model, which has its own motion, and for options without an effect."""
    if combination.model.temporal is not None:
        raise InputError(
            f"{combination.model.name} is a video model, and text2video-zero is for image models: leave `method` out, "
            "or use the image model"
        )


def unread(combination: Combination) -> dict[str, str]:
    """Return the options without an effect: the noise of frames that follow no video, the steps of several frames."""
    options, unread = combination.options, dict[str, str]()
    if options["num_frames"] != 1:
        unread["insert_warp_sigmas"] = "several frames always take steps to T and T'"
    if not (options["control"] or options["video"]):
        unread["noise"] = "it is read with an input video"
    elif parse(options["camera"] or "none") != Motion():
        unread["noise"] = "with a camera motion (`camera`) each frame has its own noise"
    elif options["noise"] == "shared":
        unread["clip_noise_order"] = "all frames have one noise (`noise` shared)"
    return unread


METHOD = Method(run, (ImageModelOptions, CameraOptions, Text2VideoZeroOptions), check, unread)


# --- background smoothing, around any method's sampler


def bind_smoothing(plan: Plan) -> Plan:
    """Return the plan with background smoothing around its sampler, if it asks for it."""
    strength = plan.read(SmoothingOptions)["smooth_background"]

    def adapt_sampler(sampler: Sampler, sigmas: Sequence[float]) -> Sampler:
        adapted = plan.adapt_sampler(sampler, sigmas)
        return smooth_background(adapted, _camera_warp(plan), _foreground_masks(plan), strength)

    return replace(plan, adapt_sampler=adapt_sampler) if strength else plan


def _foreground_masks(plan: Plan) -> ForegroundMasks:
    """Return the function that finds the foreground, in the model's attention maps or by a saliency network."""
    from kineograph.models.annotators import load_saliency_annotator
    from kineograph.models.foreground import bind_foreground_mask

    if plan.read(SmoothingOptions)["foreground_masks"] == "attention":
        condition = plan.add_conditions(encode_prompts(plan, plan.model))
        return bind_foreground_mask(plan.model, condition, chunk_size=plan.chunk_size)
    find = load_saliency_annotator()

    def masks(x0: Latents, sigma: float) -> Mask:
        cells = []
        for chunk in plan.model.decode_chunks(x0):
            videos = (255 * chunk).byte().permute(0, 1, 3, 4, 2).numpy()
            pixels = torch.from_numpy(np.stack([[find(frame) for frame in video] for video in videos])).float() / 255
            cells.append(F.interpolate(pixels, x0.shape[-2:], mode="area"))
        return (torch.cat(cells, dim=1) > MASK_THRESHOLD).float()[:, :, None].to(x0)

    return masks


def check_smoothing(combination: Combination) -> None:
    """Raise InputError for masks of a package that is not installed."""
    from kineograph.models.annotators import check_saliency_annotator

    if combination.options["foreground_masks"] == "rembg":
        check_saliency_annotator()


SMOOTHING = AddOn(
    (SmoothingOptions, CameraOptions),
    check=check_smoothing,
    used=lambda options: options["smooth_background"] > 0,
    when="with `smooth_background` above 0",
)
