"""Jobs of the queue as plain records, the limits of a queue, and the errors of both."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from kineograph.errors import (
    InputError,
    check_choice,
    check_integer,
    check_number,
    check_plain_value,
    check_text,
    shown,
)

MAX_TEXT = 200  # characters of owners, models and keys
MAX_OPTIONS = 1 << 20  # bytes of a job's options as JSON
MAX_PRIORITY = 100
MAX_MESSAGE = 1000  # characters of a job's error message

VIDEO_COMMANDS = ("generate", "animate", "edit")
# They are done in seconds, in a process of their own with limits of time and memory, also while a video is sampled.
SHORT_COMMANDS = ("check", "inspect", "preview")
LONG_COMMANDS = (*VIDEO_COMMANDS, "customise")
JOB_ID = re.compile(rf"(video|customise|{'|'.join(SHORT_COMMANDS)})_[0-9a-f]{{32}}")


JobState = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
STATES: tuple[JobState, ...] = get_args(JobState)
FINISHED: tuple[JobState, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class JobRequest:
    """Content of a new job.

    Attributes:
        command: one of VIDEO_COMMANDS, SHORT_COMMANDS, or "customise".
        model: the model's name, by which a worker prefers jobs whose model it has loaded.
        options: of the command and of `load`, by parameter, as in a run file of the command line; JSON values.
        metadata: what the submitter keeps beside them. Workers read one key: `names`, the submitter's names of paths in
            the options, which messages and the video's settings have in their place.
        source_id: the job whose result this one changes or extends.
        idempotency_key: unique for an owner; a second request with it is the first one, if both are equal.
        sent_sha256: of the request as it was sent, by which equal ones are told; None for that of these values.
        job_id: of `new_job_id`, for files that are there before the job; None for a new one.
    """

    command: str
    model: str
    options: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    source_id: str | None = None
    idempotency_key: str | None = None
    sent_sha256: str | None = None
    job_id: str | None = None

    def __post_init__(self) -> None:
        check_choice("a job's `command`", self.command, (*LONG_COMMANDS, *SHORT_COMMANDS))
        check_name("model", self.model)
        if self.idempotency_key is not None:
            check_name("idempotency_key", self.idempotency_key)
        check_integer("`priority`", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.job_id is not None and not JOB_ID.fullmatch(self.job_id):
            raise InputError(f"`job_id` is one of new_job_id(), not {shown(self.job_id)}")
        for values in (self.options, self.metadata):
            check_plain_value(values, "a job's options")
        size = len(to_json(self.options)) + len(to_json(self.metadata))
        if size > MAX_OPTIONS:
            raise InputError(f"a job's options have at most {MAX_OPTIONS:,} bytes as JSON, not {size:,}")


@dataclass(frozen=True)
class Job:
    """A job as the queue has it.

    Attributes:
        number: position in the order of submission.
        attempt: number of times that a worker took it, by which a worker's writes are told from its successor's.
        failures: attempts that ended with their worker.
        lease_owner: the worker that runs it.
        progress: per cent of its steps.
        created_at, started_at, finished_at, expires_at, deleted_at: seconds since 1970. expires_at: of the record and
            its files; None before the end, and for a job with a star. deleted_at: None unless it was deleted.
        error_code, error_message: one word and one line, of a job that failed.
        result: facts, of a job that is completed; about a video: width, height, num_frames, fps, seed, ...
        bytes: of the result's files.
    """

    number: int
    id: str
    owner: str
    state: JobState
    command: str
    model: str
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]
    priority: int
    source_id: str | None
    idempotency_key: str | None
    attempt: int
    failures: int
    lease_owner: str | None
    cancel_requested: bool
    paused: bool
    starred: bool
    progress: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    deleted_at: float | None
    error_code: str | None
    error_message: str | None
    result: Mapping[str, Any] | None
    bytes: int

    @property
    def finished(self) -> bool:
        """True for a job whose state will not change."""
        return self.state in FINISHED


COLUMNS = ", ".join(each.name for each in fields(Job))


def read_job(row: sqlite3.Row | tuple[Any, ...]) -> Job:
    """Return the job of a row of `COLUMNS`."""
    values = dict(zip((each.name for each in fields(Job)), row, strict=True))
    for name in ("options", "metadata", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in ("cancel_requested", "paused", "starred"):
        values[name] = bool(values[name])
    return Job(**values)


class Event(NamedTuple):
    """An entry of the table of events. number: increases over all jobs.

    kind: "state" (data: the state, and the error of a failed job), "progress" (data: per cent), "preview" (data: an
    image in base64), "warning" (data: the message), "engine" (data: that of the attempt).
    """

    number: int
    job_id: str
    at: float
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class QueueLimits:
    """Limits of a queue.

    Attributes:
        queued: jobs that wait; those of SHORT_COMMANDS are counted apart.
        queued_per_owner: those of one owner.
        lease_seconds: time after which a worker that sends no heartbeat counts as dead.
        failures: attempts that end with their worker, until the job fails.
        look_ahead: jobs at the front of the queue of which a worker prefers one whose model it has loaded.
        passes: number of times that the first job is passed over by others.
        keep_seconds: time for which finished jobs and their results are kept.
        short_seconds: that of finished jobs of SHORT_COMMANDS.
        deleted_seconds: time for which a deleted job can be brought back.
        result_bytes: of all results; the oldest without a star are removed first. None for no limit.
    """

    queued: int = 1000
    queued_per_owner: int = 100
    lease_seconds: float = 30.0
    failures: int = 3
    look_ahead: int = 8
    passes: int = 4
    keep_seconds: float = 7 * 86400.0
    short_seconds: float = 3600.0
    deleted_seconds: float = 86400.0
    result_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("queued", "queued_per_owner", "failures", "look_ahead"):
            check_integer(f"`{name}`", getattr(self, name), 1, 10**9)
        check_integer("`passes`", self.passes, 0, 10**9)
        for name in ("lease_seconds", "keep_seconds", "short_seconds", "deleted_seconds"):
            check_number(f"`{name}`", getattr(self, name))
            if getattr(self, name) <= 0:
                raise InputError(f"`{name}` is above 0, not {getattr(self, name)}")


class QueueFullError(RuntimeError):
    """The queue takes no more jobs for now. retry_after: seconds after which there may be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IdempotencyError(ValueError):
    """An idempotency key came with another request than before."""


