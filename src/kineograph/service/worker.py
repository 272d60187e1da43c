"""The worker: a process that takes jobs from the queue and runs them on one device, and their leases and ends.

A thread renews a job's lease as long as it runs. Another thread takes short jobs, such as checks of requests, whose
work is done in processes of their own, so that they do not wait for a video.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kineograph.errors import InputError, InputWarning, is_out_of_memory
from kineograph.media.files import remove_path
from kineograph.service.attempts import Attempt, AttemptStoppedError
from kineograph.service.customise_jobs import run_customisation
from kineograph.service.jobs import LONG_COMMANDS, SHORT_COMMANDS, VIDEO_COMMANDS, Job, LostLeaseError, with_names
from kineograph.service.loaded_models import LoadedModels
from kineograph.service.queue import JobQueue
from kineograph.service.short_jobs import SHORT_JOBS
from kineograph.service.video_jobs import generate_video

log = logging.getLogger(__name__)

# What a worker does for a job: it writes files into the attempt's folder, and returns facts about the result.
COMMANDS: Mapping[str, Callable[[Attempt], dict[str, Any]]] = {
    **dict.fromkeys(VIDEO_COMMANDS, generate_video),
    "customise": run_customisation,
    **SHORT_JOBS,
}
POLL_SECONDS = 0.5  # between two looks into an empty queue
CLEAN_SECONDS = 60.0
RETRY_SECONDS = 5.0  # after the queue could not be used
TRIES, TRY_SECONDS = 5, 1.0  # to record the end of a job, and the time between two
OUT_OF_MEMORY = "out of memory: compute fewer frames at once (`chunk_size`), fewer in all, or a smaller size"
DISK_FULL = "the disk of the service is full: delete videos that are not needed, or ask the operator for room"


def run_worker(queue: JobQueue, models: LoadedModels, name: str, stop: threading.Event) -> None:
    """Run jobs until `stop` is set; the job that is running then goes back to the queue after its sampling step."""
    period = queue.limits.lease_seconds / 4
    clean_at = announce_at = time.monotonic()
    short = threading.Thread(target=_run_short_jobs, args=(queue, models, name, stop), name="short jobs", daemon=True)
    short.start()
    while not stop.is_set():
        with _usable_queue(queue, stop):
            if (now := time.monotonic()) >= clean_at:
                queue.clean()
                clean_at = now + CLEAN_SECONDS
            if now >= announce_at:
                queue.announce(name, str(models.device), models.names)
                announce_at = now + period
            job = queue.claim(name, models.names, LONG_COMMANDS)
            if job is None:
                stop.wait(POLL_SECONDS)
            else:
                run_job(queue, models, job, stop)
                announce_at = time.monotonic()  # with the models that are loaded now
    short.join()
    with suppress(sqlite3.OperationalError):  # it counts as ended after a while anyway
        queue.withdraw(name)


def _run_short_jobs(queue: JobQueue, models: LoadedModels, name: str, stop: threading.Event) -> None:
    try:
        while not stop.is_set():
            with _usable_queue(queue, stop):
                job = queue.claim(name, (), SHORT_COMMANDS)
                if job is None:
                    stop.wait(POLL_SECONDS)
                else:
                    run_job(queue, models, job, stop)
    finally:
        stop.set()  # an error of the program ends the worker, not this thread alone


@contextmanager
def _usable_queue(queue: JobQueue, stop: threading.Event) -> Iterator[None]:
    """Wait a while after the block where the queue's file is locked in it, or its disk is full."""
    try:
        yield
    except (sqlite3.OperationalError, OSError):
        log.exception("the queue in %s cannot be used now: trying again in %g s", queue.folder, RETRY_SECONDS)
        stop.wait(RETRY_SECONDS)


def run_job(queue: JobQueue, models: LoadedModels, job: Job, stop: threading.Event) -> None:
    """Run an attempt of a job, and record how it ended."""
    log.info("%s: attempt %d of %s with %s", job.id, job.attempt, job.command, job.model)
    try:
        with _renewed_lease(queue, models, job):
            ended = _record(_run_attempt(Attempt(queue, models, job, stop)), job)
    except LostLeaseError as error:
        log.warning("%s", error)
    except (KeyboardInterrupt, SystemExit):
        with suppress(LostLeaseError):
            queue.release(job)
        raise
    else:
        log.info("%s: %s", job.id, ended.state)


def _run_attempt(attempt: Attempt) -> Callable[[], Job]:
    """Run a job's command, and return the function that records how that ended."""
    queue, job = attempt.queue, attempt.job
    part = queue.files.part(job)
    try:
        with _warnings_as_events(queue, job):
            result = _run_with_room(attempt)
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
    return lambda: queue.fail(job, code, with_names(message, job))


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
    if job.command in SHORT_COMMANDS:  # whose thread must not change the filters, which are those of the process
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InputWarning)
        yield
    for each in caught:
        queue.add_event(job, "warning", {"message": with_names(str(each.message), job)})


def _run_with_room(attempt: Attempt) -> dict[str, Any]:
    """Run a job's command; once more without the models of other jobs if memory is lacking beside them."""
    models, job = attempt.models, attempt.job
    try:
        return COMMANDS[job.command](attempt)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error) or len(models) < 2 or job.command in SHORT_COMMANDS:
            raise
        log.warning("%s: out of memory beside other models, which are unloaded", job.id)
    models.unload_all()
    return COMMANDS[job.command](attempt)


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
