"""Resolution of a request: the model decides what the request leaves open, and both become a plan."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import replace

from kineograph.errors import InputError, InputWarning
from kineograph.methods import video_elevator, videocrafter
from kineograph.models.model import VIDEO_MODEL_FPS, Model
from kineograph.plan import Plan, open_inputs, video_size
from kineograph.request import Request

IMAGE_METHOD, VIDEO_METHOD, TWO_MODEL_METHOD = "text2video-zero", "videocrafter", "video-elevator"


def resolve(model: Model, request: Request, video_model: Model | None = None) -> tuple[Request, Plan]:
    """Return the request with its method and sampler (for a video model also number of frames and fps), and the plan.

    Raises InputError when the method and the model do not fit, and for inputs that cannot be used.
    """
    method = request.method or _default_method(model, video_model)
    _check_method(model, video_model, method, request)
    with_motion = video_model or model  # the model that may have temporal layers
    with_motion.net.check_motion_scale(request.motion_scale, with_motion.name)
    sampler = request.sampler or (model.temporal.sampler if model.temporal else "ddim")
    request = replace(request, method=method, sampler=sampler)
    if with_motion.temporal is not None and not request.control:
        num_frames = request.num_frames or with_motion.temporal.num_frames
        request = replace(request, num_frames=num_frames, fps=request.fps or VIDEO_MODEL_FPS)
    inputs = open_inputs(request)
    height, width = video_size(request, inputs, model.default_size, model.vae_scale_factor)
    plan = Plan(
        method=method,
        sampler=sampler,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        height=height,
        width=width,
        latent_shape=(1, *model.latent_shape(height, width)),
        inputs=inputs,
        video_model=video_model,
    )
    return request, plan


def _default_method(model: Model, video_model: Model | None) -> str:
    if video_model is not None:
        return TWO_MODEL_METHOD
    return IMAGE_METHOD if model.temporal is None else VIDEO_METHOD


def _check_method(model: Model, video_model: Model | None, method: str, request: Request) -> None:
    if method == TWO_MODEL_METHOD:
        video_elevator.check_models(model, video_model)
    elif video_model is not None:
        raise InputError(
            f"{method} has no use for a second model, {video_model.name}: leave it out, or choose the method "
            f"{TWO_MODEL_METHOD}"
        )
    if method == VIDEO_METHOD and model.temporal is None:
        raise videocrafter.image_model_error(model)
    if method != VIDEO_METHOD and model.temporal is not None:
        raise InputError(
            f"{model.name} is a video model, and {method} is for image models: leave the method out, or use "
            "the image model"
        )
    if method != IMAGE_METHOD and (request.motion is not None or request.smooth_background):
        raise InputError(
            f"{(video_model or model).name} is a video model: describe the motion in the prompt. A camera motion and "
            "smooth_background are for image models (text2video-zero)"
        )


def warn_about(model: Model, request: Request, plan: Plan) -> None:
    """Warn of words that the model does not know, a customised subject that no prompt names, and too long a window."""
    text = " ".join([request.prompt, *request.then, request.negative_prompt])
    subject = (model.subject or "").lower().split()
    if unknown := [word for word in model.unknown_words(text) if word not in subject]:
        _warn(f"{model.name} has never seen the words {', '.join(unknown)}")
    _warn_of_unnamed_subject(model, [request.prompt, *request.then])
    if plan.video_model is not None:
        _warn_of_unnamed_subject(plan.video_model, [request.elevation.video_prompt or request.prompt])
    _warn_of_long_window(plan.video_model or model, request.window, len(plan.frames))


def _warn_of_unnamed_subject(model: Model, prompts: Sequence[str]) -> None:
    text = " ".join(" ".join(prompts).lower().split())
    if model.subject is not None and model.subject.lower() not in text:
        _warn(
            f"{model.name} was customised to {model.subject!r}, and the prompt does not say that: name it, as in "
            f"'a {model.subject} ...', or leave the adapter out"
        )


def _warn_of_long_window(model: Model, window: int | None, frames: int) -> None:
    trained = model.temporal.num_frames if model.temporal else frames
    if window is not None and min(window, frames) > trained:
        _warn(
            f"{model.name} was trained on {trained} frames at once, and a window of {window} shows it more: the "
            "quality may be lower. Leave the window out, or make it shorter"
        )


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=5)
