"""Jobs of generate, animate and edit: their models and arguments, previews after steps, and the files of the result.

A job of several clips keeps those that are finished, and its next attempt, after a crash or a restart, goes on from
them. The seed of a job that states none follows from its id, so all attempts are equal.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from PIL import Image

from kineograph.errors import InputError, shown
from kineograph.generation.call import CallOptions, preview_frame
from kineograph.generation.check import check_prompts, complete
from kineograph.generation.resolve import open_inputs, resolve
from kineograph.generation.run import Progress, run_all
from kineograph.media.video import Video
from kineograph.models.loading.options import SECOND_MODEL, ModelSource, load_arguments, model_sources
from kineograph.models.model import Model
from kineograph.options import declared
from kineograph.service.attempts import Attempt
from kineograph.service.jobs import VIDEO_COMMANDS, Job, JobRequest, seed_of, with_names
from kineograph.service.limited import UPLOAD_LIMITS, check_uploads, run_limited
from kineograph.service.queue import JobQueue

OF_WORKER = {"device", "dtype", "torch_dtype", "token", "cache_dir", "local_files_only", "keep_clips"} | {
    "num_videos_per_prompt",
    "output_type",
}
INPUTS = {"generate": "prompt", "animate": "image", "edit": "video"}  # without which there is no such job
PREVIEW_SECONDS, PREVIEW_SHARE = 2.0, 0.05  # least time between two previews, and their largest share of the time
THUMBNAIL, SPRITESHEET = 320, 1280  # pixels of the longer side, at most
RECENT = 20  # jobs of a model whose median speed is expected of the next one


class Call(NamedTuple):
    """Content of a job: the models that it uses together, and the arguments of the command."""

    sources: list[ModelSource]
    arguments: dict[str, Any]


def generate_video(attempt: Attempt) -> dict[str, Any]:
    """Generate a job's video, write its files into the attempt's folder, and return facts about it."""
    queue, job, started = attempt.queue, attempt.job, time.monotonic()
    sources, arguments = read_call(job)
    prompts, options = read_request(arguments)
    if uploads := list_uploads(queue, job):
        run_limited(check_uploads, {"files": uploads}, UPLOAD_LIMITS, attempt.check)
    model, *second = attempt.models.get(*sources)
    loaded = time.monotonic()
    if options["clips"] > 1:
        options["keep_clips"] = keep_clips(attempt)
    if options["seed"] is None:
        options["seed"] = seed_of(job.id)
    if (engine := engine_before(attempt)) is not None:
        options["engine"] = engine
    plan = resolve(model, prompts, options, open_inputs(options), second[0] if second else None)
    attempt.add_event("engine", {"engine": plan.engine.engine})
    report, preview = attempt.watch_steps(), _previews(attempt, model)

    def watch(progress: Progress) -> None:
        report(progress.done / progress.total)
        preview(progress)

    attempt.check()
    (video,) = run_all(plan, watch)
    _save(replace(video, settings=with_names(video.settings, job)), attempt.make_part())
    _, height, width, _ = video.frames.shape
    ended = time.monotonic()
    return {
        "width": width,
        "height": height,
        "num_frames": len(video),
        "fps": video.fps,
        "seed": video.settings["seed"],
        "engine": plan.engine.engine,
        "frames_sha256": video.settings["frames_sha256"],
        "num_inference_steps": plan.num_inference_steps,
        "seconds": round(ended - started, 3),
        "loading_seconds": round(loaded - started, 3),
    }


def read_request(arguments: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the prompt of a job, alone in a tuple, and its complete options. Raises InputError for invalid ones."""
    options = complete({name: value for name, value in arguments.items() if name != "prompt"})
    return check_prompts([arguments["prompt"]], options["prompt_weights"]), options


