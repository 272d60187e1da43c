"""VidRD, Reuse and Diffuse: more frames than a model holds, clip after clip (Gu et al. 2023, section 3).

A clip leaves its noise and its whole way down to the next one, both turned round in time, so that where the last clip
ended the next begins. What draws a clip is any sampler of this package: it takes noise, and a solver. The paper's own
network is an image network with layers along time, whose resnets stay; and its VAE's decoder has such layers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from kineograph.condition import Condition
from kineograph.denoise import Denoise
from kineograph.latents import Latents
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.config import TemporalConfig, TemporalLayers, TransformerConfig
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae import temporal_decoder as decoders
from kineograph.models.vae.temporal_decoder import TemporalDecoder
from kineograph.noise import past_dependent
from kineograph.samplers import Sampler, Step

# The paper's figure: 22 places with convolutions and 16 with attention in a network of SD 2.1's shape.
NETWORK = TemporalConfig(
    num_frames=8, convolution=True, in_block=TransformerConfig(head_width=64), joint_norms=True, groups=32
)
LEARN = (".attn1.", ".attn2.")  # of the image network


def attach(image_unet: UNet2DConditionModel, config: TemporalConfig = NETWORK) -> VideoUNet:
    """The video network that this image network becomes, and of it what learns: self- and cross-attention, and all
    layers along time. The rest, resnets above all, is frozen.

    The new layers begin as the identity; with norms over all frames the whole begins as the image network for frames
    that are alike.
    """
    image_unet.requires_grad_(requires_grad=False)
    for name, weight in image_unet.named_parameters():
        weight.requires_grad_(any(part in name for part in LEARN))
    return VideoUNet(image_unet, TemporalLayers(image_unet, config))


def loss(
    net: VideoUNet, schedule: Schedule, told: Condition, x0: Latents, noise: Latents, timesteps: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The squared error of each video: of the noise, or whatever else the image network predicts."""
    return schedule.error(lambda z, t: net(z, t, told), x0, noise, timesteps)


def decoder_loss(
    decoder: TemporalDecoder, vae: AutoencoderKL, z: Latents, frames: Float[Tensor, "b f 3 H W"], steady: float = 1.0
) -> Float[Tensor, " b"]:
    """How wrongly unscaled latents of a frozen VAE become the frames (from -1 to 1) that they were made from.

    steady: what flicker weighs, the error of the changes from frame to frame, beside the error of the pixels.
    The paper's own loss could not be found; its code hints at an adversarial term, which there is none of here.
    """
    still, moving = decoders.reconstruction_errors(decoder, vae, z, frames)
    return still + steady * moving


class Past(NamedTuple):
    """What a clip leaves to the next: the noise that it began with, and the latents at every level on its way."""

    noise: Latents
    levels: Mapping[float, Latents]


Draw = Callable[[Latents, Sampler], Iterator[Step]]  # (noise, solver) -> the walk of one clip
Guided = Mapping[float, int]  # level -> how many frames, from the first, follow the past there


@torch.no_grad()
def sample(
    draw: Draw, fresh: Latents, past: Past | None, *, keep: int, ratio: float, guided: Guided, sampler: Sampler
) -> Iterator[Step]:
    """Draw the next clip; the first, where there is no past.

    fresh   noise of its own for this clip, [b n c h w]
    keep    M, the frames that tie it to the last clip; less than n
    ratio   beta, how many parts of the past's noise come to one of fresh noise in the other frames
    guided  see `stages`
    `left_by` makes the past of the next clip from these steps and `begun`.
    """
    yield from draw(
        initial_noise(fresh, past, keep, ratio), sampler if past is None else overwrite_guided(sampler, past, guided)
    )


def initial_noise(fresh: Latents, past: Past | None, keep: int, ratio: float) -> Latents:
    """What the clip begins with: the past's noise turned round in time (frame-level noise reversion), mixed with fresh
    noise from frame `keep` on (past-dependent noise sampling)."""
    if not 0 <= keep < fresh.shape[1]:
        raise ValueError(f"A clip of {fresh.shape[1]} frames keeps fewer of them from the last clip, got {keep}.")
    if past is None:
        return fresh
    turned = past.noise.flip(1)
    return torch.cat([turned[:, :keep], past_dependent(turned, fresh, ratio)[:, keep:]], dim=1)


def guided_frames(sigmas: Sequence[float], keep: int, share: float) -> dict[float, int]:
    """Denoising with staged guidance: frame j of `keep` follows the past for the first (keep - j) S / keep * share of S
    steps; the paper's share is gamma, 0.4. With 1 the first frame follows it to the end.

    >>> list(stages([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], keep=2, share=0.8).values())
    [2, 2, 1, 1]
    """
    steps = len(sigmas) - 1
    many = [sum(s < ceil((keep - j) * steps / keep * share - 1e-9) for j in range(keep)) for s in range(steps)]
    if share >= 1:
        many.append(1)
    return {sigma: count for sigma, count in zip(sigmas, many, strict=False) if count}


def overwrite_guided(sampler: Sampler, past: Past, guided: Guided) -> Sampler:
    """The solver, which before each step puts the past's latents, turned round, in place of the guided frames.

    A multistep solver takes single steps here.
    """

    @torch.no_grad()
    def walk(look: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        for sigma, to in pairwise(sigmas):
            step, after = sampler(look, _overwritten(x, past, guided, sigma), [sigma, to])
            yield step
            x = after.x
        x = _overwritten(x, past, guided, sigmas[-1])
        yield Step(sigmas[-1], x, x)

    return walk


def _overwritten(x: Latents, past: Past, guided: Guided, sigma: float) -> Latents:
    then, count = past.levels.get(sigma), min(guided.get(sigma, 0), x.shape[1])
    if then is None or count == 0:
        return x
    return torch.cat([then.flip(1)[:, :count].to(x), x[:, count:]], dim=1)


def skip_overwritten(denoise: Denoise, past: Past, guided: Guided, sigmas: Sequence[float]) -> Denoise:
    """The same model, whose frames read the first frame alone, without frames that are overwritten anyway.

    Of those that follow the past at the next level too, only the first is evaluated, since the others read it. In place
    of their estimates stands what the past came to.
    """
    ended = past.levels[min(past.levels)].flip(1)
    known = {sigma: guided.get(sigma, 0) for sigma in sigmas if sigma in past.levels}
    followed = {sigma: known.get(to, 0) for sigma, to in pairwise(sigmas) if sigma in known}

    def look(x: Latents, sigma: float) -> Latents:
        count = min(followed.get(sigma, 0), x.shape[1])
        if count < 2:
            return denoise(x, sigma)
        seen = denoise(torch.cat([x[:, :1], x[:, count:]], dim=1), sigma)
        return torch.cat([seen[:, :1], ended[:, 1:count].to(seen), seen[:, 1:]], dim=1)

    return look


def anchor_to_first(denoise: Denoise, first: Mapping[float, Latents], strength: float) -> Denoise:
    """The same model, whose estimate's mean over the frames is drawn to the first clip's, `first`, at the levels there.

    Not in the paper, where a clip is tied to its predecessor alone and drifts over many clips.
    """

    def look(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        if (wanted := first.get(sigma)) is None:
            return x0
        return x0 + strength * (wanted.to(x0) - x0.mean(1, keepdim=True))

    return look


def record_past(noise: Latents, steps: Sequence[Step]) -> Past:
    """What a clip that began with this noise and took these steps leaves. Steps of some frames only are left out."""
    return Past(noise, {step.sigma: step.x for step in steps if step.x.shape[1] == noise.shape[1]})
