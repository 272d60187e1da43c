"""Text2Video-Zero: a text-to-image model generates a video (Khachatryan et al. 2023, section 3.3).

Frame 0 is sampled alone down to T', where its layout is fixed. Every other frame is then frame 0, warped by the camera
motion and noised up to T with its own noise; from T all frames are sampled together. Attention to frame 0, bound to the
model (`frame_attention=first`), keeps them consistent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from kineograph import noise
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents, Mask, add_noise, renoise
from kineograph.media.annotators import load_saliency_annotator
from kineograph.models.foreground import bind_foreground_mask
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.motion import Warp, frame_warp, parse
from kineograph.plan import Plan, SamplingRun, bind_prompts, build_sampler, guide, spaced_sigmas
from kineograph.request import Request
from kineograph.samplers import ForegroundMasks, Sampler, Step, ddim, smooth_background
from kineograph.sigmas import insert_sigmas, starting_at, until

# The paper's T and T', timesteps 941 and 881 of Stable Diffusion, as sigmas; and the side of its latents.
RENOISE_TO, WARP_AT = 10.42504, 7.562388
SIDE = 64
MASK_THRESHOLD = 0.5  # a latent cell is foreground if more than this fraction of its pixels is


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
    x0, first_noise = warp(before.x0, (at_t_prime.x - before.x0) / at_t_prime.sigma)
    others = renoise(add_noise(x0, first_noise, at_t_prime.sigma), noise[:, 1:], at_t_prime.sigma, at_t.sigma)
    yield from sampler(denoise, torch.cat([at_t.x, others], dim=1), starting_at(sigmas, renoise_to))


def _check_sigmas(sigmas: Sequence[float], warp_at: float, renoise_to: float) -> None:
    if not sigmas[-1] < warp_at < sigmas[0] or renoise_to < warp_at:
        raise InputError(
            f"Text2Video-Zero warps frame 0 at a sigma below the first of its sigmas ({sigmas[0]:g} to {sigmas[-1]:g}) "
            f"and adds noise up to that sigma or a higher one; got warp_at={warp_at:g} and renoise_to={renoise_to:g}. "
            "paper_sigmas(latent_shape, highest=sigmas[0]) returns a valid pair."
        )


def run(model: Model, request: Request, plan: Plan) -> SamplingRun:
    """Sample a clip with a camera motion; or, with control videos and no motion, from one noise for all frames."""
    sigmas = spaced_sigmas(request, plan, model.schedule)
    denoise = guide(request, plan, model.schedule, *bind_prompts(model, request, plan, first))
    if plan.inputs.motion is None:
        initial = noise.shared(plan.seed, plan.frames, plan.latent_shape).to(model.device)
        steps = build_sampler(plan, [0] * len(plan.frames))(denoise, sigmas[0] * initial, sigmas)
        return SamplingRun(len(sigmas), initial, steps)
    renoise_to, warp_at = paper_sigmas(plan.latent_shape, highest=sigmas[0])
    sigmas = insert_sigmas(sigmas, renoise_to, warp_at)
    warp = frame_warp(parse(plan.inputs.motion), frames=len(plan.frames), seed=plan.seed)
    initial = plan.continue_noise(noise.independent(plan.seed, plan.frames, plan.latent_shape).to(model.device))
    sampler = plan.continue_sampler(build_sampler(plan, plan.frames), sigmas)
    if request.smooth_background:
        masks = _foreground_masks(model, request)
        sampler = smooth_background(sampler, warp, masks, request.smooth_background)
    steps = sample(
        plan.skip_overwritten(denoise, sigmas),
        initial,
        sigmas,
        warp=warp,
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=sampler,
    )
    alone, together = until(sigmas, warp_at)[:-1], starting_at(sigmas, renoise_to)
    return SamplingRun(len(alone) + len(together) if len(plan.frames) > 1 else len(sigmas), initial, steps)


def _foreground_masks(model: Model, request: Request) -> ForegroundMasks:
    """Return the function that finds the foreground, in the model's attention maps or by a saliency network."""
    if request.masks != "rembg":
        return bind_foreground_mask(model, [request.prompt], chunk_size=request.chunk_size)
    find = load_saliency_annotator()

    def masks(x0: Latents, sigma: float) -> Mask:
        frames = (255 * model.decode(x0)[0]).byte().permute(0, 2, 3, 1).numpy()
        pixels = torch.from_numpy(np.stack([find(frame) for frame in frames])).float() / 255
        cells = F.interpolate(pixels[None], x0.shape[-2:], mode="area")
        return (cells > MASK_THRESHOLD).float()[:, :, None].to(x0)

    return masks
