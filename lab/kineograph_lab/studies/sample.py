"""Sampling of a video model for the studies, with the algorithm of `kineograph generate` and `kineograph animate`.

It repeats what the front doors do because records carry its numbers (docs/decisions/0010); tests hold both equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8

from kineograph import noise
from kineograph.denoise import Denoise, classifier_free_guidance, replace_known_frames
from kineograph.latents import Latents
from kineograph.methods.videocrafter import sample
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.samplers import ddim, final_latents
from kineograph.sigmas import leading

ImageArray = UInt8[np.ndarray, "1 H W 3"]
DecodedFrames = UInt8[np.ndarray, "f H W 3"]  # of latents of another height and width
FPS, FRAMES, SCALE, STEPS = 8.0, 16, 5.0, 25
ConditionFrames = Callable[[Denoise, Model, Latents], Denoise]
"""(denoise, model, initial noise) -> denoise with known frames."""


def no_known_frames(denoise: Denoise, model: Model, initial_noise: Latents) -> Denoise:
    """Return the denoise function unchanged."""
    return denoise


def pin_first_frame(image: ImageArray) -> ConditionFrames:
    """Return a function that fixes the first frame to an image, uint8 [1 h w 3] of the model's size."""

    def condition(denoise: Denoise, model: Model, initial_noise: Latents) -> Denoise:
        known = model.encode(_to_tensor(image)[None])
        return replace_known_frames(denoise, known.to(initial_noise.device), initial_noise[:, :1])

    return condition


def sample_frames(
    model: Model, prompt: str, seed: int, *, steps: int = STEPS, fps: float = FPS, scale: float = SCALE,
    image: ImageArray | None = None, condition: ConditionFrames = no_known_frames,
) -> Frames:  # fmt: skip
    """Return the video of a prompt, uint8 [f h w 3].

    image: conditioning image, uint8 [1 h w 3], for a model with an image encoder.
    """
    x0 = sample_latents(model, prompt, seed, steps=steps, fps=fps, scale=scale, image=image, condition=condition)
    return decode_frames(model, x0)


def decode_frames(model: Model, x0: Latents) -> DecodedFrames:
    """Decode the latents [1 f c h w] of a video."""
    return (model.decode(x0)[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def sample_latents(
    model: Model, prompt: str, seed: int, *, steps: int = STEPS, fps: float = FPS, scale: float = SCALE,
    image: ImageArray | None = None, condition: ConditionFrames = no_known_frames,
) -> Latents:  # fmt: skip
    """Return the latents [1 f c h w] of the same video."""
    cond, uncond = (model.prompt([text], fps=fps) for text in (prompt, ""))
    if model.image_encoder is not None:
        cond = replace(cond, image_tokens=model.image_tokens(None if image is None else _to_tensor(image)))
        uncond = replace(uncond, image_tokens=model.image_tokens(None))
    assert model.temporal is not None, "an image model has no videos of its own"
    sigmas = leading(model.schedule.sigmas, steps)
    shape = (1, *model.latent_shape(*model.default_size))
    initial_noise = noise.partly_shared(model.temporal.noise_ratio, seed, range(FRAMES), shape).to(model.device)
    denoise = condition(classifier_free_guidance(model.bind(cond), model.bind(uncond), scale), model, initial_noise)
    return final_latents(sample(denoise, initial_noise, sigmas, sampler=ddim))


def _to_tensor(image: ImageArray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(0, 3, 1, 2)
