"""Text2Video-Zero: a text-to-image model draws a video (Khachatryan et al. 2023, section 3.3).

Frame 0 is drawn alone as far as T', where its layout stands. There the camera moves: every other frame is frame 0 as
that camera sees it, taken back up to T with noise of its own, and from T all frames are drawn together. What holds
them together on the way is attention to frame 0, which the caller binds (`see=first`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from kineograph.denoise import Denoise
from kineograph.latents import Latents, add_noise, renoise
from kineograph.motion import Warp
from kineograph.samplers import Sampler, Step, ddim
from kineograph.sigmas import insert_sigmas, starting_at, until

# The paper's T and T', timesteps 941 and 881 of Stable Diffusion, as noise levels; and the latents they are meant for.
RENOISE_TO, WARP_AT = 10.42504, 7.562388
SIDE = 64


def paper_sigmas(latent_shape: Sequence[int], highest: float = math.inf) -> tuple[float, float]:
    """The levels (T, T') for latents of this shape (..., h, w), for `spread_to` and `move_at`.

    The paper's at 64x64. Elsewhere times sqrt(h w) / 64: averaged over a part of the picture, noise weighs as much
    less as there are more cells in it, so this is where the same layout stands. Both stay in proportion where T
    would pass the `highest` level, the top of the ladder.
    """
    scale = min(math.sqrt(latent_shape[-2] * latent_shape[-1]) / SIDE, highest / RENOISE_TO)
    return RENOISE_TO * scale, WARP_AT * scale


@torch.no_grad()
def sample(
    look: Denoise,
    noise: Latents,
    sigmas: Sequence[float],
    *,
    warp: Warp,
    warp_at: float,
    renoise_to: float,
    sampler: Sampler = ddim,
) -> Iterator[Step]:
    """Draw a video: first the steps of frame 0 alone, down to T' (`move_at`), then from T those of all frames.

    noise      frame 0 starts from its noise, every other frame is spread with its own
    sigmas     a falling ladder; T' and T are put on it where they are missing
    warp       what the other frames see of frame 0, see `motion.along`
    One frame is drawn as a plain image. Raises ValueError unless T' <= T, both on the ladder, T' below its top.
    """
    if noise.shape[1] == 1:
        yield from sampler(look, sigmas[0] * noise, sigmas)
        return
    _check(sigmas, warp_at, renoise_to)
    sigmas = insert_sigmas(sigmas, warp_at, renoise_to)
    way, alone = until(sigmas, warp_at), list[Step]()
    for step in sampler(look, sigmas[0] * noise[:, :1], way):
        alone.append(step)
        if len(alone) < len(way):  # at T' frame 0 is moved, not looked at
            yield step
    first, before, moved = alone[len(until(sigmas, renoise_to)) - 1], alone[-2], alone[-1]
    x0, grain = warp(before.x0, (moved.x - before.x0) / moved.sigma)
    others = renoise(add_noise(x0, grain, moved.sigma), noise[:, 1:], moved.sigma, first.sigma)
    yield from sampler(look, torch.cat([first.x, others], dim=1), starting_at(sigmas, renoise_to))


def _check(sigmas: Sequence[float], warp_at: float, renoise_to: float) -> None:
    if not sigmas[-1] < warp_at < sigmas[0] or renoise_to < warp_at:
        raise ValueError(
            f"Text2Video-Zero moves at a level below the top of its ladder ({sigmas[0]:g} to {sigmas[-1]:g}), and "
            f"spreads to that level or a higher one; got move_at={move_at:g} and spread_to={spread_to:g}. "
            "levels(latent_shape, highest=sigmas[0]) gives a pair that fits."
        )
