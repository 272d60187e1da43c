"""Plain arguments and something to begin from, a picture or a video, become a request, and that a video."""

from __future__ import annotations

from pathlib import Path

from kineograph.generate.run import OnStep, run_request
from kineograph.media.video import Video
from kineograph.models.model import Model
from kineograph.request import Request


def animate(
    model: Model,
    image: str | Path,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    image_scale: float = 1.0,
    first_frame: str = "shown",
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    fps: float | None = None,
    solver: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    motion_scale: float = 0.0,
    on_step: OnStep | None = None,
) -> Video:
    """A video of what the picture shows, moving as the prompt says.

    model: one that is shown pictures: `kineograph.load("pocket-animate")`, VideoCrafter1's image-to-video model, or any
        video model with an IP-Adapter. Any video model will do where the first frame is pinned.
    image: the path of a picture of any size; for the first frame its middle is cut to the video's shape.
    image_scale: how much the picture counts beside the text.
    first_frame: "shown", the picture is shown to the model, which draws its like, as in the paper; or "pinned", the
        first frame is that picture besides.
    All else is as for `generate`.

    Raises ValueError (InputError is one) for arguments or a picture that cannot be, or a model that sees no pictures.

    >>> import kineograph as kg
    >>> kg.animate(kg.load("pocket-animate"), "fish.png", "a fish swimming to the right")  # doctest: +SKIP
    """
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        seed=seed,
        fps=fps,
        solver=solver,
        window=window,
        overlap=overlap,
        motion_scale=motion_scale,
        method="videocrafter",
        image=str(image),
        image_scale=image_scale,
        first_frame=first_frame,
    )
    return run_request(model, request, on_step)


def edit(
    model: Model,
    video: str | Path,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    fps: float | None = None,
    noise: str = "shared",
    solver: str = "euler-ancestral",
    chunk_size: int = 8,
    on_step: OnStep | None = None,
) -> Video:
    """The video of a file, changed as the prompt says.

    model: one that edits: `kineograph.load("pocket-edit")`, or InstructPix2Pix and what was made of it.
    num_frames, fps: how many frames from the start, and how many a second of the input's time; all, at its own rate.
    image_guidance_scale: how much the input counts; 1 is a third faster.
    noise: "shared" by all frames, or "independent".
    All else is as for `generate`.

    Raises ValueError (InputError is one) for arguments or a video that cannot be, or a model that does not edit.

    >>> import kineograph as kg
    >>> kg.edit(kg.load("pocket-edit"), "fish.mp4", "make it snow").save("snow.mp4")  # doctest: +SKIP
    """
    request = Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        height=height,
        width=width,
        seed=seed,
        fps=fps,
        noise=noise,
        solver=solver,
        chunk_size=chunk_size,
        method="instruct-pix2pix",
        video=str(video),
    )
    return run_request(model, request, on_step)
