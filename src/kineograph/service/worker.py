"""The worker: a process that takes jobs from the queue and generates their videos on one device.

It generates by `kineograph.generate`, `animate` and `edit`, with the options of the command line. A thread renews the
job's lease all the while. A job of several clips keeps those that are finished, and its next attempt, after a crash or
a restart, goes on from them. The seed of a job that states none follows from its id, so all attempts are equal.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import logging
import math
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kineograph.errors import InputError, InputWarning, is_out_of_memory, shown
from kineograph.generation.api import animate, edit, generate
from kineograph.generation.call import CallOptions, preview_frame
from kineograph.generation.run import Progress
from kineograph.media.files import remove_path
from kineograph.media.video import Video
from kineograph.models.loading.options import LoadOptions
from kineograph.models.model import Model
from kineograph.options import declared
from kineograph.service.jobs import Job, LostLeaseError
from kineograph.service.loaded_models import LoadedModels, ModelSource
from kineograph.service.queue import JobQueue

log = logging.getLogger(__name__)

COMMANDS: Mapping[str, Callable[..., Any]] = {"generate": generate, "animate": animate, "edit": edit}
SECOND = "video_"  # prefix of the names of the second model's options
OF_WORKER = {"device", "dtype", "torch_dtype", "token", "cache_dir", "local_files_only", "keep_clips"} | {
    "num_videos_per_prompt",
    "output_type",
}
POLL_SECONDS = 0.5  # between two looks into an empty queue
CLEAN_SECONDS = 60.0
PROGRESS_SECONDS = 0.25  # least time between two records of the progress
PREVIEW_SECONDS, PREVIEW_SHARE = 2.0, 0.05  # least time between two previews, and their largest share of the time
RETRY_SECONDS = 5.0  # after the queue could not be used
TRIES, TRY_SECONDS = 5, 1.0  # to record the end of a job, and the time between two
THUMBNAIL = 320  # pixels
OUT_OF_MEMORY = "out of memory: compute fewer frames at once (`chunk_size`), fewer in all, or a smaller size"
DISK_FULL = "the disk of the service is full: delete videos that are not needed, or ask the operator for room"


class AttemptStoppedError(RuntimeError):
    """The attempt ends before the job does: the worker drains, or the job was cancelled or paused."""


class Call(NamedTuple):
    """Content of a job: the models that it uses together, and the arguments of the command."""

    sources: list[ModelSource]
    arguments: dict[str, Any]


def run_worker(queue: JobQueue, models: LoadedModels, name: str, stop: threading.Event) -> None:
    """Run jobs until `stop` is set; the job that is running then goes back to the queue after its sampling step."""
    period = queue.limits.lease_seconds / 4
    clean_at = announce_at = time.monotonic()
    while not stop.is_set():
        try:
            if (now := time.monotonic()) >= clean_at:
                queue.clean()
                clean_at = now + CLEAN_SECONDS
            if now >= announce_at:
                queue.announce(name, str(models.device), models.names)
                announce_at = now + period
            job = queue.claim(name, models.names)
            if job is not None:
                run_job(queue, models, job, stop)
                announce_at = time.monotonic()  # with the models that are loaded now
        except (sqlite3.OperationalError, OSError):  # the file is locked, or the disk is full
            log.exception("the queue in %s cannot be used now: trying again in %g s", queue.folder, RETRY_SECONDS)
            stop.wait(RETRY_SECONDS)
        else:
            if job is None:
                stop.wait(POLL_SECONDS)
    with suppress(sqlite3.OperationalError):  # it counts as ended after a while anyway
        queue.withdraw(name)


def run_job(queue: JobQueue, models: LoadedModels, job: Job, stop: threading.Event) -> None:
    """Run an attempt of a job, and record how it ended."""
    log.info("%s: attempt %d of %s with %s", job.id, job.attempt, job.command, job.model)
    try:
        with _renewed_lease(queue, models, job):
            ended = _record(_run_attempt(queue, models, job, stop), job)
    except LostLeaseError as error:
        log.warning("%s", error)
    except (KeyboardInterrupt, SystemExit):
        with suppress(LostLeaseError):
            queue.release(job)
        raise
    else:
        log.info("%s: %s", job.id, ended.state)


def _run_attempt(queue: JobQueue, models: LoadedModels, job: Job, stop: threading.Event) -> Callable[[], Job]:
    """Generate a job's video, and return the function that records how that ended."""
    part = queue.files.part(job)
    try:
        with _warnings_as_events(queue, job):
            result = _generate_with_room(queue, models, job, stop)
    except (LostLeaseError, sqlite3.OperationalError):
        raise
    except AttemptStoppedError:
        return lambda: queue.release(job)
    except InputError as error:  # the message may show what the user wrote, which logs do not
        code, message = explain(error)
        log.warning("%s: attempt %d failed: %s", job.id, job.attempt, code)
    except Exception as error:
        code, message = explain(error)
        log.exception("%s: attempt %d failed: %s", job.id, job.attempt, code)
    else:
        return lambda: queue.complete(job, part, result)
    remove_path(part)
    return lambda: queue.fail(job, code, message)


def _record(end: Callable[[], Job], job: Job) -> Job:
    """Record the end of an attempt, again if the queue's file is locked or its disk is full just then."""
    for _ in range(TRIES - 1):
        try:
            return end()
        except sqlite3.OperationalError as error:
            log.warning("%s: the end of attempt %d is not recorded yet: %s", job.id, job.attempt, error)
            time.sleep(TRY_SECONDS)
    return end()


