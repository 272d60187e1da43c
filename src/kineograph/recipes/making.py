"""A prompt becomes a video."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import NamedTuple, overload

from kineograph import trajectory
from kineograph.data.request import Request
from kineograph.data.video import Video
from kineograph.errors import InputWarning
from kineograph.models.model import Model
from kineograph.models.origin import origin
from kineograph.recipes import text2video_zero
from kineograph.recipes.walks import Start
from kineograph.trajectory import Step

METHODS = {"text2video-zero": text2video_zero.plan}


class Progress(NamedTuple):
    """How far a video is: `done` of `total` steps; `step.x0` is what it looks like so far, as latents."""

    done: int
    total: int
    step: Step


OnStep = Callable[[Progress], None]


@overload
def generate(
    model: Model,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_frames: int = 8,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str = "pan:12,12",
    fps: float = 4,
    solver: str = "ddim",
    chunk_size: int = 8,
    method: str = "text2video-zero",
    on_step: OnStep | None = None,
) -> Video: ...
@overload
def generate(
    model: Model,
    prompt: list[str],
    *,
    negative_prompt: str = "",
    num_frames: int = 8,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str = "pan:12,12",
    fps: float = 4,
    solver: str = "ddim",
    chunk_size: int = 8,
    method: str = "text2video-zero",
    on_step: OnStep | None = None,
) -> list[Video]: ...
def generate(
    model: Model,
    prompt: str | list[str],
    *,
    negative_prompt: str = "",
    num_frames: int = 8,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str = "pan:12,12",
    fps: float = 4,
    solver: str = "ddim",
    chunk_size: int = 8,
    method: str = "text2video-zero",
    on_step: OnStep | None = None,
) -> Video | list[Video]:
    """A video of what the prompt says; for a list of prompts, a list of videos.

    num_frames, fps: how many frames, and how many are shown a second.
    num_inference_steps: how finely the noise is taken away; more is slower.
    guidance_scale: how much the prompt counts; 1 and less turn guidance off, at half the cost.
    height, width: in pixels, multiples of 8; the model's own unless given.
    seed: the same seed gives the same video; prompt j of a list has `seed + j`. Drawn and recorded when None.
    motion: how the camera moves, see `kineograph.motion.parse`: "pan:12,12", "zoom:1.02", "rotate:3", "none".
    solver: "ddim", "dpmpp-2m", "euler-ancestral" or "lcm".
    chunk_size: frames computed at once; memory grows with it.
    on_step: called with a `Progress` after every step; an exception from it ends the work.

    Raises ValueError (InputError is one) for arguments that cannot be and for a frame that holds NaN, and warns
    (InputWarning) of words that the model has never seen.

    >>> import kineograph as kg
    >>> video = kg.generate(kg.load(), "a red fish swimming over the sea", num_frames=8, seed=7)
    >>> video.save("fish.mp4")  # doctest: +SKIP
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    requests = [
        Request(
            prompt=each,
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            seed=None if seed is None else seed + number,
            motion=motion,
            fps=fps,
            solver=solver,
            chunk_size=chunk_size,
            method=method,
        )
        for number, each in enumerate(prompts)
    ]
    videos = [made(model, each, on_step) for each in requests]
    return videos[0] if isinstance(prompt, str) else videos


def made(model: Model, request: Request, on_step: OnStep | None = None) -> Video:
    """The video that a request asks for, with the settings that make it again."""
    start = _start(model, request)
    if unknown := model.unknown_words(f"{request.prompt} {request.negative_prompt}"):
        warnings.warn(f"{model.name} has never seen the words {', '.join(unknown)}", InputWarning, stacklevel=2)
    steps, walk = METHODS[request.method](model, request, start)
    latents = trajectory.last(_told(walk, steps, on_step))
    video = Video.from_tensor(model.decode(latents)[0], request.fps)
    asked = replace(request, seed=start.seed, height=start.height, width=start.width)
    return replace(video, settings={**asdict(asked), "frames_sha256": video.digest, **origin(model)})


def _start(model: Model, request: Request) -> Start:
    height, width = request.height or model.default_size[0], request.width or model.default_size[1]
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Start(seed, height, width, (1, *model.latent_shape(height, width)))


def _told(walk: Iterator[Step], steps: int, on_step: OnStep | None) -> Iterator[Step]:
    for done, step in enumerate(walk, 1):
        if on_step:
            on_step(Progress(done, steps, step))
        yield step
