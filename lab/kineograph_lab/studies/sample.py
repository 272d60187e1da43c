"""A video model draws a case, as `kineograph generate` and `kineograph animate` do (docs/decisions/0010)."""

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

Picture = UInt8[np.ndarray, "1 H W 3"]
Developed = UInt8[np.ndarray, "f H W 3"]  # of latents of another height and width
FPS, FRAMES, SCALE, STEPS = 8.0, 16, 5.0, 25
Begun = Callable[[Denoise, Model, Latents], Denoise]  # what becomes of a model that starts from this noise


def as_it_is(look: Denoise, model: Model, begin: Latents) -> Denoise:
    return look


def pinned_to(picture: Picture) -> Begun:
    """The first frame is this picture, uint8 [1 h w 3] of the model's size."""

    def begun(look: Denoise, model: Model, begin: Latents) -> Denoise:
        known = model.encode(_as_pictures(picture)[None])
        return replace_known_frames(look, known.to(begin.device), begin[:, :1])

    return begun


def film(
    model: Model, prompt: str, seed: int, *, steps: int = STEPS, fps: float = FPS, scale: float = SCALE,
    picture: Picture | None = None, begun: Begun = as_it_is,
) -> Frames:  # fmt: skip
    """The video of a prompt, uint8 [f h w 3]; `picture`, uint8 [1 h w 3], is shown if the model sees any."""
    drawn = latents(model, prompt, seed, steps=steps, fps=fps, scale=scale, picture=picture, begun=begun)
    return developed(model, drawn)


def developed(model: Model, x0: Latents) -> Developed:
    """The frames that the model's decoder makes of the latents of a video."""
    return (model.decode(x0)[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def latents(
    model: Model, prompt: str, seed: int, *, steps: int = STEPS, fps: float = FPS, scale: float = SCALE,
    picture: Picture | None = None, begun: Begun = as_it_is,
) -> Latents:  # fmt: skip
    """The same before it is decoded."""
    said, unsaid = (model.prompt([text], fps=fps) for text in (prompt, ""))
    if model.image_encoder is not None:
        seen = None if picture is None else _as_pictures(picture)
        said = replace(said, image_tokens=model.image_tokens(seen))
        unsaid = replace(unsaid, image_tokens=model.image_tokens(None))
    assert model.temporal is not None, "an image model has no videos of its own"
    sigmas = leading(model.schedule.sigmas, steps)
    shape = (1, *model.latent_shape(*model.default_size))
    begin = noise.partly_shared(model.temporal.noise_ratio, seed, range(FRAMES), shape).to(model.device)
    look = begun(classifier_free_guidance(model.bind(said), model.bind(unsaid), scale), model, begin)
    return final_latents(sample(look, begin, sigmas, sampler=ddim))


def _as_pictures(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(0, 3, 1, 2)