@contextmanager
def _renewed_lease(queue: JobQueue, models: LoadedModels, job: Job) -> Iterator[None]:
    """Renew the lease of a job within the block, in a thread, also while a model is loaded or a step takes minutes."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(queue.limits.lease_seconds / 4):
            try:
                queue.heartbeat(job)
                queue.announce(str(job.lease_owner), str(models.device), models.names)
            except LostLeaseError:  # which the attempt notices after its step
                return
            except sqlite3.OperationalError as error:
                log.warning("%s: the lease is not renewed yet: %s", job.id, error)

    thread = threading.Thread(target=renew, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _warnings_as_events(queue: JobQueue, job: Job) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InputWarning)
        yield
    for each in caught:
        queue.add_event(job, "warning", {"message": str(each.message)})


def _generate_with_room(queue: JobQueue, models: LoadedModels, job: Job, stop: threading.Event) -> dict[str, Any]:
    """Generate a job's video; once more without the models of other jobs if memory is lacking beside them."""
    try:
        return _generate(queue, models, job, stop)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error) or len(models) < 2:
            raise
        log.warning("%s: out of memory beside other models, which are unloaded", job.id)
    models.unload_all()
    return _generate(queue, models, job, stop)


def _generate(queue: JobQueue, models: LoadedModels, job: Job, stop: threading.Event) -> dict[str, Any]:
    """Generate a job's video, write its files into the attempt's folder, and return facts about it."""
    started = time.monotonic()
    sources, arguments = read_call(job)
    model, *second = models.get(*sources)
    watch = _watch_steps(queue, model, job, stop)
    if arguments.get("clips", 1) != 1:
        arguments["keep_clips"] = queue.files.clips(job.id)
    if second:
        arguments["video_model"] = second[0]
    arguments.setdefault("seed", seed_of(job.id))
    watch(None)
    video = COMMANDS[job.command](model, on_step=watch, progress=False, **arguments)
    _save(video, queue.files.make_part(job))
    _, height, width, _ = video.frames.shape
    return {
        "width": width,
        "height": height,
        "num_frames": len(video),
        "fps": video.fps,
        "seed": video.settings["seed"],
        "frames_sha256": video.settings["frames_sha256"],
        "seconds": round(time.monotonic() - started, 3),
    }


def seed_of(job_id: str) -> int:
    """Return the seed of a job that states none."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big") >> 1


def read_call(job: Job) -> Call:
    """Return the models and the arguments of a job. Raises InputError for what only a worker decides."""
    if job.command not in COMMANDS:
        raise InputError(f"a job's command is {', '.join(COMMANDS)}, not {shown(job.command)}")
    given = {name: value for name, value in job.options.items() if value is not None}
    names, own = declared(LoadOptions), OF_WORKER | ({*declared(CallOptions)} - {"video_model"})
    for name in given:
        if name in own or name.removeprefix(SECOND) in own:
            raise InputError(f"`{name}` is not an option of a job, whose worker decides it: leave it out")
    if not isinstance(given.get("prompt", ""), str):
        raise InputError(f"a job generates one video: `prompt` is a text, not {shown(given['prompt'])}")
    sources = [ModelSource(job.model, {name: given.pop(name) for name in names if name in given})]
    of_second = {name: given.pop(f"{SECOND}{name}") for name in names if f"{SECOND}{name}" in given}
    if "video_model" in given:
        sources.append(ModelSource(given.pop("video_model"), of_second))
    elif of_second:
        raise InputError(f"`{SECOND}{next(iter(of_second))}` belongs to a second model: give `video_model` too")
    return Call(sources, given)


def _watch_steps(queue: JobQueue, model: Model, job: Job, stop: threading.Event) -> Callable[[Progress | None], None]:
    """Return the function that is called after each step: it records progress, and raises to end the attempt."""
    recorded, record_at, preview_at = 0.0, 0.0, time.monotonic() + PREVIEW_SECONDS

    def watch(progress: Progress | None) -> None:
        nonlocal recorded, record_at, preview_at
        if stop.is_set():
            raise AttemptStoppedError
        try:
            current = queue.check_attempt(job)
            if current.cancel_requested or current.paused:
                raise AttemptStoppedError
            if progress is None:
                return
            percent = min(99.0, math.floor(100 * progress.done / progress.total))
            if percent > recorded and (now := time.monotonic()) >= record_at:
                queue.heartbeat(job, percent)
                recorded, record_at = percent, now + PROGRESS_SECONDS
            if (now := time.monotonic()) >= preview_at:
                queue.add_event(job, "preview", {"image": _encode_preview(model, progress)})
                spent = time.monotonic() - now
                preview_at = now + spent + max(PREVIEW_SECONDS, spent / PREVIEW_SHARE)
        except sqlite3.OperationalError as error:  # locked, or a full disk: the next step tries again
            log.warning("%s: progress is not recorded: %s", job.id, error)

    return watch


def _encode_preview(model: Model, progress: Progress) -> str:
    """Return the middle frame of a step's estimate as a small .webp in base64."""
    file = io.BytesIO()
    preview_frame(model, progress.step.x0).save(file, "webp", quality=70)
    return base64.b64encode(file.getvalue()).decode()


def _save(video: Video, part: Path) -> None:
    video.save(part / "video.mp4")
    thumbnail = Image.fromarray(video.frames[0])
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail.save(part / "thumbnail.webp", quality=80)
    video.contact_sheet().save(part / "spritesheet.jpg", quality=85)


def explain(error: Exception) -> tuple[str, str]:
    """Return the code and the message of a job that failed; details that are no user's concern stay in the log."""
    if isinstance(error, InputError):
        return "invalid_request", str(error)
    if is_out_of_memory(error):
        return "out_of_memory", OUT_OF_MEMORY
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return ("disk_full", DISK_FULL) if full else ("file_error", error.strerror or type(error).__name__)
    return "internal_error", f"an error of the program, {type(error).__name__}: the worker's log has its traceback"
