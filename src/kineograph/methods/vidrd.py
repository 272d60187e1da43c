"""VidRD, Reuse and Diffuse: more frames than a model holds, clip after clip (Gu et al. 2023, section 3).

Each clip reuses the initial noise and the latents of the previous one, with the frames in reversed order, and so begins
where the previous one ended. Any other method can sample the clips, with any sampler. The paper's network and temporal
decoder are in `models/temporal` and `models/vae`.

The reversal often turns the motion round. `clip_order` forward, not in the paper, keeps its direction: a clip begins
with the last frames of the previous one in their own order, and they are shown once. A model that was trained to
continue frames (`TemporalConfig.clean_frames`) gets them without noise; another one follows their latents by the
paper's staged guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import AfterValidator
from typing_extensions import TypedDict

from kineograph.denoise import Denoise
from kineograph.errors import MAX_FRAMES, InputError
from kineograph.latents import Latents
from kineograph.noise import mix
from kineograph.options import File, Integer, Number, Text, option
from kineograph.plan import AddOn, Combination, Plan, SamplingRun, continues_frames
from kineograph.request import Prompt
from kineograph.samplers import Sampler, Step

MAX_CLIPS = 1024
FORWARD: Literal["forward"] = "forward"
REVERSED: Literal["reversed"] = "reversed"
USUAL_OVERLAP = {FORWARD: 4, REVERSED: 2}
GROUP = "Long videos"


class ClipOptions(TypedDict, total=False):
    """Options of a long video: how a clip continues the previous one.

    The defaults are the paper's, except clip_overlap and clip_guidance, which are 4 and 0.4 there
    (docs/decisions/0011-seams-that-do-not-jump.md).
    """

    clips: Annotated[
        Integer,
        option(
            1,
            "Number of clips, of `num_frames` each, that continue one another (VidRD): for videos of more frames than "
            "can be sampled together.",
            group=GROUP,
            ge=1,
            le=MAX_CLIPS,
        ),
    ]
    then: Annotated[
        list[Text] | tuple[Text, ...],
        AfterValidator(tuple),
        option((), "Prompts of the second and later clips; the last one is for all further clips.", group=GROUP),
    ]
    clip_order: Annotated[
        Literal["forward", "reversed"] | None,
        option(
            None,
            "Order in which a clip's first frames repeat the end of the previous clip: forward keeps the direction of "
            "motion, and these frames are shown once; reversed, as in the paper, often turns the motion round.",
            group=GROUP,
            shown_default="forward with a model that was trained to continue frames, else reversed",
        ),
    ]
    clip_overlap: Annotated[
        Integer | None,
        option(
            None,
            "Number of a clip's first frames that are guided by the end of the previous clip, less than all.",
            group=GROUP,
            ge=0,
            le=MAX_FRAMES,
            shown_default="2, or 4 in forward order",
        ),
    ]
    clip_noise_ratio: Annotated[
        Number,
        option(4.0, "Ratio of the previous clip's noise to fresh noise in the other frames.", group=GROUP, ge=0),
    ]
    clip_guidance: Annotated[
        Number,
        option(
            0.7,
            "Fraction of the steps in which the first frame follows the previous clip's latents, later frames for "
            "fewer; with 1 it equals the previous clip's last frame.",
            group=GROUP,
            ge=0,
            le=1,
        ),
    ]
    clip_anchor: Annotated[
        Number,
        option(
            0.0,
            "Strength that pulls each clip's mean over its frames to the first clip's, against drift; not in VidRD's "
            "paper.",
            group=GROUP,
            ge=0,
            le=1,
        ),
    ]
    clip_noise_order: Annotated[
        Literal["reversed", "kept"],
        option(
            "reversed",
            "Order of the previous clip's noise: reversed, so that a clip starts where the previous one ended, or "
            "kept, as in the paper's ablation.",
            group=GROUP,
        ),
    ]
    keep_clips: Annotated[
        File | None,
        option(
            None,
            "Folder in which finished clips are kept, so that the same call continues from the last of them, also with "
            "more `clips`.",
            group=GROUP,
            recorded=False,
        ),
    ]


GuidedFrames = Mapping[float, int]  # sigma -> number of frames, from the first, that follow the previous clip there


class Past(NamedTuple):
    """Initial noise of the previous clip, and its latents at every sigma."""

    noise: Latents
    latents: Mapping[float, Latents]


class ClipState(NamedTuple):
    """Number of the next clip, what it reuses of the previous one, and the first clip's mean over frames of x0."""

    number: int = 0
    past: Past | None = None
    first: Mapping[float, Latents] | None = None  # by sigma