def engine_before(attempt: Attempt) -> str | None:
    """Return the engine of the job's first attempt, None in that: the choice may change, and the frames with it."""
    events = attempt.queue.events(job_id=attempt.job.id) if attempt.job.attempt > 1 else []
    return next((str(each.data["engine"]) for each in events if each.kind == "engine"), None)


def keep_clips(attempt: Attempt) -> Path:
    """Return the folder of a job's finished clips, at first those of the job that it extends or changes."""
    files, job = attempt.queue.files, attempt.job
    if job.source_id is not None and not files.clips(job.id).exists():
        files.copy_clips(job.source_id, job.id)
    return files.clips(job.id)


def read_call(job: Job | JobRequest) -> Call:
    """Return the models and the arguments of a job. Raises InputError for what only a worker decides."""
    given = {name: value for name, value in job.options.items() if value is not None}
    own = OF_WORKER | ({*declared(CallOptions)} - {"video_model"})
    for name in given:
        if name == "model" or name in own or name.removeprefix(SECOND_MODEL) in own:
            raise InputError(f"`{name}` is not an option of a job, whose worker decides it: leave it out")
    for name in ("prompt", INPUTS[job.command]):
        if not isinstance(given.get(name), str):
            raise InputError(f"a job of {job.command} has one `{name}`, a text, not {shown(given.get(name))}")
    sources = model_sources(job.model, given)
    of_models = {*load_arguments(given), *(f"{SECOND_MODEL}{name}" for name in load_arguments(given, SECOND_MODEL))}
    left_out = of_models | {"video_model"}
    return Call(sources, {name: value for name, value in given.items() if name not in left_out})


def list_uploads(queue: JobQueue, job: Job) -> list[str]:
    """Return the files that were uploaded for a job."""
    folder = queue.files.inputs(job.id)
    return sorted(str(file) for file in folder.iterdir()) if folder.is_dir() else []


def expected_seconds(queue: JobQueue, model: str, facts: Mapping[str, Any]) -> float | None:
    """Return the time that a video is expected to take, by that of the latest ones of its model; None without any.

    facts: those of a result, as far as they are known: num_inference_steps, num_frames, height, width.
    """
    latest = queue.list_jobs(states=["completed"], commands=VIDEO_COMMANDS, limit=10 * RECENT)
    results = [dict(each.result or {}) for each in latest if each.model == model][:RECENT]
    speeds = [
        _pixels(each) / (each["seconds"] - each["loading_seconds"]) for each in results if "loading_seconds" in each
    ]
    return round(_pixels(facts) / median(speeds), 1) if speeds else None


def _pixels(facts: Mapping[str, Any]) -> float:
    """Return the number of pixels of a video times that of its steps, to which the time is roughly proportional."""
    return float(facts["num_inference_steps"] * facts["num_frames"] * facts["height"] * facts["width"])


def _previews(attempt: Attempt, model: Model) -> Callable[[Progress], None]:
    """Return the function that adds an event with a preview every few steps, in a small share of the time."""
    due = time.monotonic() + PREVIEW_SECONDS

    def preview(progress: Progress) -> None:
        nonlocal due
        if (now := time.monotonic()) < due:
            return
        attempt.add_event("preview", {"image": encode_image(preview_frame(model, progress.step.x0))})
        spent = time.monotonic() - now
        due = now + spent + max(PREVIEW_SECONDS, spent / PREVIEW_SHARE)

    return preview


def encode_image(image: Image.Image) -> str:
    """Return an image as .webp in base64."""
    file = io.BytesIO()
    image.save(file, "webp", quality=70)
    return base64.b64encode(file.getvalue()).decode()


def _save(video: Video, part: Path) -> None:
    video.save(part / "video.mp4")
    thumbnail, sheet = Image.fromarray(video.frames[0]), video.contact_sheet()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail.save(part / "thumbnail.webp", quality=80)
    sheet.thumbnail((SPRITESHEET, SPRITESHEET))
    sheet.save(part / "spritesheet.jpg", quality=85)
