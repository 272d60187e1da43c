"""What a request leaves open and the model decides: the method, the solver, how many frames and how fast."""

from __future__ import annotations

from dataclasses import replace

from kineograph.data.request import Request
from kineograph.errors import InputError
from kineograph.models.model import FPS, Model

BY_TEMPORAL, BY_IMAGE = "videocrafter", "text2video-zero"


def settled(model: Model, request: Request) -> Request:
    """The request with method and solver, and for a video model its length and frame rate.

    Raises InputError when the method and the model do not go together.
    """
    method = request.method or (BY_IMAGE if model.temporal is None else BY_TEMPORAL)
    _refuse_misfits(model, replace(request, method=method))
    if model.temporal is None:
        return replace(request, method=method, solver=request.solver or "ddim")
    return replace(
        request,
        method=method,
        solver=request.solver or model.temporal.solver,
        num_frames=request.num_frames or (None if request.control else model.temporal.num_frames),
        fps=request.fps or (None if request.control else FPS),
    )


def _refuse_misfits(model: Model, request: Request) -> None:
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
    if model.temporal is not None and (request.motion is not None or request.smooth_background):
        raise InputError(
            f"{model.name} is a video model: what moves is said in the prompt. A camera motion and smooth_background "
            "are for image models (text2video-zero)"
        )
