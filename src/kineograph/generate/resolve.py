"""What a request leaves open and the model decides: the method, the solver, how many frames and how fast."""

from __future__ import annotations

from dataclasses import replace

from kineograph.errors import InputError
from kineograph.methods import video_elevator_run
from kineograph.models.model import VIDEO_MODEL_FPS, Model
from kineograph.request import Request

BY_TEMPORAL, BY_IMAGE, BY_BOTH = "videocrafter", "text2video-zero", "video-elevator"


def resolve(model: Model, request: Request, video_model: Model | None = None) -> Request:
    """The request with method and solver, and for a video model its length and frame rate.

    Raises InputError when the method and the model do not go together, and for a motion scale without an adapter.
    """
    method = request.method or _fitting(model, video_model)
    _refuse_misfits(model, video_model, replace(request, method=method))
    (video_model or model).net.check_motion_scale(request.motion_scale, (video_model or model).name)
    temporal = (video_model or model).temporal
    solver = request.solver or (model.temporal.solver if model.temporal else "ddim")
    if temporal is None:
        return replace(request, method=method, solver=solver)
    return replace(
        request,
        method=method,
        solver=solver,
        num_frames=request.num_frames or (None if request.control else temporal.num_frames),
        fps=request.fps or (None if request.control else VIDEO_MODEL_FPS),
    )


def _fitting(model: Model, video_model: Model | None) -> str:
    if video_model is not None:
        return BY_BOTH
    return BY_IMAGE if model.temporal is None else BY_TEMPORAL


def _refuse_misfits(model: Model, video_model: Model | None, request: Request) -> None:
    if request.method == BY_BOTH:
        video_elevator_run.refuse_misfits(model, video_model)
    elif video_model is not None:
        raise InputError(
            f"{request.method} has no use for a second model, {video_model.name}: leave it out, or take the method "
            f"{BY_BOTH}"
        )
    if request.method == BY_TEMPORAL and model.temporal is None:
        raise InputError(
            f"{model.name} is an image model without layers along time: leave the method out, or load it with motion="
            "(--motion-module) or take a video model, such as pocket-video"
        )
    if request.method != BY_TEMPORAL and model.temporal is not None:
        raise InputError(
            f"{model.name} is a video model, and {request.method} is for image models: leave the method out, or take "
            "the image model"
        )
    if request.method != "text2video-zero" and (request.motion is not None or request.smooth_background):
        raise InputError(
            f"{(video_model or model).name} is a video model: what moves is said in the prompt. A camera motion and "
            "smooth_background are for image models (text2video-zero)"
        )
