"""Plan: a request resolved against its models, and the sampling run that a method builds from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kineograph import noise
from kineograph.condition import Condition
from kineograph.denoise import Denoise, classifier_free_guidance, refuse_nan
from kineograph.errors import MAX_FRAMES, InputError
from kineograph.latents import Latents
from kineograph.media.footage import Footage, open_footage, output_size
from kineograph.media.images import InputImage, read_image
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.frame_attention import FrameAttention
from kineograph.motion import frame_warp, parse
from kineograph.request import IMAGE_MODEL_FPS, MOTION, NUM_FRAMES, Request
from kineograph.samplers import BY_NAME, Sampler, Step


class Inputs(NamedTuple):
    """Opened inputs of a request, and the settings that follow from them.

    motion: the camera motion; None when the frames follow footage: then all start from the same noise.
    footage: each control's video, or the video to edit.
    image: the image to animate.
    """

    num_frames: int
    fps: float
    motion: str | None
    footage: tuple[Footage, ...]
    image: InputImage | None = None


def open_inputs(request: Request) -> Inputs:
    """Open the videos and the image of a request.

    Raises InputError for a video, an image or a motion that cannot be used.
    """
    paths = [request.video] if request.video else [control.video for control in request.control]
    footage = tuple(open_footage(path, num_frames=request.num_frames, fps=request.fps) for path in paths)
    image = None if request.image is None else read_image(request.image)
    num_frames = request.num_frames or _length(footage)
    motion = request.motion or (None if footage else MOTION)
    if footage and motion is not None and parse(motion) == parse("none"):
        motion = None
    if motion is not None:
        frame_warp(parse(motion), frames=num_frames, seed=0)  # raises for a motion that cannot be used
    return Inputs(num_frames, request.fps or (footage[0].fps if footage else IMAGE_MODEL_FPS), motion, footage, image)


def _length(footage: Sequence[Footage]) -> int:
    if not footage:
        return NUM_FRAMES
    lengths = {len(each) for each in footage}
    if len(lengths) > 1:
        listed = ", ".join(f"{each.path} has {len(each)}" for each in footage)
        raise InputError(f"the videos are not equally long ({listed} frames): give the number of frames (--num-frames)")
    if (length := lengths.pop()) > MAX_FRAMES:
        raise InputError(
            f"{footage[0].path} has {length} frames, and a video has at most {MAX_FRAMES}: use the first of them "
            "(--num-frames), or fewer per second (--fps)"
        )
    return length


def video_size(request: Request, inputs: Inputs, default: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return height and width in pixels: as requested, else with the footage's aspect ratio, else the model's own.

    Raises InputError when the videos have different aspect ratios.
    """
    if not inputs.footage:
        return request.height or default[0], request.width or default[1]
    sizes = [
        output_size(each, request.height, request.width, side=max(default), factor=factor) for each in inputs.footage
    ]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{each.path} is {each.width} x {each.height}" for each in inputs.footage)
        raise InputError(f"the videos are of different shapes ({listed}): crop them to one, or give height and width")
    return sizes[0]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved request: values for what it left open, and functions that adapt a method to controls and clips.

    method, sampler     names in `generation.run.METHODS` and `samplers.BY_NAME`
    latent_shape        (1, c, h, w): one video, without its frames
    video_model         the second model of VideoElevator
    clip                number of the clip of a long video
    add_control         adds ControlNet residuals to a condition
    continue_noise      (the clip's own noise) -> its initial noise, which may continue the previous clip's
    continue_sampler    (sampler, sigmas) -> the sampler, which may follow the previous clip
    skip_overwritten    (denoise, sigmas) -> the model without the frames that `continue_sampler` overwrites; for models
                        whose frames attend to the first frame alone
    """

    method: str
    sampler: str
    seed: int
    height: int
    width: int
    latent_shape: noise.Shape
    inputs: Inputs
    video_model: Model | None = None
    clip: int = 0
    add_control: Callable[[Condition], Condition] = lambda condition: condition
    continue_noise: Callable[[Latents], Latents] = lambda own: own
    continue_sampler: Callable[[Sampler, Sequence[float]], Sampler] = lambda sampler, sigmas: sampler
    skip_overwritten: Callable[[Denoise, Sequence[float]], Denoise] = lambda denoise, sigmas: denoise

    @property
    def frames(self) -> range:
        """The numbers of the clip's frames."""
        count = self.inputs.num_frames
        return range(self.clip * count, (self.clip + 1) * count)


class SamplingRun(NamedTuple):
    """The steps of a clip, their number, and the noise that they start from."""

    num_steps: int
    initial_noise: Latents
    steps: Iterator[Step]


RunMethod = Callable[[Model, Request, Plan], SamplingRun]


def spaced_sigmas(request: Request, plan: Plan, schedule: Schedule) -> list[float]:
    """Return the request's number of sigmas, in the spacing of the plan's sampler."""
    return BY_NAME[plan.sampler].spacing(schedule.sigmas, request.num_inference_steps)


def build_sampler(plan: Plan, noise_frames: Sequence[int]) -> Sampler:
    """Build the plan's sampler; frame i gets the noise of the frame number `noise_frames[i]`."""

    def sampler(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        noise_at = noise.per_sigma(plan.seed, noise_frames[: x.shape[1]], plan.latent_shape)
        return BY_NAME[plan.sampler].sampler(noise_at)(denoise, x, sigmas)

    return sampler


def bind_prompts(
    model: Model, request: Request, plan: Plan, frame_attention: FrameAttention
) -> tuple[Denoise, Denoise]:
    """Bind an image model to the prompt and to the negative prompt, with the plan's controls."""
    denoise_cond, denoise_uncond = (
        model.bind(
            plan.add_control(model.prompt([text], size=(plan.height, plan.width))),
            frame_attention=frame_attention,
            chunk_size=request.chunk_size,
        )
        for text in (request.prompt, request.negative_prompt)
    )
    return denoise_cond, denoise_uncond


def guide(request: Request, plan: Plan, schedule: Schedule, denoise_cond: Denoise, denoise_uncond: Denoise) -> Denoise:
    """Apply the request's guidance, none for a scale of 1 or less, and the wrappers of `fit_to_sampler`."""
    scale = max(1.0, request.guidance_scale)
    return fit_to_sampler(classifier_free_guidance(denoise_cond, denoise_uncond, scale), plan.sampler, schedule)


def fit_to_sampler(denoise: Denoise, sampler: str, schedule: Schedule) -> Denoise:
    """Wrap the model: as a consistency model for "lcm", and with a check for NaN for every sampler."""
    return refuse_nan(schedule.consistency_denoise(denoise) if sampler == "lcm" else denoise)
