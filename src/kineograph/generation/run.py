"""Execution of a plan: its clips are sampled and decoded, and each video gets its settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from kineograph.errors import InputError, InputWarning
from kineograph.generation.clip_files import ClipFiles, GeneratedClip
from kineograph.generation.options import find_method
from kineograph.generation.resolve import (
    default_batch_size,
    recorded_options,
    warn_about,
)
from kineograph.latents import Latents
from kineograph.media.footage import Footage
from kineograph.media.mapped_frames import collect_frames, iterate_frames
from kineograph.media.video import Video
from kineograph.methods import controlnet, instruct_pix2pix, sdedit, text2video_zero, vidrd
from kineograph.methods.controlnet import ControlOptions, list_controls
from kineograph.methods.vidrd import ClipState
from kineograph.models.hooks import offload
from kineograph.models.loading.provenance import collect_provenance
from kineograph.models.memory import trim_heap
from kineograph.plan import Plan, SamplingRun, text_chunks
from kineograph.request import SETTINGS_VERSION, SharedOptions, tensor_label
from kineograph.samplers import Step

CELL, UNCHANGED = 8, 10  # pixels; grey levels of 255, of which VAEs change less


class Progress(NamedTuple):
    """Progress of a video, or of a batch: `done` of `total` steps; `step.x0` is the current estimate, as latents."""

    done: int
    total: int
    step: Step


OnStep = Callable[[Progress], None]


def run_all(plan: Plan, on_step: OnStep | None = None) -> list[Video]:
    """Run a plan of any number of prompts, in batches; one by one where clips are kept in files."""
    warn_about(plan)
    keeps = plan.options["keep_clips"] is not None
    alone = keeps or (plan.options["memory"] is not None and plan.options["batch_size"] is None)
    size = 1 if alone else plan.options["batch_size"] or default_batch_size(plan)
    videos = list[Video]()
    for numbers in _batches(plan, size):
        batch = plan.part(numbers.start, numbers.stop)
        videos += [run_with_files(batch, numbers.start, on_step)] if keeps else run(batch, on_step)
    _offload(plan)
    if plan.engine.key:
        from kineograph.models.openvino.engine import shared_engine

        shared_engine().finish(plan.engine.key)
    _warn_of_unchanged(plan, videos)
    return videos


def _offload(plan: Plan) -> None:
    """Move the networks of a live pipeline with model offload back to the CPU; the last would stay on the device."""
    controls = [plan.model.control(each.kind) for each in list_controls(plan.read(ControlOptions))]
    for model in (plan.model, *plan.second_model):
        encoders = [] if model.image_encoder is None else [model.image_encoder.network]
        for network in (*model.networks.values(), model.vae, *encoders, *controls):
            offload(network)


def _warn_of_unchanged(plan: Plan, videos: Sequence[Video]) -> None:
    """Warn if an edit returned the video to edit, but for what the VAE changes."""
    for footage in (plan.edit_footage or plan.start_footage) if plan.strength else ():
        try:
            unchanged = any(is_unchanged(video, footage) for video in videos)
        except InputError:  # the file is gone by now: the videos are made
            continue
        if unchanged:
            stronger = "higher `guidance_scale`, lower `image_guidance_scale`"
            how = stronger if plan.edit_footage else "higher `strength`"
            warnings.warn(
                f"the edit changed next to nothing of {footage.path}: try a {how}, or other words",
                InputWarning,
                stacklevel=4,
            )


def is_unchanged(video: Video, footage: Footage) -> bool:
    """Return True if a video has the frames of this one, but for about what a VAE changes."""
    footage_frames = footage.frames(*video.frames.shape[1:3])
    frames = zip(iterate_frames(video.frames), footage_frames, strict=False)  # the footage may be longer
    difference = [np.abs(_cell_means(after) - _cell_means(before)) for after, before in frames]
    return bool(np.quantile(difference, 0.99) < UNCHANGED)


def _cell_means(frame: np.ndarray) -> np.ndarray:
    """Return the mean colours of cells of 8 x 8 pixels, in which details that a VAE changes average out."""
    height, width, _ = frame.shape
    cell = min(CELL, height, width)
    cells = frame[: height // cell * cell, : width // cell * cell].astype(np.float32)
    return cells.reshape(height // cell, cell, width // cell, cell, 3).mean((1, 3))


def _batches(plan: Plan, size: int) -> Iterator[range]:
    """Yield the numbers of the prompts of each batch.

    Prompts of a batch have equally many chunks of tokens: those that others add to a prompt would change its video.
    """

    def chunks(number: int) -> list[int]:
        part = plan.part(number, number + 1)
        return [text_chunks(part, model) for model in (plan.model, *plan.second_model)]

    for _, equal in groupby(range(len(plan.prompts)), key=chunks):
        numbers = list(equal)
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            yield range(batch[0], batch[-1] + 1)


@torch.no_grad()
def run(plan: Plan, on_step: OnStep | None = None) -> list[Video]:
    """Run a plan; return the videos of its batch, with the settings that generate each again."""
    settings = _settings(plan)
    return _videos(plan, settings, _generate_frames(plan, on_step), on_step)


@torch.no_grad()
def run_with_files(plan: Plan, number: int, on_step: OnStep | None = None) -> Video:
    """Run the plan of one video, going on from its finished clips in `keep_clips`, where new ones are written too.

    number: position of its prompt in the list.
    """
    settings, then = _settings(plan), plan.options["then"]
    free = {"clips", "then"} | ({"seed"} if plan.options["seed"] is None else set())
    of_video = settings | _video_settings(plan, 0)
    key = {name: value for name, value in of_video.items() if name not in free}
    position = {"position": number} if number else {}  # so that equal prompts of a list are different videos
    files = ClipFiles.for_settings(plan.options["keep_clips"], {**key, **position})
    prompts = [str(vidrd.clip_prompts(plan.prompts, then, clip)[0]) for clip in range(plan.options["clips"])]
    with files.lock() as locked:
        if plan.options["seed"] is None and (seed := files.recorded_seed()) is not None:
            plan = replace(plan, seeds=(seed,))
        clips = files.load(prompts, plan.options["clips"], prune=locked)
        state = clips[-1].state if clips else ClipState()
        for latents, after in _sample_clips(plan, on_step, state, may_continue=lambda clip, num_clips: True):
            (frames,) = collect_frames(_decode(plan, latents))
            clips.append(GeneratedClip(frames[None], after))
            if locked:
                files.save(clips[-1], prompts[after.number - 1], plan.seeds[0])
    return _videos(plan, settings, (clip.frames for clip in clips), on_step)[0]


def _videos(
    plan: Plan, settings: Mapping[str, Any], chunks: Iterable[np.ndarray], on_step: OnStep | None
) -> list[Video]:
    """Return the videos of frames [b f h w 3], after their second pass if the plan has one."""
    videos = [Video(frames, plan.fps) for frames in collect_frames(chunks)]
    if plan.options["refine_size"]:
        passes = [sdedit.second_pass(plan, video, number) for number, video in enumerate(videos)]
        refined = [collect_frames(_generate_frames(each, on_step))[0] for each in passes]
        videos = [Video(frames, plan.fps) for frames in refined]
    sources = [each for each in reversed(plan.footage) if each.fps == plan.fps]  # the edited video, then the controls
    sound = next((sound for each in sources if (sound := each.sound()) is not None), None)
    return [
        replace(video, settings={**_video_settings(plan, k), **settings, "frames_sha256": video.digest}, sound=sound)
        for k, video in enumerate(videos)
    ]


def _video_settings(plan: Plan, number: int) -> dict[str, Any]:
    """Return the settings of one video of the batch, as JSON values."""
    part = plan.part(number, number + 1)
    (prompt,), (negative_prompt,), (seed,) = part.prompts, part.negative_prompts, part.seeds
    settings = {"prompt": str(prompt), "negative_prompt": str(negative_prompt), "seed": seed}
    if part.initial_latents:
        settings["latents"] = tensor_label(*part.initial_latents)
    return {name: value for name, value in settings.items() if value != ""}


def _generate_frames(plan: Plan, on_step: OnStep | None) -> Iterator[np.ndarray]:
    """Generate the frames of a plan's clips a few at a time: uint8 [b f h w 3]."""
    for latents, _ in _sample_clips(plan, on_step, ClipState(), vidrd.before_last):
        yield from _decode(plan, latents)


