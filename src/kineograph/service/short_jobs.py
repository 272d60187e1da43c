"""Jobs of seconds: checks of requests, settings of uploaded files, and previews of control maps.

Each runs in a process of its own with limits of time and memory, see `limited.py`, also while a video is sampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from kineograph.errors import InputError, InputWarning, check_integer
from kineograph.generation.check import check
from kineograph.generation.options import GenerateOptions, with_plugins
from kineograph.generation.recorded import RecordedVideo, list_named_sources, recorded_request
from kineograph.generation.resolve import Decided, decide, fit_memory, open_inputs
from kineograph.media.footage import open_footage
from kineograph.media.metadata import read_video_metadata
from kineograph.methods.vidrd import count_frames
from kineograph.models.annotators import load_annotator
from kineograph.models.loading.describe import describe
from kineograph.models.memory import explain_too_large, measure, predict_peak
from kineograph.options import changed
from kineograph.plan import Combination
from kineograph.service.attempts import Attempt
from kineograph.service.jobs import JobRequest, with_names
from kineograph.service.limited import UPLOAD_LIMITS, Limits, check_uploads, run_limited
from kineograph.service.loaded_models import device_memory
from kineograph.service.video_jobs import encode_image, expected_seconds, list_uploads, read_call, read_request

CHECK_LIMITS = Limits(120, 4 << 30)
MAP_SIDE = 512  # pixels of a control map's longer side


# --- in the worker


def run_check(attempt: Attempt) -> dict[str, Any]:
    """Return whether a request would be refused, and why; or what it makes, in what time and memory.

    The job's options: command, model and options of the request.
    """
    models, given = attempt.models, dict(attempt.job.options)
    memory = device_memory(models.device)
    placed = {"device": str(models.device), "dtype": models.dtype, "memory": min(memory, 1e18)}
    # CUDA reserves more memory than any limit for files would allow
    limits = CHECK_LIMITS if models.device.type == "cpu" else CHECK_LIMITS._replace(bytes=None)
    try:
        if uploads := list_uploads(attempt.queue, attempt.job):
            run_limited(check_uploads, {"files": uploads}, UPLOAD_LIMITS, attempt.check)
        result = run_limited(check_video_request, {"given": given, **placed}, limits, attempt.check)
    except InputError as error:
        result = {"accepted": False, "error": str(error)}
    if "num_frames" in result:
        result["expected_seconds"] = expected_seconds(attempt.queue, given["model"], result)
    return _without_files(attempt, with_names(result, attempt.job))


def run_inspect(attempt: Attempt) -> dict[str, Any]:
    """Return the settings that an uploaded file carries. The job's option: file."""
    return _without_files(attempt, run_limited(inspect_file, attempt.job.options, UPLOAD_LIMITS, attempt.check))


def run_preview(attempt: Attempt) -> dict[str, Any]:
    """Return the control map of one frame of a video. The job's options: file, kind, frame."""
    return _without_files(attempt, run_limited(preview_map, attempt.job.options, CHECK_LIMITS, attempt.check))


def _without_files(attempt: Attempt, result: dict[str, Any]) -> dict[str, Any]:
    attempt.make_part()  # which stays empty
    return result


# --- in a process with limits


def check_video_request(given: Mapping[str, Any], device: str, dtype: str | None, memory: float) -> dict[str, Any]:
    """Return what a request makes, or why it is refused, without reading weights. memory: bytes of the device."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", InputWarning)
            made = _decide(JobRequest(**given), device, dtype, memory)
    except InputError as error:
        return {"accepted": False, "error": str(error)}
    return {"accepted": True, **made, "warnings": [str(each.message) for each in caught]}


def _decide(request: JobRequest, device: str, dtype: str | None, memory: float) -> dict[str, Any]:
    sources, arguments = read_call(request)
    _, options = read_request(arguments)
    inputs = open_inputs(options)
    placed = {"device": device, "dtype": dtype}
    found = [describe(each.name, **{**each.options, **placed}) for each in sources]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return {}  # only the weights say what they are
    combination = check(known[0], known[1] if len(known) > 1 else None, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # of memory that other models take now
        decided = decide(combination, inputs)
        peak = _predict_memory(combination, decided, memory)
    return {
        "method": combination.method,
        "width": decided.width,
        "height": decided.height,
        "num_frames": count_frames(decided.num_frames, options["clips"], decided.shared_frames),
        "fps": decided.fps,
        "num_inference_steps": options["num_inference_steps"],
        "expected_memory": peak,
        "device_memory": round(memory),
    }


def _predict_memory(combination: Combination, decided: Decided, memory: float) -> int | None:
    """Return the peak memory of a request in bytes; None if only the weights determine it.

    Raises InputError for more than the device has.
    """
    model = combination.model
    if model.networks is None or combination.video_model is not None:
        return None
    run = fit_memory(combination, decided.num_frames, decided.height, decided.width, decided.window)
    peak = predict_peak(model.networks, measure(model.networks, model.temporal, run), run).total
    if peak > memory:
        raise InputError(explain_too_large(model, run, peak, memory))
    return round(peak)


def inspect_file(file: str) -> dict[str, Any]:
    """Return the settings of a file, as a request too, and the files, folders and repositories that they name."""
    path = Path(file)
    check_uploads([file])
    footage, metadata = open_footage(path), read_video_metadata(path)
    settings = dict(metadata.settings) if metadata else {}
    shape = {"num_frames": len(footage), "height": footage.height, "width": footage.width, "fps": footage.fps}
    found: dict[str, Any] = {**shape, "settings": settings, "request": None, "sources": [], "problem": None}
    if not settings:
        return found
    try:
        prompt, options = recorded_request(settings)
        sources = list_named_sources(RecordedVideo(path, settings, prompt, options))
    except InputError as error:
        return found | {"problem": str(error)}
    given = {name: options[name] for name in changed(options, *with_plugins(GenerateOptions))}
    load = {name: value for name, value in settings["model"]["load"].items() if name != "source"}
    model = settings["model"]["load"].get("source", settings["model"]["name"])
    request = {"prompt": prompt, "seed": settings["seed"], **given, **load, "model": model}
    return found | {
        "request": {name: value for name, value in request.items() if value not in (None, [], {}, "")},
        "sources": sources,
    }


def preview_map(file: str, kind: str, frame: int) -> dict[str, Any]:
    """Return the control map of one frame as a small .webp in base64."""
    check_uploads([file])
    footage = open_footage(file)
    check_integer("`frame`", frame, 0, len(footage) - 1)
    annotate = load_annotator(kind)
    scale = min(1.0, MAP_SIDE / max(footage.width, footage.height))
    size = max(1, round(scale * footage.height)), max(1, round(scale * footage.width))
    (pixels,) = islice(footage.frames(*size), frame, frame + 1)
    image = Image.fromarray(annotate(pixels))
    return {
        "kind": kind,
        "frame": frame,
        "num_frames": len(footage),
        "width": image.width,
        "height": image.height,
        "image": encode_image(image),
    }


SHORT_JOBS: Mapping[str, Callable[[Attempt], dict[str, Any]]] = {
    "check": run_check,
    "inspect": run_inspect,
    "preview": run_preview,
}