def complete_clip_options(options: Mapping[str, Any], *, trained_to_continue: bool) -> dict[str, Any]:
    """Return the order and the overlap of clips, where none is given those that fit the model."""
    follows_video = bool(options["control"]) or options["video"] is not None
    order = options["clip_order"] or (FORWARD if trained_to_continue and not follows_video else REVERSED)
    overlap = options["clip_overlap"]
    return {"clip_order": order, "clip_overlap": USUAL_OVERLAP[order] if overlap is None else overlap}


def count_shared_frames(options: Mapping[str, Any], num_frames: int) -> int:
    """Return the number of frames that a clip shares with the previous one, which are shown once. options: complete."""
    return min(options["clip_overlap"], num_frames - 1) if options["clip_order"] == FORWARD else 0


def count_frames(num_frames: int, clips: int, shared: int) -> int:
    """Return the number of frames of all clips. num_frames: of one; shared: of those, the previous clip's last."""
    return clips * (num_frames - shared) + shared


def before_last(clip: int, num_clips: int) -> bool:
    """Return True for a clip that another one follows."""
    return clip + 1 < num_clips


def sample_clips(
    run_clip: Callable[[ClipState], SamplingRun],
    num_clips: int,
    state: ClipState,
    may_continue: Callable[[int, int], bool] = before_last,
    shared: int = 0,
) -> Iterator[tuple[Latents, ClipState]]:
    """Sample the clips of a video one after the other; yield each clip's latents, and the state for the next clip.

    run_clip      starts a clip from the state: its noise by `initial_noise`, its sampler by `overwrite_guided`
    state         the state to continue from
    may_continue  (number of a clip, `num_clips`) -> True if another clip may continue it: its steps are recorded
    shared        number of first frames that later clips share with the previous one: theirs are left out
    """
    for number in range(state.number, num_clips):
        run, recorded = run_clip(state), list[Step]()
        for step in run.steps:
            if may_continue(number, num_clips):
                recorded.append(step)
            else:
                recorded = [step]
        first = state.first or {each.sigma: each.x0.mean(1, keepdim=True) for each in recorded}
        state = ClipState(number + 1, record_past(run.initial_noise, recorded), first)
        yield recorded[-1].x[:, shared if number else 0 :], state


