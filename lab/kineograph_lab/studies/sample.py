"""Generated videos of a case, with the settings that the studies of video models share, their latents and their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from kineograph import noise
from kineograph.denoise import classifier_free_guidance
from kineograph.generation.api import animate, generate
from kineograph.latents import Latents
from kineograph.media.video import Video
from kineograph.methods.videocrafter import sample
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.samplers import ddim, final_latents
from kineograph_lab.studies.protocol import Case

ImageArray = UInt8[np.ndarray, "1 H W 3"]  # of another size than the video
DecodedFrames = UInt8[np.ndarray, "f H W 3"]  # of latents of another height and width
GenerateVideo = Callable[[], Video]
FPS, FRAMES, SCALE, STEPS = 8.0, 16, 5.0, 25
ENGINE: Literal["torch"] = "torch"  # of all studies: "auto" depends on what was converted before


def generate_frames(
    model: Model, case: Case, *, steps: int = STEPS, num_frames: int = FRAMES, fps: float = FPS, scale: float = SCALE,
    motion_scale: float = 0.0,
) -> Frames:  # fmt: skip
    """Return the video of a case by `generate`, uint8 [f h w 3]."""
    return generate(
        model, case.prompt, num_frames=num_frames, fps=fps, num_inference_steps=steps, guidance_scale=scale,
        seed=case.seed, motion_strength=1 - motion_scale, engine=ENGINE, method="videocrafter",
    ).frames  # fmt: skip


def animate_frames(
    model: Model, case: Case, image: ImageArray, *, steps: int, scale: float,
    first_frame: Literal["shown", "pinned"] = "shown",
) -> Frames:  # fmt: skip
    """Return the video of a case and an image, uint8 [1 h w 3], by `animate`: uint8 [f h w 3]."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.fromarray(image[0]).save(path)
        return animate(
            model, path, case.prompt, first_frame=first_frame, num_frames=FRAMES, fps=FPS, num_inference_steps=steps,
            guidance_scale=scale, seed=case.seed, engine=ENGINE,
        ).frames  # fmt: skip


@torch.no_grad()
def sample_latents(model: Model, case: Case, *, steps: int = STEPS) -> Latents:
    """Return the latents [1 f c h w] of the video that `generate_frames` returns, to decode them in several ways."""
    assert model.temporal is not None, "an image model has no videos of its own"
    denoise_cond, denoise_uncond = (model.bind(model.prompt([text], fps=FPS)) for text in (case.prompt, ""))
    sigmas = model.schedule.sampling_sigmas(steps)
    shape = (1, *model.latent_shape(*model.default_size))
    initial_noise = noise.partly_shared(model.temporal.noise_ratio, case.seed, range(FRAMES), shape).to(model.device)
    denoise = classifier_free_guidance(denoise_cond, denoise_uncond, SCALE)
    start = model.schedule.initial_scale(sigmas[0]) * initial_noise
    return final_latents(sample(denoise, start, sigmas, sampler=ddim))


@torch.no_grad()
def decode_frames(model: Model, x0: Latents) -> DecodedFrames:
    """Decode the latents [1 f c h w] of a video."""
    return Video.from_tensor(model.decode(x0)[0]).frames


def count_evaluations(models: Sequence[Model], generate_video: GenerateVideo) -> tuple[float, Frames]:
    """Return the evaluations per frame by all models, where classifier-free guidance counts twice, and the frames."""
    evaluated = Counter[str]()
    hooks = [
        model.net.image_unet.conv_in.register_forward_pre_hook(
            lambda _, arguments: evaluated.update(frames=len(arguments[0]))
        )
        for model in models
    ]
    frames = generate_video().frames
    for hook in hooks:
        hook.remove()
    return evaluated["frames"] / len(frames), frames