class UnknownJobError(LookupError):
    """There is no such job, or it belongs to another owner."""


class LostLeaseError(RuntimeError):
    """The job is no longer this attempt's: another worker has it, or it is finished."""


def new_job_id(command: str = VIDEO_COMMANDS[0]) -> str:
    """Return an id that no job has, for a job of a command."""
    kind = command if command in (*SHORT_COMMANDS, "customise") else "video"
    return f"{kind}_{secrets.token_hex(16)}"


def seed_of(job_id: str) -> int:
    """Return the seed of a job that states none: all its attempts have the same."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big") >> 1


def check_name(name: str, value: object) -> None:
    """Raise InputError unless the value is a text of 1 to 200 printable characters."""
    check_text(f"`{name}`", value)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise InputError(f"`{name}` is a text of 1 to {MAX_TEXT} printable characters, not {shown(value)}")


def with_names(value: Any, job: Job) -> Any:
    """Return a JSON value in which texts have the submitter's names in place of paths, see `JobRequest`."""
    if isinstance(value, str):
        names: Mapping[str, str] = job.metadata.get("names", {})
        for path in sorted(names, key=len, reverse=True):  # one path may be the beginning of another
            value = value.replace(path, names[path])
        return value
    if isinstance(value, Mapping):
        return {with_names(key, job): with_names(each, job) for key, each in value.items()}
    return [with_names(each, job) for each in value] if isinstance(value, list | tuple) else value


def to_json(value: Mapping[str, Any]) -> str:
    """Return values as JSON in one form, whatever their order. Raises InputError for what JSON does not have."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"a job's options are JSON values: {error}") from error