def continue_clip(plan: Plan, state: ClipState) -> Plan:
    """Return the plan of the next clip: its prompt, noise and sampler, which continue the previous clip's."""
    options = plan.read(ClipOptions)
    plan = replace(plan, clip=state.number, prompts=clip_prompts(plan.prompts, options["then"], state.number))
    if state.past is None:
        return plan
    past, overlap = state.past, min(plan.options["clip_overlap"], len(plan.frames) - 1)
    forward = plan.options["clip_order"] == FORWARD
    if forward and overlap and continues_frames(plan.model.temporal):
        return replace(plan, known_frames=(past.latents[min(past.latents)][:, -overlap:],))
    # `initial_noise` reverses the order of frames: a second reversal keeps it
    past_noise = past._replace(noise=past.noise.flip(1)) if options["clip_noise_order"] == "kept" else past
    if forward:  # the functions below reverse the order of frames
        past = past._replace(latents={at: each.roll(overlap, 1).flip(1) for at, each in past.latents.items()})

    def guided(sigmas: Sequence[float]) -> dict[float, int]:
        return guided_frames(sigmas, overlap, options["clip_guidance"])

    def continue_noise(fresh: Latents) -> Latents:
        if forward:  # frames have noise by their numbers, so shared frames have theirs
            return fresh
        return initial_noise(fresh, past_noise, overlap, options["clip_noise_ratio"])

    def continue_sampler(sampler: Sampler, sigmas: Sequence[float]) -> Sampler:
        counts, strength = guided(sigmas), options["clip_anchor"]
        anchor = {sigma: mean for sigma, mean in (state.first or {}).items() if sigma in counts}
        following = overwrite_guided(sampler, past, counts)

        def adapted(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
            return following(anchor_to_first(denoise, anchor, strength), x, sigmas)

        return plan.adapt_sampler(adapted, sigmas)

    def skip(denoise: Denoise, sigmas: Sequence[float]) -> Denoise:
        return skip_overwritten(denoise, past, guided(sigmas), sigmas)

    # An anchor reads the estimates of all frames; frames of an input video and `prompt_at` belong to frame numbers.
    needs_all = options["clip_anchor"] or plan.footage
    return replace(
        plan,
        continue_noise=continue_noise,
        adapt_sampler=continue_sampler,
        skip_overwritten=plan.skip_overwritten if needs_all or plan.options["prompt_at"] else skip,
    )


def clip_prompts(prompts: tuple[Prompt, ...], then: Sequence[str], clip: int) -> tuple[Prompt, ...]:
    """Return the prompts of a clip, one for each video: their own in the first clip, those of `then` afterwards."""
    return (then[min(clip, len(then)) - 1],) * len(prompts) if clip and then else prompts


def initial_noise(fresh: Latents, past: Past | None, keep: int, ratio: float) -> Latents:
    """Return a clip's initial noise: frame-level noise reversion and past-dependent noise sampling.

    fresh  the clip's own noise, [b n c h w]
    keep   M, the number of frames that take the previous clip's noise, in reversed order; less than n
    ratio  beta, the ratio of the previous clip's noise to fresh noise in the other frames; the paper's is 4
    """
    if not 0 <= keep < fresh.shape[1]:
        raise InputError(f"A clip of {fresh.shape[1]} frames keeps fewer of them from the last clip, got {keep}.")
    if past is None:
        return fresh
    reversed_noise = past.noise.flip(1).to(fresh)
    return torch.cat([reversed_noise[:, :keep], mix(reversed_noise, fresh, ratio)[:, keep:]], dim=1)


def guided_frames(sigmas: Sequence[float], keep: int, share: float) -> dict[float, int]:
    """Return the number of guided frames at each sigma: denoising with staged guidance.

    Of S steps, frame j of `keep` is guided in the first `ceil(share * (1 - j / keep) * S)`. `share` is the paper's
    gamma, 0.4 there; with 1 the first frame is guided to the end.

    >>> list(guided_frames([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], keep=2, share=0.8).values())
    [2, 2, 1, 1]
    """
    steps = len(sigmas) - 1
    counts = [sum(s < ceil((keep - j) * steps / keep * share - 1e-9) for j in range(keep)) for s in range(steps)]
    if share >= 1:
        counts.append(1)
    return {sigma: count for sigma, count in zip(sigmas, counts, strict=False) if count}


def overwrite_guided(sampler: Sampler, past: Past, guided: GuidedFrames) -> Sampler:
    """Wrap a sampler: before each step the previous clip's latents, in reversed order, overwrite the guided frames.

    A multistep sampler takes single steps here.
    """

    @torch.no_grad()
    def wrapped(denoise: Denoise, x: Latents, sigmas: Sequence[float]) -> Iterator[Step]:
        for sigma, to in pairwise(sigmas):
            step, after = sampler(denoise, _overwrite(x, past, guided, sigma), [sigma, to])
            yield step
            x = after.x
        x = _overwrite(x, past, guided, sigmas[-1])
        yield Step(sigmas[-1], x, x)

    return wrapped


def _overwrite(x: Latents, past: Past, guided: GuidedFrames, sigma: float) -> Latents:
    latents, count = past.latents.get(sigma), min(guided.get(sigma, 0), x.shape[1])
    if latents is None or count == 0:
        return x
    return torch.cat([latents.flip(1)[:, :count].to(x), x[:, count:]], dim=1)


def skip_overwritten(denoise: Denoise, past: Past, guided: GuidedFrames, sigmas: Sequence[float]) -> Denoise:
    """Wrap a model whose frames attend to the first frame alone: skip the frames that are overwritten anyway.

    Of the frames that are still guided at the next sigma, only the first is evaluated, since the others attend to it.
    The previous clip's final latents take the place of the skipped estimates.
    """
    final = past.latents[min(past.latents)].flip(1)
    known = {sigma: guided.get(sigma, 0) for sigma in sigmas if sigma in past.latents}
    skipped = {sigma: known.get(to, 0) for sigma, to in pairwise(sigmas) if sigma in known}

    def wrapped(x: Latents, sigma: float) -> Latents:
        count = min(skipped.get(sigma, 0), x.shape[1])
        if count < 2:
            return denoise(x, sigma)
        x0 = denoise(torch.cat([x[:, :1], x[:, count:]], dim=1), sigma)
        return torch.cat([x0[:, :1], final[:, 1:count].to(x0), x0[:, 1:]], dim=1)

    return wrapped


def anchor_to_first(denoise: Denoise, first: Mapping[float, Latents], strength: float) -> Denoise:
    """Wrap a model: pull the mean of its estimate over the frames to the first clip's, at the sigmas in `first`.

    Not in the paper, where a clip depends on its predecessor alone and drifts over many clips.
    """

    def wrapped(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        if (mean := first.get(sigma)) is None:
            return x0
        return x0 + strength * (mean.to(x0) - x0.mean(1, keepdim=True))

    return wrapped


def record_past(noise: Latents, steps: Sequence[Step]) -> Past:
    """Return what the next clip reuses: the initial noise, and the latents of those steps that have all frames."""
    return Past(noise, {step.sigma: step.x for step in steps if step.x.shape[1] == noise.shape[1]})


def check(combination: Combination) -> None:
    """Raise InputError for more prompts than clips, and for options without an effect."""
    options = combination.options
    then, clips = options["then"], options["clips"]
    if not all(text.strip() for text in then):
        raise InputError("a prompt of `then` is empty: describe the clip in a few words")
    if clips <= len(then):
        raise InputError(
            f"there are prompts for {len(then)} clips after the first (`then`), and {clips} `clips`: ask for more"
        )


def unread(combination: Combination) -> dict[str, str]:
    """Return the options without an effect: guidance where no frame is guided, and noise that no clip takes."""
    options, unread = combination.options, dict[str, str]()
    if options["clip_order"] == FORWARD:
        reason = "with the `clip_order` forward each frame has noise of its own"
        unread |= {"clip_noise_ratio": reason, "clip_noise_order": reason}
        if combination.video_model is None and continues_frames(combination.model.temporal):
            reason = f"{combination.model.name} was trained to continue frames, and follows them without guidance"
            return unread | {"clip_guidance": reason, "clip_anchor": reason}
    if options["num_frames"] == 1:
        unread["clip_noise_order"] = "each clip has one frame"
    elif options["clip_overlap"] == options["clip_noise_ratio"] == 0 and options["clip_order"] == REVERSED:
        unread["clip_noise_order"] = "`clip_overlap` and `clip_noise_ratio` are 0, so no clip takes noise of another"
    if not options["clip_guidance"]:
        unread["clip_anchor"] = "it is read while frames are guided, and `clip_guidance` is 0"
    elif not options["clip_overlap"]:
        reason = "no frames continue the previous clip, since `clip_overlap` is 0"
        unread |= {"clip_guidance": reason, "clip_anchor": reason}
    return unread


CLIPS = AddOn(
    (ClipOptions,),
    used=lambda options: options["clips"] > 1 or options["keep_clips"] is not None,
    when="with `clips` above 1",
    check=check,
    unread=unread,
)
