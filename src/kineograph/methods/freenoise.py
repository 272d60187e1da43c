"""FreeNoise: a video model generates more frames than it was trained on (Qiu et al. 2024, section 3).

Later frames repeat the noise of earlier ones in another order, temporal attention reads overlapping windows, and the
prompts of later frames (`prompt_at`) act where motion is decided. All frames are sampled together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from typing_extensions import TypedDict

from kineograph import noise
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.options import Integer, Number, option
from kineograph.plan import Combination, Method, Plan, SamplingRun, bind_model, encode_texts, pin_known_frames
from kineograph.request import VideoModelOptions
from kineograph.samplers import BY_NAME, Sampler, Step

if TYPE_CHECKING:
    from kineograph.models.conditioning.condition import Condition
    from kineograph.models.temporal.config import TemporalConfig
    from kineograph.models.unet.windows import FrameWindow

GROUP = "Long videos"


class FreeNoiseOptions(TypedDict, total=False):
    """Options of FreeNoise; the defaults are its authors'."""

    window_stride: Annotated[
        Integer, option(4, "Number of frames from one window to the next (FreeNoise).", group=GROUP, ge=1)
    ]
    window_weights: Annotated[
        Literal["pyramid", "flat"],
        option("pyramid", "Weights of a window's frames where windows overlap (FreeNoise).", group=GROUP),
    ]
    injection_start: Annotated[
        Number,
        option(0.1, "Start of the noise levels, as fraction of the timesteps (0 is noise, 1 is clean), at which "
               "`prompt_at` acts in all layers; at others it acts in the up blocks alone.", group=GROUP, ge=0, le=1),
    ]  # fmt: skip
    injection_end: Annotated[Number, option(0.32, "End of these noise levels.", group=GROUP, ge=0, le=1)]


def noise_order(frames: Sequence[int], window: int, stride: int, permute: Callable[[int], Sequence[int]]) -> list[int]:
    """Return the number of the frame whose noise each frame takes: noise rescheduling.

    After the first window each block of `stride` frames takes the noise of the block one window earlier, permuted.
    permute: (number of a block's first frame) -> the order of the block's frames
    """
    order = list(frames[:window])
    for start in range(window, len(frames), stride):
        block = order[start - window : start - window + stride]
        order += [block[k] for k in permute(frames[start])]
    return order[: len(frames)]


def permute_by_seed(seed: int, stride: int, frame: int) -> list[int]:
    """Return a random order of the frames of a block."""
    random = Random(f"{seed} {frame}")
    return sorted(range(stride), key=lambda _: random.random())


def fused_windows(size: int, stride: int, weights: Literal["pyramid", "flat"], frames: int) -> list[FrameWindow]:
    """Return the windows of temporal attention: window-based attention fusion.

    If the last window ends before the last frame, one more is added, for the frames that no other holds.
    """
    from kineograph.models.unet.windows import FrameWindow, one_window, pyramid

    if frames <= size:
        return one_window(frames)
    own = pyramid(size) if weights == "pyramid" else [1.0] * size
    windows = [FrameWindow(range(start, start + size), own) for start in range(0, frames - size + 1, stride)]
    left = frames - windows[-1].frames.stop
    return windows + ([FrameWindow(range(frames - size, frames), [0.0] * (size - left) + [1.0] * left)] if left else [])


@torch.no_grad()
def sample(
    denoise: Callable[[float], Denoise], noise: Latents, sigmas: Sequence[float], *, sampler: Sampler
) -> Iterator[Step]:
    """Sample a video, all frames together.

    denoise  sigma -> the model with `fused_windows`; of all prompts, or without `prompt_at` in the down blocks
    noise    in the order of `noise_order`
    """
    yield from sampler(lambda x, sigma: denoise(sigma)(x, sigma), sigmas[0] * noise, sigmas)


def run(plan: Plan) -> SamplingRun:
    """Sample a clip."""
    from kineograph.models.unet.frame_attention import own

    options, model, schedule = plan.read(FreeNoiseOptions), plan.model, plan.model.schedule
    sigmas, stride, (_, c, h, w) = plan.sigmas(schedule), options["window_stride"], plan.latent_shape
    ratio, shape = model.temporal.noise_ratio if model.temporal else 0.0, (1, c, h, w)
    reorder = partial(noise_order, plan.frames, plan.window, stride)
    orders = [(seed, reorder(partial(permute_by_seed, seed, stride))) for seed in plan.seeds]
    own_noise = torch.cat([noise.partly_shared(ratio, *order, shape, plan.clip) for order in orders])
    noise_at = [noise.partly_shared_per_sigma(ratio, *order, shape) for order in orders]
    initial = plan.continue_noise(own_noise.to(model.device))
    windows = partial(fused_windows, plan.window, stride, options["window_weights"])

    def bind(plan: Plan) -> Denoise:
        return pin_known_frames(plan, bind_model(plan, own, windows).guided, initial)

    travelling = bind(plan)
    basic = bind(read_first_prompt(plan)) if plan.options["prompt_at"] else travelling

    def inject(sigma: float) -> Denoise:
        clean = schedule.progress(sigma)
        return travelling if options["injection_start"] <= clean <= options["injection_end"] else basic

    make_sampler = BY_NAME[plan.sampler]
    sampler = make_sampler(lambda sigma: torch.cat([each(sigma) for each in noise_at]), schedule.scale_timestep)
    start = plan.start_noise(initial, sigmas[0])
    return SamplingRun(len(sigmas), initial, sample(inject, start, sigmas, sampler=plan.adapt_sampler(sampler, sigmas)))


def read_first_prompt(plan: Plan) -> Plan:
    """Return the plan with the first prompt in the down and mid blocks at every frame."""
    tokens = encode_texts(plan, plan.model, plan.prompts).tokens

    def add_conditions(condition: Condition) -> Condition:
        travels = condition.tokens.ndim == 4  # the negative prompt does not
        return plan.add_conditions(replace(condition, down_tokens=tokens) if travels else condition)

    return replace(plan, add_conditions=add_conditions)


def attends_over_frames(temporal: TemporalConfig) -> bool:
    """Return True for temporal layers with attention over all frames, whose windows FreeNoise chooses."""
    return not temporal.resamples_frames and any(temporal.attentions)


def check(combination: Combination) -> None:
    """Raise InputError for a model without temporal attention over its frames, and for impossible windows."""
    model, options, temporal = combination.model, combination.options, combination.model.temporal
    if combination.video_model is not None:
        raise InputError(f"freenoise has no use for a second model, {combination.video_model.name}: leave it out")
    if temporal is None or not attends_over_frames(temporal):
        raise InputError(f"freenoise needs temporal attention over all frames: {model.name} has none, pocket-video has")
    if options["window_stride"] > (window := options["window"] or temporal.num_frames):
        raise InputError(f"`window_stride` is at most the window, {window} frames, not {options['window_stride']}")


def unread(combination: Combination) -> dict[str, str]:
    """Return the options without an effect: windows if there is one, where prompts of later frames act without any."""
    names = () if combination.options["prompt_at"] else ("injection_start", "injection_end")
    unread = dict.fromkeys(names, "it is read with `prompt_at`")
    if (frames := combination.frames_of_one_window) is not None:
        unread |= dict.fromkeys(("window_stride", "window_weights"), f"all {frames} frames are in one window")
    return unread


METHOD = Method(run, (VideoModelOptions, FreeNoiseOptions), check, unread)
