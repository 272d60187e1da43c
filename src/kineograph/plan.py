"""Plan: a request resolved against its models; the interface of methods, which run plans, and what they build of one.

A method's `run` binds the plan's models to their conditions (`bind_model`, `pin_known_frames`), builds the sampler, and
calls the paper's `sample` with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch

from kineograph import noise, options
from kineograph.denoise import (
    Denoise,
    choose_by_sigma,
    classifier_free_guidance,
    refuse_nan,
    replace_known_frames,
)
from kineograph.latents import Latents
from kineograph.request import ImageOptions, Prompt, SharedOptions
from kineograph.samplers import BY_NAME, Sampler, Step

if TYPE_CHECKING:  # the declarations of a method's options are read without diffusers
    from kineograph.media.footage import Footage
    from kineograph.media.images import InputImage
    from kineograph.models.conditioning.condition import Condition
    from kineograph.models.description import Description
    from kineograph.models.model import Model
    from kineograph.models.openvino.choice import EngineChoice
    from kineograph.models.schedule import Schedule
    from kineograph.models.temporal.config import TemporalConfig
    from kineograph.models.unet.deepcache import DeepCache
    from kineograph.models.unet.frame_attention import FrameAttention
    from kineograph.models.unet.windows import AttentionWindows

Kind = TypeVar("Kind")
BindCondition = Callable[["Condition"], Denoise]
Guide = Callable[[BindCondition, "Condition", "Condition"], Denoise]


class Combination(NamedTuple):
    """Options to check, all with a value, and descriptions of the models. No weights are needed.

    video_model: the second model, of VideoElevator.
    """

    model: Description
    video_model: Description | None
    method: str
    options: Mapping[str, Any]

    @property
    def with_motion(self) -> Description:
        """The model that may have temporal layers."""
        return self.video_model or self.model

    @property
    def frames_of_one_window(self) -> int | None:
        """The number of frames if one window of the video model holds them all; None if not, or without such a model.

        None too where it is that of an input video.
        """
        options, temporal = self.options, self.with_motion.temporal
        if temporal is None or (options["num_frames"] is None and (options["control"] or options["video"])):
            return None
        frames, window = options["num_frames"] or temporal.num_frames, options["window"] or temporal.num_frames
        return frames if frames <= window else None

    def read(self, kind: type[Kind]) -> Kind:
        """Return the options that a TypedDict declares."""
        return options.select(self.options, kind)


class Method(NamedTuple):
    """A method, registered in `generation.options.METHODS` or by the entry point `kineograph.methods`.

    run      samples a plan's clip
    options  TypedDicts of the options that it reads, besides `SharedOptions`
    check    raises InputError for a combination that cannot work
    unread   options among `options` that it does not read in a combination, each with the reason: they are neither
             accepted nor recorded there
    """

    run: Callable[[Plan], SamplingRun]
    options: tuple[type, ...]
    check: Callable[[Combination], None]
    unread: Callable[[Combination], Mapping[str, str]] = lambda combination: {}


class AddOn(NamedTuple):
    """Options that change how any method samples: controls, clips, smoothing, an input video or image.

    options  TypedDicts of its options, which are read if it is used
    used     True for options that ask for it
    when     the same in words, for messages: "with `control`"
    check    as in `Method`
    unread   as in `Method`
    """

    options: tuple[type, ...]
    used: Callable[[Mapping[str, Any]], bool]
    when: str
    check: Callable[[Combination], None] = lambda combination: None
    unread: Callable[[Combination], Mapping[str, str]] = lambda combination: {}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved request: every value is decided, every input is open.

    second_model        the video model of VideoElevator: one, or none
    prompts             one for each video of the batch, as are `negative_prompts` and `seeds`
    sampler             name in `samplers.BY_NAME`
    latent_shape        (b, c, h, w): of the batch, without frames
    initial_latents     the first clip's initial noise, [b 1 c h w] or [b f c h w]: one, or none
    window, overlap     0 without a video model
    camera              its motion, see `motion.parse`
    control_footage     the control videos
    edit_footage        the video whose frames an editing model reads: one, or none
    start_footage       the video whose frames sampling starts from: one, or none
    strength            share of the steps that are sampled, see `methods.sdedit`
    image               the image that the video starts from: one, or none
    engine              library that computes the networks, and why
    options             all options, with defaults and the guidance that is recommended for the model; see `read`
    clip                number of the clip of a long video
    shared_frames       number of first frames that a clip shares with the previous one
    known_frames        latents of the clip's first frames, which are the end of the previous clip: one tensor, or none
    guide               (bind, cond, uncond) -> the guided model
    add_conditions      adds ControlNet residuals and the frames to edit to a condition
    start_noise         (initial noise, first sigma) -> the noise that sampling starts from: scaled as the scheduler's,
                        or with the frames of an input video
    continue_noise      (the clip's own noise) -> its initial noise, which may continue the previous clip's
    adapt_sampler       (sampler, sigmas) -> the sampler, which may follow the previous clip, or smooth the background
    skip_overwritten    (denoise, sigmas) -> the model without the frames that `adapt_sampler` overwrites; for models
                        whose frames attend to the first frame alone
    """

    model: Model
    second_model: tuple[Model, ...]
    method: str
    prompts: tuple[Prompt, ...]
    negative_prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    sampler: str
    num_inference_steps: int
    guidance_scale: float
    num_frames: int
    fps: float
    height: int
    width: int
    latent_shape: noise.Shape
    initial_latents: tuple[Latents, ...]
    chunk_size: int
    vae_tiling: bool
    window: int
    overlap: int
    motion_strength: float
    camera: str
    control_footage: tuple[Footage, ...]
    edit_footage: tuple[Footage, ...]
    start_footage: tuple[Footage, ...]
    strength: float
    image: tuple[InputImage, ...]
    engine: EngineChoice
    options: Mapping[str, Any]
    guide: Guide
    clip: int = 0
    shared_frames: int = 0
    known_frames: tuple[Latents, ...] = ()
    add_conditions: Callable[[Condition], Condition] = lambda condition: condition
    start_noise: Callable[[Latents, float], Latents] = lambda noise, sigma: noise
    continue_noise: Callable[[Latents], Latents] = lambda own: own
    adapt_sampler: Callable[[Sampler, Sequence[float]], Sampler] = lambda sampler, sigmas: sampler
    skip_overwritten: Callable[[Denoise, Sequence[float]], Denoise] = lambda denoise, sigmas: denoise

    @property
    def frames(self) -> range:
        """The numbers of the clip's frames."""
        start = self.clip * (self.num_frames - self.shared_frames)
        return range(start, start + self.num_frames)

    @property
    def footage(self) -> tuple[Footage, ...]:
        """The input videos, which the frames follow."""
        return self.control_footage + self.edit_footage + self.start_footage

    def part(self, start: int, stop: int) -> Plan:
        """Return the plan of these videos of the batch."""
        part = slice(start, stop)
        return replace(
            self,
            prompts=self.prompts[part],
            negative_prompts=self.negative_prompts[part],
            seeds=self.seeds[part],
            latent_shape=(len(self.prompts[part]), *self.latent_shape[1:]),
            initial_latents=tuple(each[part] for each in self.initial_latents),
        )

    def read(self, kind: type[Kind]) -> Kind:
        """Return the options that a TypedDict declares."""
        return options.select(self.options, kind)

    def sigmas(self, schedule: Schedule) -> list[float]:
        """Return the sigmas to sample along: of the requested number of steps, or of their last part by strength."""
        shared = self.read(SharedOptions)
        sigmas = schedule.sampling_sigmas(
            self.num_inference_steps, self.sampler, shared["spacing"], shared["steps_offset"]
        )
        if self.image and self.options["first_frame"] == "pinned":
            sigmas[-1] = 0.0  # some schedulers end above it, and the frame would keep that noise
        return last_sigmas(sigmas, self.strength)


