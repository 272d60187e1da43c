"""The durable queue of jobs: an SQLite file, `queue.sqlite3`, and the files of jobs beside it.

A worker claims a job with a lease, which its heartbeats renew. Everything that it writes carries the number of its
attempt, so a worker that counted as dead cannot change what its successor does. Leases are times of the host's
monotonic clock: they survive jumps of the clock, and one from before the host was restarted has ended.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from kineograph.errors import InputError, check_choice, check_integer, shown
from kineograph.service.database import Database
from kineograph.service.files import JobFiles, flush, folder_size
from kineograph.service.jobs import (
    COLUMNS,
    FINISHED,
    MAX_MESSAGE,
    MAX_PRIORITY,
    SHORT_COMMANDS,
    STATES,
    Event,
    IdempotencyError,
    Job,
    JobRequest,
    JobState,
    LostLeaseError,
    QueueFullError,
    QueueLimits,
    UnknownJobError,
    check_name,
    new_job_id,
    read_job,
    to_json,
)

RECENT, USUAL_SECONDS = 20, 30.0  # jobs whose mean duration is the next one's, and a duration without any
LONGEST_RETRY = 3600  # seconds
PREVIEWS = 20  # of a job, that are kept
NO_VALUES: Mapping[str, Any] = {}
NO_LEASE: Mapping[str, Any] = {"lease_owner": None, "lease_start": None, "lease_end": None}
EXPIRED = "state = 'in_progress' AND NOT (lease_start <= :now AND :now <= lease_end)"

# Jobs in the order of the queue: by priority, then in turns between owners, first the one who has waited longest.
WAITING = """
WITH waiting AS (
    SELECT number, owner, model, priority, passes,
        row_number() OVER (PARTITION BY owner, priority ORDER BY number) AS turn
    FROM jobs WHERE state = 'queued' AND NOT paused AND {wanted}
)
SELECT number, model, priority, passes FROM waiting LEFT JOIN owners USING (owner)
ORDER BY priority DESC, turn, coalesce(last_claim, 0), number LIMIT ?
"""


@runtime_checkable
class Clock(Protocol):
    """The functions of the module `time` that a queue uses; tests have their own."""

    def time(self) -> float:
        """Return the seconds since 1970."""

    def monotonic(self) -> float:
        """Return the seconds of a clock that all processes of the host share, and that nobody sets."""


class WorkerInfo(NamedTuple):
    """A worker that was seen lately. models: those that it has loaded."""

    name: str
    device: str
    models: Sequence[str]


@dataclass(frozen=True)
class JobQueue:
    """The queue in a folder, for any number of threads and processes of one host; see `JobQueue.open`.

    Functions with `owner` act on jobs of this owner alone, and raise UnknownJobError for others; None is the operator.
    """

    folder: Path
    limits: QueueLimits
    clock: Clock
    database: Database
    files: JobFiles

    @classmethod
    def open(cls, folder: str | Path, limits: QueueLimits | None = None, clock: Clock = time) -> JobQueue:
        """Open the queue in a folder, or make it.

        limits: recorded in the file, for all who open it from then on; None for those that are recorded.
        """
        files = JobFiles(Path(folder))
        files.make_folders()
        database = Database(files.folder / "queue.sqlite3")
        database.migrate()
        with database.transaction() as connection:
            if limits is not None:
                rows = [(name, dumps(value)) for name, value in asdict(limits).items()]
                connection.executemany("INSERT OR REPLACE INTO limits VALUES (?, ?)", rows)
            recorded = connection.execute("SELECT name, value FROM limits").fetchall()
        return cls(files.folder, QueueLimits(**{name: loads(each) for name, each in recorded}), clock, database, files)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    # --- for those who submit jobs

    def submit(self, owner: str, request: JobRequest) -> Job:
        """Add a job, and return it; or the one that came with this idempotency key before.

        Raises QueueFullError, and IdempotencyError for another request with a key that is in use.
        """
        check_name("owner", owner)
        key, digest = request.idempotency_key, _digest(request)
        values = {
            "id": request.job_id or new_job_id(request.command),
            "owner": owner,
            "state": "queued",
            "command": request.command,
            "model": request.model,
            "options": to_json(request.options),
            "metadata": to_json(request.metadata),
            "priority": request.priority,
            "source_id": request.source_id,
            "idempotency_key": key,
            "request": digest,
            "created_at": self.clock.time(),
        }
        with self.database.transaction() as connection:
            if key is not None:
                found = _select(connection, "owner = ? AND idempotency_key = ?", (owner, key))
                if found:
                    self._check_repeated(connection, found[0], digest)
                    return found[0]
            self._check_room(connection, owner, request.command)
            names = ", ".join(values)
            connection.execute(f"INSERT INTO jobs ({names}) VALUES ({_marks(values)})", tuple(values.values()))
            return self._changed(connection, str(values["id"]))

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """Return a job."""
        with self.database.connection() as connection:
            return _find(connection, job_id, owner)

    def list_jobs(
        self,
        owner: str | None = None,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        states: Collection[JobState] = (),
        commands: Collection[str] = (),
        which: Literal["kept", "deleted"] = "kept",
    ) -> list[Job]:
        """Return jobs in the order of submission, "asc", or the other way round.

        after: the id of a job, after which the list begins. states, commands: those that are listed, or none for all.
        which: those that are not deleted, or those that are.
        """
        check_integer("`limit`", limit, 1, 10_000)
        check_choice("`order`", order, ("asc", "desc"))
        where = ["deleted_at IS NULL" if which == "kept" else "deleted_at IS NOT NULL"]
        values: list[Any] = []
        if owner is not None:
            where.append("owner = ?")
            values.append(owner)
        for name, wanted in (("state", states), ("command", commands)):
            if wanted:
                where.append(f"{name} IN ({_marks(wanted)})")
                values += wanted
        with self.database.connection() as connection:
            if after is not None:
                where.append("number < ?" if order == "desc" else "number > ?")
                values.append(_find(connection, after, owner).number)
            return _select(connection, f"{' AND '.join(where)} ORDER BY number {order} LIMIT ?", (*values, limit))

    def count_jobs(self, owner: str | None = None) -> dict[JobState, int]:
        """Return the number of jobs in each state."""
        query = "SELECT state, count(*) FROM jobs WHERE ?1 IS NULL OR owner = ?1 GROUP BY state"
        with self.database.connection() as connection:
            counted = dict(connection.execute(query, (owner,)).fetchall())
        return {state: counted.get(state, 0) for state in STATES}

    def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """Cancel a job: a queued one at once, a running one after its sampling step. A finished one stays as it is."""
        with self.database.transaction() as connection:
            return self._cancel(connection, _find(connection, job_id, owner))

    def change(
        self,
        job_id: str,
        owner: str | None = None,
        *,
        priority: int | None = None,
        paused: bool | None = None,
        starred: bool | None = None,
    ) -> Job:
        """Change the given properties of a job. A running job that is paused goes back to the queue after its step.

        starred: it does not expire. Raises InputError for a priority or pause of a finished job.
        """
        if priority is not None:
            check_integer("`priority`", priority, -MAX_PRIORITY, MAX_PRIORITY)
        given = {"priority": priority, "paused": paused, "starred": starred}
        values = {name: int(value) for name, value in given.items() if value is not None}
        with self.database.transaction() as connection:
            job = _find(connection, job_id, owner)
            if job.finished and not values.keys() <= {"starred"}:
                raise InputError(f"{job.id} is {job.state}: only a job that is not finished has a priority and pauses")
            if starred is not None and job.finished:
                expiry = self._expiry(job, starred=starred, deleted=job.deleted_at is not None)
                self._update(connection, job, {"expires_at": expiry})
            self._update(connection, job, values)
            return self._changed(connection, job.id, {name: each for name, each in given.items() if each is not None})

    def delete(self, job_id: str, owner: str | None = None) -> Job:
        """Mark a job as deleted, and cancel it if it is not finished. Until it expires, `restore` brings it back."""
        with self.database.transaction() as connection:
            job = _find(connection, job_id, owner)
            if job.deleted_at is not None:
                return job
            self._update(connection, job, {"deleted_at": self.clock.time()})
            if job.finished:
                self._update(connection, job, {"expires_at": self._expiry(job, starred=False, deleted=True)})
            else:
                self._cancel(connection, job)
            return self._changed(connection, job.id, {"deleted": True})

    def restore(self, job_id: str, owner: str | None = None) -> Job:
        """Bring a deleted job back, with its result. One that was running is cancelled all the same."""
        with self.database.transaction() as connection:
            job = _find(connection, job_id, owner)
            if job.deleted_at is None:
                return job
            expiry = self._expiry(job, starred=job.starred, deleted=False) if job.finished else None
            self._update(connection, job, {"deleted_at": None, "expires_at": expiry})
            return self._changed(connection, job.id, {"deleted": False})

    def events(
        self, *, after: int = 0, job_id: str | None = None, owner: str | None = None, limit: int = 1000
    ) -> list[Event]:
        """Return the events after the one of this number: of a job, of an owner's jobs, or of all."""
        query = (
            "SELECT events.number, job_id, at, kind, data FROM events JOIN jobs ON jobs.id = job_id "
            "WHERE events.number > ?1 AND (?2 IS NULL OR job_id = ?2) AND (?3 IS NULL OR owner = ?3) "
            "ORDER BY events.number LIMIT ?4"
        )
        with self.database.connection() as connection:
            rows = connection.execute(query, (after, job_id, owner, limit)).fetchall()
        return [Event(number, job_id, at, kind, loads(data)) for number, job_id, at, kind, data in rows]

    def last_event(self) -> int:
        """Return the number of the newest event, 0 without any: cheap to ask often."""
        with self.database.connection() as connection:
            return int(connection.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()[0])

    def finished_jobs(self, after: int, until: int) -> list[tuple[int, Job]]:
        """Return the jobs that finished after the event of a number and not after another, each with its event's."""
        query = (
            "SELECT events.number, job_id FROM events WHERE number > ? AND number <= ? AND kind = 'state' "
            f"AND json_extract(data, '$.state') IN ({_marks(FINISHED)}) "
            # events of finished jobs that change
            "AND json_extract(data, '$.starred') IS NULL AND json_extract(data, '$.deleted') IS NULL ORDER BY number"
        )
        with self.database.connection() as connection:
            rows = connection.execute(query, (after, until, *FINISHED)).fetchall()
            found = {job_id: _select(connection, "id = ?", (job_id,)) for _, job_id in rows}
        return [(number, found[job_id][0]) for number, job_id in rows if found[job_id]]

    # --- for workers

    def claim(self, worker: str, loaded: Collection[str] = (), commands: Collection[str] = ()) -> Job | None:
        """Take the next job under a lease; None if there is none.

        Jobs whose worker sends no heartbeats are put back first, or fail after the last attempt. loaded: models that
        are preferred among the first jobs of the same priority, until the first one has been passed over `passes`
        times. commands: of jobs that are taken, or none for all.
        """
        wanted = _is_one_of("command", commands)
        with self.database.connection() as connection:  # an idle worker does not write
            waits = f"state = 'queued' AND NOT paused AND {wanted}"
            query = f"SELECT EXISTS (SELECT 1 FROM jobs WHERE {waits} OR {EXPIRED})"
            if not connection.execute(query, {"now": self.clock.monotonic()}).fetchone()[0]:
                return None
        with self.database.transaction() as connection:
            self._end_expired(connection)
            number = self._choose(connection, loaded, wanted)
            if number is None:
                return None
            now = self.clock.monotonic()
            row = connection.execute(
                "UPDATE jobs SET state = 'in_progress', attempt = attempt + 1, passes = 0, lease_owner = ?, "
                "lease_start = ?, lease_end = ?, started_at = coalesce(started_at, ?), progress = 0 "
                f"WHERE number = ? RETURNING {COLUMNS}",
                (worker, now, now + self.limits.lease_seconds, self.clock.time(), number),
            ).fetchone()
            job = read_job(row)
            if job.command not in SHORT_COMMANDS:  # which cost no turn
                connection.execute(
                    "INSERT INTO owners SELECT ?, coalesce(max(last_claim), 0) + 1 FROM owners WHERE true "
                    "ON CONFLICT (owner) DO UPDATE SET last_claim = excluded.last_claim",
                    (job.owner,),
                )
            return self._changed(connection, job.id)

    def heartbeat(self, job: Job, progress: float | None = None) -> Job:
        """Renew the lease of an attempt, and record its progress in per cent; return the job as it is now.

        The job says whether the attempt is to end: `cancel_requested`, or `paused`. Raises LostLeaseError.
        """
        now = self.clock.monotonic()
        with self.database.transaction() as connection:
            before = _find_attempt(connection, job)
            self._update(connection, job, {"lease_start": now, "lease_end": now + self.limits.lease_seconds})
            if progress is not None and progress != before.progress:
                self._update(connection, job, {"progress": progress})
                self._add_event(connection, job.id, "progress", {"progress": progress})
            return _find(connection, job.id)

    def check_attempt(self, job: Job) -> Job:
        """Return the job as it is now, without writing. Raises LostLeaseError if it is no longer this attempt's."""
        with self.database.connection() as connection:
            return _find_attempt(connection, job)

    def add_event(self, job: Job, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event of an attempt, such as a preview, of which the latest ones are kept. Raises LostLeaseError."""
        with self.database.transaction() as connection:
            _find_attempt(connection, job)
            self._add_event(connection, job.id, kind, data)
            if kind == "preview":
                connection.execute(
                    "DELETE FROM events WHERE job_id = ?1 AND kind = ?2 AND number <= (SELECT number FROM events "
                    "WHERE job_id = ?1 AND kind = ?2 ORDER BY number DESC LIMIT 1 OFFSET ?3)",
                    (job.id, kind, PREVIEWS),
                )

    def complete(self, job: Job, part: Path, result: Mapping[str, Any]) -> Job:
        """Complete an attempt: rename its folder to the job's result, and record facts about it.

        A job whose cancellation was requested is cancelled instead. Raises LostLeaseError.
        """
        self.check_attempt(job)
        size = flush(part) + folder_size(self.files.clips(job.id))
        with self.database.transaction() as connection:
            current = _find_attempt(connection, job)
            if current.cancel_requested:
                return self._finish(connection, job, "cancelled")
            self.files.publish(job.id, part)
            return self._finish(
                connection, job, "completed", {"result": to_json(result), "bytes": size, "progress": 100.0}
            )

    def fail(self, job: Job, code: str, message: str) -> Job:
        """End an attempt and its job as failed; as cancelled, if that was requested. Raises LostLeaseError.

        code: one word for programs. message: one line for users.
        """
        with self.database.transaction() as connection:
            if _find_attempt(connection, job).cancel_requested:
                return self._finish(connection, job, "cancelled")
            return self._fail(connection, job, code, message)

    def release(self, job: Job) -> Job:
        """Put a job that a worker has stopped back into the queue, without counting a failure.

        A job whose cancellation was requested is cancelled. Raises LostLeaseError.
        """
        with self.database.transaction() as connection:
            if _find_attempt(connection, job).cancel_requested:
                return self._finish(connection, job, "cancelled")
            self._requeue(connection, job)
            return self._changed(connection, job.id)

    def announce(self, worker: str, device: str, models: Iterable[str] = ()) -> None:
        """Record that a worker lives, and what it has loaded; it counts for `lease_seconds`."""
        values = (worker, device, dumps([*models]), self.clock.monotonic())
        with self.database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?)", values)

    def withdraw(self, worker: str) -> None:
        """Remove a worker that ends from those that live."""
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM workers WHERE name = ?", (worker,))

    def list_workers(self) -> list[WorkerInfo]:
        """Return the workers that live."""
        with self.database.connection() as connection:
            return [WorkerInfo(name, device, loads(models)) for name, device, models in self._alive(connection)]

    # --- for both, now and then

    def clean(self) -> list[str]:
        """Remove what has expired, what exceeds the budget of the disk, and files of dead attempts.

        Returns the ids of the jobs that were removed. To be called once a minute or so, by any process.
        """
        with self.database.transaction() as connection:
            self._end_expired(connection)
            query = "DELETE FROM jobs WHERE expires_at <= ? RETURNING id"
            removed = [row[0] for row in connection.execute(query, (self.clock.time(),)).fetchall()]
            removed += self._remove_over_budget(connection)
            rows = connection.execute("SELECT id, state, attempt FROM jobs").fetchall()
            # within the transaction, in which no attempt begins or ends
            self.files.remove_leftovers({job_id: (state, attempt) for job_id, state, attempt in rows})
        return removed

    # --- steps of the above, within a transaction

    def _check_repeated(self, connection: sqlite3.Connection, job: Job, digest: str) -> None:
        (before,) = connection.execute("SELECT request FROM jobs WHERE id = ?", (job.id,)).fetchone()
        if before != digest:
            raise IdempotencyError(
                f"the idempotency key {shown(job.idempotency_key)} was used for another request, {job.id}: "
                "send the same request, or another key"
            )

    def _check_room(self, connection: sqlite3.Connection, owner: str, command: str) -> None:
        """Raise QueueFullError where too many jobs wait; short jobs and others are counted apart."""
        kind = _is_one_of("command", SHORT_COMMANDS)
        kind = kind if command in SHORT_COMMANDS else f"NOT {kind}"
        query = f"SELECT count(*), coalesce(sum(owner = ?), 0) FROM jobs WHERE state = 'queued' AND {kind}"
        waiting, own = connection.execute(query, (owner,)).fetchone()
        if waiting >= self.limits.queued:
            whose = f"the queue holds {waiting} jobs"
        elif own >= self.limits.queued_per_owner:
            whose = f"{own} jobs of yours wait"
        else:
            return
        seconds = self._retry_after(connection)
        raise QueueFullError(f"{whose}, and no more are taken: try again in {seconds} s, or cancel some", seconds)

    def _retry_after(self, connection: sqlite3.Connection) -> int:
        query = (
            "SELECT avg(finished_at - started_at) FROM (SELECT finished_at, started_at FROM jobs "
            f"WHERE state = 'completed' ORDER BY number DESC LIMIT {RECENT})"
        )
        (mean,) = connection.execute(query).fetchone()
        seconds = (USUAL_SECONDS if mean is None else mean) / max(1, len(self._alive(connection)))
        return max(1, min(LONGEST_RETRY, math.ceil(seconds)))

    def _alive(self, connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
        now = self.clock.monotonic()
        query = "SELECT name, device, models FROM workers WHERE seen BETWEEN ? AND ? ORDER BY name"
        return connection.execute(query, (now - self.limits.lease_seconds, now)).fetchall()

    def _choose(self, connection: sqlite3.Connection, loaded: Collection[str], wanted: str) -> int | None:
        """Return the number of the job to run next, and count the passing over of the first. wanted: SQL."""
        waiting = connection.execute(WAITING.format(wanted=wanted), (self.limits.look_ahead,)).fetchall()
        if not waiting:
            return None
        first, _, priority, passes = waiting[0]
        if passes >= self.limits.passes:
            return int(first)
        preferred = (number for number, model, own, _ in waiting if own == priority and model in loaded)
        chosen = next(preferred, first)
        if chosen != first:
            connection.execute("UPDATE jobs SET passes = passes + 1 WHERE number = ?", (first,))
        return int(chosen)

    def _end_expired(self, connection: sqlite3.Connection) -> None:
        """Put jobs whose lease has ended back into the queue; end those without attempts left, and cancelled ones."""
        for job in _select(connection, EXPIRED, {"now": self.clock.monotonic()}):
            failures = job.failures + 1
            self._update(connection, job, {"failures": failures})
            if job.cancel_requested:
                self._finish(connection, job, "cancelled")
            elif failures >= self.limits.failures:
                message = (
                    f"{failures} attempts ended with their worker, the last at {job.progress:.0f} % on "
                    f"{job.lease_owner}: the machine may lack memory for it; try fewer frames or a smaller size"
                )
                self._fail(connection, job, "worker_lost", message)
            else:
                self._requeue(connection, job)
                self._changed(connection, job.id, {"lost_worker": job.lease_owner})

    def _requeue(self, connection: sqlite3.Connection, job: Job) -> None:
        self._update(connection, job, {"state": "queued", "progress": 0.0, **NO_LEASE})

    def _cancel(self, connection: sqlite3.Connection, job: Job) -> Job:
        if job.state == "queued":
            return self._finish(connection, job, "cancelled")
        if job.state == "in_progress" and not job.cancel_requested:
            self._update(connection, job, {"cancel_requested": 1})
            return self._changed(connection, job.id, {"cancel_requested": True})
        return job

    def _fail(self, connection: sqlite3.Connection, job: Job, code: str, message: str) -> Job:
        line = " ".join(message.split())[:MAX_MESSAGE]
        return self._finish(connection, job, "failed", {"error_code": code, "error_message": line})

    def _finish(
        self, connection: sqlite3.Connection, job: Job, state: JobState, values: Mapping[str, Any] = NO_VALUES
    ) -> Job:
        current = _find(connection, job.id)
        expiry = self._expiry(job, starred=current.starred, deleted=current.deleted_at is not None)
        ended = {"state": state, "finished_at": self.clock.time(), "expires_at": expiry, "paused": 0, **NO_LEASE}
        self._update(connection, job, {**ended, **values})
        if state != "failed":
            return self._changed(connection, job.id)
        error = {"code": values["error_code"], "message": values["error_message"]}
        return self._changed(connection, job.id, {"error": error})

    def _expiry(self, job: Job, *, starred: bool, deleted: bool) -> float | None:
        """Return the time at which a finished job expires, counted from now."""
        if deleted:
            return self.clock.time() + self.limits.deleted_seconds
        kept = self.limits.short_seconds if job.command in SHORT_COMMANDS else self.limits.keep_seconds
        return None if starred else self.clock.time() + kept

    def _remove_over_budget(self, connection: sqlite3.Connection) -> list[str]:
        budget, removed = self.limits.result_bytes, list[str]()
        (total,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM jobs").fetchone()
        if budget is None or total <= budget:
            return removed
        query = (
            "SELECT id, bytes FROM jobs WHERE bytes > 0 AND (deleted_at IS NOT NULL OR NOT starred) "
            "ORDER BY deleted_at IS NULL, finished_at, number"
        )
        for job_id, size in connection.execute(query).fetchall():
            if total <= budget:
                break
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            removed.append(job_id)
            total -= size
        return removed

    def _update(self, connection: sqlite3.Connection, job: Job, values: Mapping[str, Any]) -> None:
        if values:
            names = ", ".join(f"{name} = ?" for name in values)
            connection.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job.id))

    def _changed(self, connection: sqlite3.Connection, job_id: str, data: Mapping[str, Any] = NO_VALUES) -> Job:
        """Add an event of the job's state, and return the job."""
        job = _find(connection, job_id)
        self._add_event(connection, job_id, "state", {"state": job.state, "attempt": job.attempt, **data})
        return job

    def _add_event(self, connection: sqlite3.Connection, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        connection.execute(
            "INSERT INTO events (job_id, at, kind, data) VALUES (?, ?, ?, ?)",
            (job_id, self.clock.time(), kind, to_json(data)),
        )


def _digest(request: JobRequest) -> str:
    if request.sent_sha256 is not None:
        return request.sent_sha256
    parts = {
        "command": request.command,
        "model": request.model,
        "options": request.options,
        "metadata": request.metadata,
        "priority": request.priority,
        "source_id": request.source_id,
    }
    return hashlib.sha256(to_json(parts).encode()).hexdigest()


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _is_one_of(name: str, values: Collection[str]) -> str:
    """Return SQL that is true where a column has one of these values, which are names of ours; always without any."""
    return f"{name} IN ({', '.join(map(repr, values))})" if values else "true"


def _select(connection: sqlite3.Connection, where: str, values: Any) -> list[Job]:
    rows = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values).fetchall()
    return [read_job(row) for row in rows]


def _find(connection: sqlite3.Connection, job_id: str, owner: str | None = None) -> Job:
    found = _select(connection, "id = ?1 AND (?2 IS NULL OR owner = ?2)", (job_id, owner))
    if not found:
        raise UnknownJobError(f"there is no job {shown(job_id)}")
    return found[0]


def _find_attempt(connection: sqlite3.Connection, job: Job) -> Job:
    found = _select(connection, "id = ? AND attempt = ? AND state = 'in_progress'", (job.id, job.attempt))
    if not found:
        raise LostLeaseError(f"{job.id} is no longer of attempt {job.attempt}: what it made is not used")
    return found[0]