def _decode(plan: Plan, latents: Latents) -> Iterator[np.ndarray]:
    trim_heap()
    for chunk in plan.model.decode_chunks(latents):
        yield np.stack([Video.from_tensor(video).frames for video in chunk])
        del chunk
        trim_heap()


def _sample_clips(
    plan: Plan, on_step: OnStep | None, state: ClipState, may_continue: Callable[[int, int], bool]
) -> Iterator[tuple[Latents, ClipState]]:
    """Sample the latents of a plan's clips, starting from this state; yield each clip's, and the state after it."""
    run_method, clips = find_method(plan.method).run, plan.options["clips"]

    def run_clip(state: ClipState) -> SamplingRun:
        clip = vidrd.continue_clip(plan, state)
        run = run_method(_bind_inputs(clip)) if plan.strength else sdedit.keep_frames(clip)
        return run._replace(steps=_report_progress(run, state.number, clips, on_step))

    return vidrd.sample_clips(run_clip, clips, state, may_continue, plan.shared_frames)


def _bind_inputs(plan: Plan) -> Plan:
    """Bind the clip's part of the inputs, and the background smoothing."""
    if plan.initial_latents and plan.clip == 0:
        (latents,) = plan.initial_latents
        plan = replace(plan, continue_noise=lambda own: latents.to(own).expand_as(own))
    if plan.control_footage:
        plan = controlnet.bind_controls(plan)
    if plan.edit_footage:
        plan = instruct_pix2pix.bind_input(plan)
    if plan.read(SharedOptions)["spacing"] is None:  # with the scheduler's sigmas, its first latents too
        schedule = plan.model.schedule
        plan = replace(plan, start_noise=lambda noise, sigma: schedule.initial_scale(sigma) * noise)
    return text2video_zero.bind_smoothing(sdedit.bind_start(plan))


def _report_progress(run: SamplingRun, number: int, clips: int, on_step: OnStep | None) -> Iterator[Step]:
    for done, step in enumerate(run.steps, number * run.num_steps + 1):
        if on_step:
            on_step(Progress(done, clips * run.num_steps, step))
        yield step


def _settings(plan: Plan) -> dict[str, Any]:
    """Return the settings that the batch's videos have in common, as JSON values."""
    read = {str(each.path): each.digest for each in plan.footage}
    read |= {each.path: each.digest for each in plan.image}
    kinds = [each.kind for each in list_controls(plan.read(ControlOptions))]
    settings = {
        "settings_version": SETTINGS_VERSION,
        **recorded_options(plan),
        "read": read,
        **collect_provenance(plan.model, kinds),
    }
    for each in plan.second_model:
        settings["video_model"] = collect_provenance(each)["model"]
    if len(plan.prompts) > 1:
        settings["batch"] = len(plan.prompts)
    return settings
