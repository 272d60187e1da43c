"""A request becomes a video."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.errors import InputWarning
from kineograph.generate import clip_files
from kineograph.generate.clips import OnStep, Progress, drawn
from kineograph.generate.resolve import resolve
from kineograph.media.video import Video
from kineograph.methods import instruct_pix2pix_run, text2video_zero_run, video_elevator_run, videocrafter_run
from kineograph.models.loading.provenance import collect_provenance
from kineograph.models.model import Model
from kineograph.plan import Clip, Plan, open_inputs, size
from kineograph.request import Request

METHODS = {
    "text2video-zero": text2video_zero_run.plan,
    "instruct-pix2pix": instruct_pix2pix_run.plan,
    "videocrafter": videocrafter_run.plan,
    "video-elevator": video_elevator_run.plan,
}
__all__ = ["OnStep", "Progress", "made"]


def run_request(
    model: Model,
    request: Request,
    on_step: OnStep | None = None,
    *,
    video_model: Model | None = None,
    keep_clips: Path | None = None,
) -> Video:
    """The video that a request asks for, with the settings that make it again.

    video_model: the second model of "video-elevator".
    keep_clips: a folder where finished clips are kept, and from which they are taken when it is made again.
    """
    request = resolve(model, request, video_model)
    start = _start(model, request)._replace(video_model=video_model)
    said = " ".join([request.prompt, *request.then, request.negative_prompt])
    if unknown := _unknown_words(model, said):
        warnings.warn(f"{model.name} has never seen the words {', '.join(unknown)}", InputWarning, stacklevel=2)
    _warn_of_an_unsaid_subject(model, [request.prompt, *request.then])
    if video_model is not None:
        _warn_of_an_unsaid_subject(video_model, [request.elevation.video_prompt or request.prompt])
    _warn_of_a_long_window(video_model or model, request.window, len(start.frames))
    settings = _settings(model, request, start)
    frames = _frames(model, request, start, on_step, keep_clips and clip_files.place(keep_clips, settings))
    video = Video(frames, start.inputs.fps)
    return replace(video, settings={**settings, "frames_sha256": video.digest})


def _unknown_words(model: Model, said: str) -> list[str]:
    """The words that the model has never seen, of which those of its subject are none."""
    own = (model.subject or "").lower().split()
    return [word for word in model.unknown_words(said) if word not in own]


def _warn_of_an_unsaid_subject(model: Model, prompts: Sequence[str]) -> None:
    """A subject that no prompt names is not drawn, or by chance."""
    said = " ".join(" ".join(prompts).lower().split())
    if model.subject is not None and model.subject.lower() not in said:
        warnings.warn(
            f"{model.name} was customised to {model.subject!r}, and the prompt does not say that: say it, as in "
            f"'a {model.subject} ...', or leave the adapter out",
            InputWarning,
            stacklevel=3,
        )


def _warn_of_a_long_window(model: Model, window: int | None, frames: int) -> None:
    trained = model.temporal.num_frames if model.temporal else frames
    if window is not None and min(window, frames) > trained:
        warnings.warn(
            f"{model.name} was trained on {trained} frames at once, and a window of {window} shows it more: the video "
            "may come out worse. Leave the window out, or make it shorter",
            InputWarning,
            stacklevel=3,
        )


def _frames(model: Model, request: Request, start: Plan, on_step: OnStep | None, at: Path | None) -> np.ndarray:
    frames, clip = clip_files.kept(at) if at else ([], Clip())
    clips = drawn(METHODS[str(request.method)], model, request, start, on_step, clip)
    frames += [each.frames for each in (clip_files.keeping(at, clips) if at else clips)]
    return np.concatenate(frames)


def _settings(model: Model, request: Request, start: Plan) -> dict[str, Any]:
    """All that makes the video again, as JSON would bring it back."""
    asked = asdict(replace(request, seed=start.seed, height=start.height, width=start.width))
    read = {str(each.path): each.digest for each in start.inputs.footage}
    if start.inputs.picture:
        read[start.inputs.picture.path] = start.inputs.picture.digest
    asked["control"], asked["then"] = list(asked["control"]), list(asked["then"])
    asked["elevation"]["refine_at"] = list(request.elevation.refine_at)
    kinds = [control.kind for control in request.control]
    second = {"video_model": collect_provenance(start.video_model)["model"]} if start.video_model else {}
    return {**asked, "read": read, **collect_provenance(model, kinds), **second}


def _start(model: Model, request: Request) -> Plan:
    inputs = open_inputs(request)
    height, width = size(request, inputs, model.default_size, model.factor)
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return Plan(seed, height, width, (1, *model.latent_shape(height, width)), inputs, str(request.solver))
