"""The functions `generate`, `animate` and `edit`: their arguments become a request, and that a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

from kineograph.generation.clips import OnStep
from kineograph.generation.run import run_request
from kineograph.media.video import Video
from kineograph.models.model import Model
from kineograph.request import CLIP_DEFAULTS, ELEVATOR_DEFAULTS, ClipOptions, ElevatorOptions, Request, make_controls


@overload
def generate(
    model: Model,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    chunk_size: int = 8,
    method: str | None = None,
    control: Mapping[str, str | Path] | None = None,
    annotators: Mapping[str, str | Path] | None = None,
    controlnet_conditioning_scale: float = 1.0,
    control_guidance_start: float = 0.0,
    control_guidance_end: float = 1.0,
    smooth_background: float = 0.0,
    masks: str = "attention",
    window: int | None = None,
    overlap: int | None = None,
    motion_scale: float = 0.0,
    video_model: Model | None = None,
    elevation: ElevatorOptions = ELEVATOR_DEFAULTS,
    clips: int = 1,
    then: Sequence[str] = (),
    reuse: ClipOptions = CLIP_DEFAULTS,
    keep_clips: str | Path | None = None,
    on_step: OnStep | None = None,
) -> Video: ...
@overload
def generate(
    model: Model,
    prompt: list[str],
    *,
    negative_prompt: str = "",
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    chunk_size: int = 8,
    method: str | None = None,
    control: Mapping[str, str | Path] | None = None,
    annotators: Mapping[str, str | Path] | None = None,
    controlnet_conditioning_scale: float = 1.0,
    control_guidance_start: float = 0.0,
    control_guidance_end: float = 1.0,
    smooth_background: float = 0.0,
    masks: str = "attention",
    window: int | None = None,
    overlap: int | None = None,
    motion_scale: float = 0.0,
    video_model: Model | None = None,
    elevation: ElevatorOptions = ELEVATOR_DEFAULTS,
    clips: int = 1,
    then: Sequence[str] = (),
    reuse: ClipOptions = CLIP_DEFAULTS,
    keep_clips: str | Path | None = None,
    on_step: OnStep | None = None,
) -> list[Video]: ...
def generate(
    model: Model,
    prompt: str | list[str],
    *,
    negative_prompt: str = "",
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    motion: str | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    chunk_size: int = 8,
    method: str | None = None,
    control: Mapping[str, str | Path] | None = None,
    annotators: Mapping[str, str | Path] | None = None,
    controlnet_conditioning_scale: float = 1.0,
    control_guidance_start: float = 0.0,
    control_guidance_end: float = 1.0,
    smooth_background: float = 0.0,
    masks: str = "attention",
    window: int | None = None,
    overlap: int | None = None,
    motion_scale: float = 0.0,
    video_model: Model | None = None,
    elevation: ElevatorOptions = ELEVATOR_DEFAULTS,
    clips: int = 1,
    then: Sequence[str] = (),
    reuse: ClipOptions = CLIP_DEFAULTS,
    keep_clips: str | Path | None = None,
    on_step: OnStep | None = None,
) -> Video | list[Video]:
    """Generate a video from a prompt; for a list of prompts, a list of videos.

    num_frames, fps: number of frames, and frames per second; 8 and 4 unless given, for a video model the number that it
        was trained on and 8, and with a control video all its frames at its own rate. A video model with a frame-rate
        condition adapts the motion.
    num_inference_steps: number of denoising steps; more are slower.
    guidance_scale: weight of the prompt; 1 and less turn guidance off, at half the cost.
    height, width: in pixels, multiples of 8; the model's own unless given, with a control video's aspect ratio.
    seed: the same seed gives the same video; prompt j of a list has `seed + j`. Random, and recorded, when None.
    motion: camera motion, see `kineograph.motion.parse`: "zoom:1.02", "rotate:3", "none"; "pan:12,12" unless given, and
        "none" with a control video.
    sampler: "ddim", "dpmpp-2m", "euler-ancestral" (which is DDIM with eta 1) or "lcm"; the model's own unless given.
    chunk_size: frames computed at once; memory grows with it.
    control: {kind: path of a video}: inputs of ControlNets, each of a kind that the model was loaded with. Maps are
        made from the video's frames; a kind with "-map" behind it, as "depth-map", has a video of maps.
    annotators: {kind: folder or repository} of the network that makes the maps of "depth" or "pose", if not the usual.
    controlnet_conditioning_scale: weight of the controls.
    control_guidance_start, control_guidance_end: range of the controls, in parts of the timesteps: 0 is noise, 1 clean.
    smooth_background: strength of background smoothing while the camera moves; the paper's is 0.6, 0 turns it off.
    masks: source of the foreground masks for that: the model's own "attention", or "rembg", which the user installs.
    window, overlap: number of frames that a video model samples together, and of those that the next window shares at
        least; the number it was trained on and a quarter of it unless given.
    motion_scale: scale of a video model's motion adapter (Still-Moving): 0 for the model's motion, 1 for none, below 0
        for more.
    video_model: a second model, which adds motion to the first model's estimates (VideoElevator).
    elevation: options of VideoElevator.
    clips: number of clips of `num_frames` each (VidRD); then: prompts of the second and later clips, the last of which
        stays; reuse: options for how a clip continues the previous one.
    keep_clips: a folder for finished clips: the same call continues from the last of them.
    on_step: called with a `Progress` after every step; an exception from it ends the work.

    Raises ValueError (InputError is one) for invalid arguments and for a frame that holds NaN, and warns (InputWarning)
    of words that the model does not know.

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
            sampler=sampler,
            chunk_size=chunk_size,
            method=method,
            control=make_controls(
                control or {},
                annotators,
                scale=controlnet_conditioning_scale,
                start=control_guidance_start,
                end=control_guidance_end,
            ),
            smooth_background=smooth_background,
            masks=masks,
            window=window,
            overlap=overlap,
            motion_scale=motion_scale,
            elevation=elevation,
            clips=clips,
            then=tuple(then),
            reuse=reuse,
        )
        for number, each in enumerate(prompts)
    ]
    kept = None if keep_clips is None else Path(keep_clips)
    videos = [run_request(model, each, on_step, video_model=video_model, keep_clips=kept) for each in requests]
    return videos[0] if isinstance(prompt, str) else videos


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
    sampler: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    motion_scale: float = 0.0,
    on_step: OnStep | None = None,
) -> Video:
    """Generate a video that starts from an image and moves as the prompt says.

    model: an image-to-video model: `kineograph.load("pocket-animate")`, VideoCrafter1's, or any video model with an
        IP-Adapter. Any video model can be used when the first frame is pinned.
    image: path of an image of any size; for the first frame it is center-cropped to the video's aspect ratio.
    image_scale: weight of the image beside the text.
    first_frame: "shown", the image is a condition of the model, as in the paper; or "pinned", it is the first
        frame as well.
    All else is as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, an unreadable image, or a model that takes no images.

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
        sampler=sampler,
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
    sampler: str = "euler-ancestral",
    chunk_size: int = 8,
    on_step: OnStep | None = None,
) -> Video:
    """Edit a video file as the prompt says.

    model: an editing model: `kineograph.load("pocket-edit")`, or InstructPix2Pix or its fine-tunes.
    num_frames, fps: number of frames from the start, and frames per second of the input; all, at its own rate.
    image_guidance_scale: weight of the input; 1 is a third faster.
    noise: "shared" by all frames, or "independent".
    All else is as for `generate`.

    Raises ValueError (InputError is one) for invalid arguments, an unreadable video, or a model that does not edit.

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
        sampler=sampler,
        chunk_size=chunk_size,
        method="instruct-pix2pix",
        video=str(video),
    )
    return run_request(model, request, on_step)
