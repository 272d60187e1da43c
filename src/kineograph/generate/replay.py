"""A video is made again from the settings that its file carries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kineograph.errors import InputError, InputWarning
from kineograph.generate.run import OnStep, run_request
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import provenance_differences
from kineograph.models.model import Model
from kineograph.request import Request

LOADED_BY = {
    "source",
    "motion",
    "motion_adapter",
    "adapter",
    "ip_adapter",
    "lora",
    "controlnet",
    "textual_inversion",
    "vae",
    "decoder",
    "config",
    "prediction_type",
    "revision",
    "variant",
}


def replay(
    path: str | Path, *, model: Model | None = None, video_model: Model | None = None, on_step: OnStep | None = None
) -> Video:
    """The video of a file made again from the settings that the file carries.

    model, video_model: what to make it with in place of the recorded models; needed where that was a live pipeline.
    on_step: as for `generate`.

    On the machine that made it, the same bit for bit. Where frames come out different, an InputWarning says so and
    names what else is different: versions, machine, weights.
    Raises InputError when the file carries no settings or its model cannot be loaded.

    >>> import kineograph as kg
    >>> again = kg.replay("fish.mp4")  # doctest: +SKIP
    """
    before = read_settings(path)
    request = Request.recorded(before)
    if video_model is None and "video_model" in before:
        video_model = recorded_model({"model": before["video_model"]})
    video = run_request(model or recorded_model(before), request, on_step, video_model=video_model)
    if before["frames_sha256"] != video.settings["frames_sha256"]:
        causes = provenance_differences(before, video.settings) or ["although nothing that is recorded has changed"]
        warnings.warn(f"the frames differ from those of {path}: {'; '.join(causes)}", InputWarning, stacklevel=2)
    return video


def recorded_model(settings: Mapping[str, Any], *, device: str | None = None) -> Model:
    """The model that made a video, on the same device unless another is given.

    Raises InputError when it was a live pipeline, or is no longer there.
    """
    was = settings["model"]
    if not was["load"]:
        raise InputError(
            f"this video was made with {was['name']}, a pipeline that was open in a program, and no file says where "
            "it came from: open it again and call kineograph.replay(path, model=kineograph.load(pipeline))"
        )
    if strange := set(was["load"]) - LOADED_BY:  # a file may come from anyone
        raise InputError(f"these settings would load a model with unknown arguments: {', '.join(sorted(strange))}")
    lora = [tuple(pair) for pair in was["load"].get("lora", [])]  # JSON makes lists of pairs
    return load(**{**was["load"], "lora": lora, "device": device or was["device"], "dtype": was["dtype"]})
