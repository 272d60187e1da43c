"""Execution of a request: its clips are sampled and decoded, and the video gets its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kineograph.generation.clips import ClipFiles, OnStep, generate_clips
from kineograph.generation.resolve import resolve, warn_about
from kineograph.media.video import Video
from kineograph.methods import controlnet, instruct_pix2pix, text2video_zero, video_elevator, videocrafter
from kineograph.methods.vidrd import ClipState
from kineograph.models.loading.provenance import collect_provenance
from kineograph.models.model import Model
from kineograph.plan import Plan, RunMethod
from kineograph.request import SETTINGS_VERSION, Request

METHODS: Mapping[str, RunMethod] = {
    "text2video-zero": text2video_zero.run,
    "instruct-pix2pix": instruct_pix2pix.run,
    "videocrafter": videocrafter.run,
    "video-elevator": video_elevator.run,
}


@torch.no_grad()
def run_request(
    model: Model,
    request: Request,
    on_step: OnStep | None = None,
    *,
    video_model: Model | None = None,
    keep_clips: Path | None = None,
) -> Video:
    """Generate the video of a request, with the settings that reproduce it.

    video_model: the second model of "video-elevator".
    keep_clips: a folder for finished clips; a request that was interrupted continues from the last of them.
    """
    request, plan = resolve(model, request, video_model)
    warn_about(model, request, plan)
    settings = _settings(model, request, plan)
    plan = replace(plan, add_control=controlnet.bind_controls(model, request, plan))
    files = None if keep_clips is None else ClipFiles.for_settings(keep_clips, settings)
    frames, state = ([], ClipState()) if files is None else files.load()
    clips = generate_clips(METHODS[plan.method], model, request, plan, on_step, state)
    frames += [clip.frames for clip in (clips if files is None else files.save(clips))]
    video = Video(np.concatenate(frames), plan.inputs.fps)
    return replace(video, settings={**settings, "frames_sha256": video.digest})


def _settings(model: Model, request: Request, plan: Plan) -> dict[str, Any]:
    """Return all settings that reproduce the video, as JSON would return them."""
    options = asdict(replace(request, seed=plan.seed, height=plan.height, width=plan.width))
    read = {str(each.path): each.digest for each in plan.inputs.footage}
    if plan.inputs.image:
        read[plan.inputs.image.path] = plan.inputs.image.digest
    options["control"], options["then"] = list(options["control"]), list(options["then"])
    options["elevation"]["refine_at"] = list(request.elevation.refine_at)
    kinds = [control.kind for control in request.control]
    second = {"video_model": collect_provenance(plan.video_model)["model"]} if plan.video_model else {}
    return {
        "settings_version": SETTINGS_VERSION,
        **options,
        "read": read,
        **collect_provenance(model, kinds),
        **second,
    }