class SamplingRun(NamedTuple):
    """The steps of a clip, their number, and the noise that they start from."""

    num_steps: int
    initial_noise: Latents
    steps: Iterator[Step]


def last_sigmas(sigmas: Sequence[float], strength: float) -> list[float]:
    """Return the last part of a list of sigmas: the integer part of `strength` times its steps, one at least.

    >>> last_sigmas([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 0.6)
    [3.0, 2.0, 1.0, 0.0]
    """
    steps = len(sigmas) - 1
    return list(sigmas[steps - max(1, int(steps * strength + 1e-9)) :])


def encode_footage(plan: Plan, footage: Footage) -> Latents:
    """Encode the clip's frames of an input video as clean latents: [1 f c h w]."""
    from kineograph.media.footage import stack_in_chunks

    frames = islice(footage.frames(plan.height, plan.width), plan.frames.start, plan.frames.stop)
    encoded = [
        plan.model.encode(torch.from_numpy(chunk).permute(0, 3, 1, 2)[None].float() / 255)
        for chunk in stack_in_chunks(frames, plan.chunk_size)
    ]
    return torch.cat(encoded, dim=1)


def build_sampler(plan: Plan, noise_frames: Sequence[int]) -> Sampler:
    """Build the plan's sampler; frame i gets the noise of the frame number `noise_frames[i]`."""

    def sampler(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        noise_at = noise.per_sigma(plan.seeds, noise_frames[: x.shape[1]], plan.latent_shape)
        return BY_NAME[plan.sampler](noise_at, plan.model.schedule.scale_timestep)(denoise, x, sigmas)

    return sampler


class BoundModel(NamedTuple):
    """A model as functions `(x, sigma) -> x0`.

    guided     with all conditions and guidance
    bind_cond  binds it to all conditions without guidance: for inversion, which guidance would make diverge
    """

    guided: Denoise
    bind_cond: Callable[[], Denoise]


def bind_model(
    plan: Plan, frame_attention: FrameAttention, attention_windows: AttentionWindows | None = None
) -> BoundModel:
    """Bind the plan's model to its conditions, with guidance. attention_windows: as in `Model.bind`."""
    model = plan.model
    cond = plan.add_conditions(encode_prompts(plan, model))
    uncond = plan.add_conditions(encode_texts(plan, model, plan.negative_prompts))
    cond, uncond = add_image(model, plan, cond, uncond)
    bind = partial(
        model.bind,
        frame_attention=frame_attention,
        chunk_size=plan.chunk_size,
        window=plan.window or None,
        overlap=plan.overlap if plan.window else None,
        motion_scale=0.0 if model.temporal is None else 1 - plan.motion_strength,
        attention_windows=attention_windows,
        deepcache=deepcache_settings(plan, plan.sigmas(model.schedule)),
    )
    guided = guide_in_interval(plan, model.schedule, plan.guide, bind, cond, uncond)
    guided = fit_to_sampler(guided, plan.sampler, model.schedule)
    return BoundModel(guided, lambda: bind(cond))


def encode_texts(plan: Plan, model: Model, texts: Sequence[Prompt]) -> Condition:
    """Encode texts, one for each video of the batch, with the plan's size, frame rate and guidance scale.

    All texts of a plan have equally many chunks of tokens, so that those of several frames can be interpolated.
    """
    return model.prompt(
        texts,
        size=(plan.height, plan.width),
        fps=plan.fps,
        guidance_scale=text_guidance_scale(plan, model),
        prompt_weights=plan.read(SharedOptions)["prompt_weights"],
        num_chunks=text_chunks(plan, model),
    )


def text_guidance_scale(plan: Plan, model: Model) -> float:
    """Return the guidance scale of one of the plan's models: the second model may have its own."""
    own = plan.options["video_guidance_scale"] if model in plan.second_model else None
    return plan.guidance_scale if own is None else own


def text_chunks(plan: Plan, model: Model) -> int:
    """Return the number of chunks of tokens that the plan's longest text has."""
    texts = [*plan.prompts, *plan.negative_prompts, *plan.options["prompt_at"].values()]
    if model in plan.second_model:
        texts.append(plan.options["video_prompt"])
    return model.count_chunks(texts, plan.read(SharedOptions)["prompt_weights"])


def encode_prompts(plan: Plan, model: Model) -> Condition:
    """Encode the plan's prompts; with prompts at later frames (`prompt_at`), the text of each frame of the clip."""
    first, later = encode_texts(plan, model, plan.prompts), plan.read(SharedOptions)["prompt_at"]
    if not later:
        return first
    from kineograph.models.conditioning.condition import interpolate_conditions

    count = len(plan.prompts)
    keyframes = {frame: encode_texts(plan, model, [text] * count) for frame, text in later.items()}
    return interpolate_conditions({0: first, **keyframes}, plan.frames)


def add_image(model: Model, plan: Plan, cond: Condition, uncond: Condition) -> tuple[Condition, Condition]:
    """Add image tokens for models that read them: the image's to `cond`, those of no image to `uncond`.

    A video model with an image encoder always has image tokens, an image model only with an image.
    """
    if model.image_encoder is None or (model.temporal is None and not plan.image):
        return cond, uncond
    scale, count = plan.read(ImageOptions)["image_scale"], len(plan.prompts)
    tokens = model.image_tokens(_to_tensor(plan.image[0]).expand(count, -1, -1, -1) if plan.image else None, count)
    return (
        replace(cond, image_tokens=tokens, image_scale=scale),
        replace(uncond, image_tokens=model.image_tokens(None, count), image_scale=scale),
    )


def continues_frames(temporal: TemporalConfig | None) -> bool:
    """Return True for the temporal layers of a model that was trained with first frames without noise."""
    return temporal is not None and temporal.clean_frames


def pin_known_frames(plan: Plan, denoise: Denoise, initial_noise: Latents) -> Denoise:
    """Wrap the model so that the clip's first frames are those that are known: the pinned image, or the plan's.

    A model that was trained to continue frames gets them without noise.
    """
    if plan.known_frames:
        (known,) = plan.known_frames
    elif plan.image and plan.clip == 0 and plan.options["first_frame"] == "pinned":
        known = _encode_image(plan)
    else:
        return denoise
    noise = torch.zeros_like(known) if continues_frames(plan.model.temporal) else initial_noise[:, : known.shape[1]]
    return replace_known_frames(denoise, known, noise)


def _encode_image(plan: Plan) -> Latents:
    """Encode the plan's image, cropped to the video's size, for each video of the batch: [b 1 c h w]."""
    from kineograph.models.conditioning.image_encoder import crop_to_size

    pixels = crop_to_size(_to_tensor(plan.image[0]), plan.height, plan.width)
    return plan.model.encode(pixels[:, None]).to(plan.model.device).expand(len(plan.prompts), -1, -1, -1, -1)


def deepcache_settings(plan: Plan, sigmas: Sequence[float]) -> DeepCache | None:
    """Return the settings of DeepCache for a model that is sampled along these sigmas; None without DeepCache."""
    from kineograph.models.unet.deepcache import DeepCache

    options = plan.read(SharedOptions)
    interval = options["deepcache_interval"]
    return DeepCache(options["deepcache_branch"], sigmas[:-1:interval]) if interval > 1 else None


def guide_in_interval(
    plan: Plan, schedule: Schedule, guide: Guide, bind: BindCondition, cond: Condition, uncond: Condition
) -> Denoise:
    """Apply guidance inside of the plan's interval of noise levels; outside of it only `cond` is evaluated.

    Source: Kynkäänniemi et al. 2024.
    """
    start, end = (plan.options[name] for name in ("guidance_start", "guidance_end"))
    bind_once = cache(bind)

    def inside(sigma: float) -> bool:
        return start <= schedule.progress(sigma) <= end

    return choose_by_sigma(inside, guide(bind_once, cond, uncond), bind_once(cond))


def guide_by_text(scale: float, bind: BindCondition, cond: Condition, uncond: Condition) -> Denoise:
    """Apply classifier-free guidance, none for a scale of 1 or less, and for a network that reads the scale itself."""
    if cond.guidance_scale is not None:
        return bind(cond)
    return classifier_free_guidance(bind(cond), bind(uncond), max(1.0, scale))


def fit_to_sampler(denoise: Denoise, sampler: str, schedule: Schedule) -> Denoise:
    """Wrap the model: as a consistency model for "lcm", and with a check for NaN for every sampler."""
    return refuse_nan(schedule.consistency_denoise(denoise) if sampler == "lcm" else denoise)


def _to_tensor(image: InputImage) -> torch.Tensor:
    """Return an image as float [1 3 H W], values from 0 to 1."""
    return torch.from_numpy(image.pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
