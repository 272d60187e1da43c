"""The queue against a model of it in plain Python: any sequence of what clients, workers, crashes and clocks do."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from moved_clock import MovedClock

from kineograph.errors import InputError
from kineograph.service.jobs import (
    LONG_COMMANDS,
    SHORT_COMMANDS,
    IdempotencyError,
    Job,
    JobRequest,
    LostLeaseError,
    QueueFullError,
    QueueLimits,
    UnknownJobError,
)
from kineograph.service.queue import JobQueue

LIMITS = QueueLimits(
    queued=6, queued_per_owner=4, look_ahead=3, passes=2, keep_seconds=500, short_seconds=50, deleted_seconds=100
)
OWNERS, MODELS = ("ann", "bob", "eve"), ("pocket", "other")
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where nothing waits for a disk
ACTIVE = {"queued", "in_progress"}


@dataclass
class ExpectedJob:
    """What is expected of a job."""

    number: int
    owner: str
    model: str
    priority: int
    command: str = "generate"
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    passes: int = 0
    lease: tuple[float, float] = (0.0, 0.0)
    cancel_requested: bool = False
    paused: bool = False
    starred: bool = False
    deleted: bool = False
    expires_at: float | None = None
    completed_by: int | None = None


@dataclass
class Expected:
    """What is expected of the queue."""

    jobs: dict[str, ExpectedJob] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[object, ...]] = field(default_factory=dict)  # -> job, and what was submitted
    last_claim: dict[str, int] = field(default_factory=dict)
    claims: int = 0


class QueueMachine(RuleBasedStateMachine):
    """Clients, workers that may be dead without knowing it, restarts and clocks."""

    ids: Any = Bundle("ids")
    attempts: Any = Bundle("attempts")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        self.clock = MovedClock()
        self.queue = JobQueue.open(self.folder, LIMITS, self.clock)
        self.expected = Expected()

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            shutil.rmtree(self.folder)

    # --- clients

    @rule(
        target=ids,
        owner=st.sampled_from(OWNERS),
        model=st.sampled_from(MODELS),
        priority=st.sampled_from((0, 0, 0, 1, -1)),
        key=st.sampled_from((None, None, "a", "b")),
        command=st.sampled_from(("generate", "generate", "check")),
    )
    def submit(self, owner: str, model: str, priority: int, key: str | None, command: str) -> Any:
        request = JobRequest(command, model, {}, {}, priority, idempotency_key=key)
        known = self.expected.keys.get((owner, str(key)))
        if known is not None:
            if known[1:] == (model, priority, command):
                assert self.queue.submit(owner, request).id == known[0]
            else:
                with pytest.raises(IdempotencyError):
                    self.queue.submit(owner, request)
            return multiple()
        short = command in SHORT_COMMANDS
        waiting = [each for each in self.expected.jobs.values() if each.state == "queued"]
        queued = [each.owner for each in waiting if (each.command in SHORT_COMMANDS) == short]
        if len(queued) >= LIMITS.queued or queued.count(owner) >= LIMITS.queued_per_owner:
            with pytest.raises(QueueFullError) as refused:
                self.queue.submit(owner, request)
            assert 1 <= refused.value.retry_after <= 3600
            return multiple()
        job = self.queue.submit(owner, request)
        self.expected.jobs[job.id] = ExpectedJob(job.number, owner, model, priority, command)
        if key is not None:
            self.expected.keys[owner, key] = (job.id, model, priority, command)
        return job.id

    @rule(
        job_id=ids,
        act=st.sampled_from(("cancel", "pause", "resume", "resume", "star", "unstar", "delete", "restore", "restore")),
    )
    def change(self, job_id: str, act: str) -> None:
        job = self.expected.jobs.get(job_id)
        functions: dict[str, Callable[[str], object]] = {
            "cancel": self.queue.cancel,
            "pause": lambda each: self.queue.change(each, paused=True),
            "resume": lambda each: self.queue.change(each, paused=False),
            "star": lambda each: self.queue.change(each, starred=True),
            "unstar": lambda each: self.queue.change(each, starred=False),
            "delete": self.queue.delete,
            "restore": self.queue.restore,
        }
        if job is None:
            with pytest.raises(UnknownJobError):
                functions[act](job_id)
        elif act in ("pause", "resume") and job.state not in ACTIVE:
            with pytest.raises(InputError, match="not finished"):
                functions[act](job_id)
        else:
            functions[act](job_id)
            self.expect_change(job, act)

    def expect_change(self, job: ExpectedJob, act: str) -> None:
        if act == "cancel":
            self.expect_cancel(job)
        elif act in ("pause", "resume"):
            job.paused = act == "pause"
        elif act in ("star", "unstar"):
            job.starred = act == "star"
            self.expect_expiry(job)
        elif (act == "delete") != job.deleted:
            job.deleted = act == "delete"
            if job.deleted:
                self.expect_cancel(job)
            self.expect_expiry(job)

    @rule(job_id=ids, owner=st.sampled_from(OWNERS))
    def read(self, job_id: str, owner: str) -> None:
        job = self.expected.jobs.get(job_id)
        if job is None or job.owner != owner:
            for act in (self.queue.get, self.queue.cancel, self.queue.delete, self.queue.restore):
                with pytest.raises(UnknownJobError):
                    act(job_id, owner)
        else:
            assert self.queue.get(job_id, owner).number == job.number

    # --- workers

    @precondition(lambda self: any(each.state in ACTIVE for each in self.expected.jobs.values()))
    @rule(
        target=attempts,
        seconds=st.sampled_from((0, 0, 0, 31, 31)),
        worker=st.sampled_from(("first", "second")),
        loaded=st.sampled_from(((), MODELS[:1], MODELS)),
        commands=st.sampled_from(((), (), SHORT_COMMANDS, LONG_COMMANDS)),
    )
    def wait_and_claim(self, seconds: float, worker: str, loaded: tuple[str, ...], commands: tuple[str, ...]) -> Any:
        self.clock.wait(seconds)
        self.expect_ends_of_leases()
        wanted = self.expect_choice(loaded, commands)
        job = self.queue.claim(worker, loaded, commands)
        if wanted is None:
            assert job is None
            return multiple()
        assert job is not None
        assert job.id == wanted
        expected = self.expected.jobs[job.id]
        expected.state, expected.passes = "in_progress", 0
        expected.attempt += 1
        expected.lease = (self.clock.uptime, self.clock.uptime + LIMITS.lease_seconds)
        if expected.command not in SHORT_COMMANDS:
            self.expected.claims += 1
            self.expected.last_claim[expected.owner] = self.expected.claims
        assert (job.attempt, job.lease_owner) == (expected.attempt, worker)
        return job

    @rule(attempt=attempts, progress=st.sampled_from((None, 10.0, 50.0)))
    def heartbeat(self, attempt: Job, progress: float | None) -> None:
        if (job := self.alive(attempt, lambda: self.queue.heartbeat(attempt, progress))) is not None:
            job.lease = (self.clock.uptime, self.clock.uptime + LIMITS.lease_seconds)

    @rule(attempt=attempts, end=st.sampled_from(("complete", "complete", "fail", "release", "die after the rename")))
    def end_attempt(self, attempt: Job, end: str) -> None:
        job = self.expected.jobs.get(attempt.id)
        part = self.queue.files.make_part(attempt)
        (part / "video.mp4").write_text(str(attempt.attempt))
        if end == "die after the rename":
            if job is not None and (job.state, job.attempt) == ("in_progress", attempt.attempt):
                self.queue.files.publish(attempt.id, part)
            return
        ends: dict[str, Callable[[], object]] = {
            "complete": lambda: self.queue.complete(attempt, part, {"width": 1}),
            "fail": lambda: self.queue.fail(attempt, "internal_error", "an error\nof two lines"),
            "release": lambda: self.queue.release(attempt),
        }
        if (job := self.alive(attempt, ends[end])) is None:
            return
        if job.cancel_requested:
            self.expect_end(job, "cancelled")
        elif end == "release":
            job.state = "queued"
        else:
            self.expect_end(job, "completed" if end == "complete" else "failed")
            job.completed_by = attempt.attempt

    # --- time, and the machine

    @rule(seconds=st.sampled_from((1, 20, 120, 600)))
    def wait(self, seconds: float) -> None:
        self.clock.wait(seconds)

    @rule(clock=st.sampled_from((None, -1000, 50)), uptime=st.sampled_from((None, 0.0, 1e6)), close=st.booleans())
    def restart(self, *, clock: float | None, uptime: float | None, close: bool) -> None:
        self.clock.wall += clock or 0
        self.clock.uptime = self.clock.uptime if uptime is None else uptime
        if close:
            self.queue.close()
        self.queue = JobQueue.open(self.folder, clock=self.clock)
        assert self.queue.limits == LIMITS

    @rule()
    def clean(self) -> None:
        self.expect_ends_of_leases()
        now = self.clock.wall
        jobs = self.expected.jobs.items()
        gone = {job_id for job_id, each in jobs if each.expires_at is not None and each.expires_at <= now}
        assert {*self.queue.clean()} == gone
        for job_id in gone:
            del self.expected.jobs[job_id]
        self.expected.keys = {key: each for key, each in self.expected.keys.items() if each[0] not in gone}
        for path in (self.folder / "results").iterdir():
            job_id, _, ending = path.name.partition(".")
            job = self.expected.jobs[job_id]
            assert ending == f"{job.attempt}.part" if job.state == "in_progress" else job.state == "completed"

    # --- what always holds

    @invariant()
    def jobs_are_as_expected(self) -> None:
        if not hasattr(self, "queue"):
            return
        found = [*self.queue.list_jobs(limit=1000), *self.queue.list_jobs(limit=1000, which="deleted")]
        assert {each.id for each in found} == {*self.expected.jobs}
        last = {each.job_id: each.data["state"] for each in self.queue.events(limit=10_000) if each.kind == "state"}
        for job in found:
            expected = self.expected.jobs[job.id]
            for name in ("state", "attempt", "failures", "cancel_requested", "paused", "starred", "expires_at"):
                assert getattr(job, name) == getattr(expected, name), name
            assert (job.deleted_at is not None) == expected.deleted
            assert last[job.id] == job.state
            if job.state == "completed":
                video = self.queue.files.results(job.id) / "video.mp4"
                assert video.read_text() == str(expected.completed_by)

    @invariant()
    def no_job_completed_twice(self) -> None:
        if hasattr(self, "queue"):
            ends = defaultdict[str, list[str]](list)
            for each in self.queue.events(limit=10_000):
                if each.kind == "state" and {*each.data} == {"state", "attempt"} and each.data["state"] == "completed":
                    ends[each.job_id].append(each.data["state"])
            assert all(len(each) == 1 for each in ends.values())

    # --- the model

    def alive(self, attempt: Job, act: Any) -> ExpectedJob | None:
        """Let an attempt do something; return what is expected of its job, or None where the attempt has ended."""
        job = self.expected.jobs.get(attempt.id)
        if job is None or (job.state, job.attempt) != ("in_progress", attempt.attempt):
            with pytest.raises(LostLeaseError):
                act()
            return None
        act()
        return job

    def expect_cancel(self, job: ExpectedJob) -> None:
        if job.state == "queued":
            self.expect_end(job, "cancelled")
        elif job.state == "in_progress":
            job.cancel_requested = True

    def expect_end(self, job: ExpectedJob, state: str) -> None:
        job.state, job.paused = state, False
        self.expect_expiry(job)

    def expect_expiry(self, job: ExpectedJob) -> None:
        if job.state not in ACTIVE:
            seconds = LIMITS.short_seconds if job.command in SHORT_COMMANDS else LIMITS.keep_seconds
            kept = None if job.starred else self.clock.wall + seconds
            job.expires_at = self.clock.wall + LIMITS.deleted_seconds if job.deleted else kept

    def expect_ends_of_leases(self) -> None:
        for job in self.expected.jobs.values():
            if job.state == "in_progress" and not job.lease[0] <= self.clock.uptime <= job.lease[1]:
                job.failures += 1
                if job.cancel_requested:
                    self.expect_end(job, "cancelled")
                elif job.failures == LIMITS.failures:
                    self.expect_end(job, "failed")
                else:
                    job.state = "queued"

    def expect_choice(self, loaded: tuple[str, ...], commands: tuple[str, ...]) -> str | None:
        """Return the job that is to run next: by priority, by turns of owners, by the model that is loaded."""
        turns = defaultdict[tuple[str, int], int](int)
        ranked = []
        for job_id, job in sorted(self.expected.jobs.items(), key=lambda each: each[1].number):
            if job.state == "queued" and not job.paused and (not commands or job.command in commands):
                turns[job.owner, job.priority] += 1
                turn, last = turns[job.owner, job.priority], self.expected.last_claim.get(job.owner, 0)
                ranked.append((-job.priority, turn, last, job.number, job_id))
        front = [each[-1] for each in sorted(ranked)[: LIMITS.look_ahead]]
        if not front:
            return None
        first = self.expected.jobs[front[0]]
        if first.passes < LIMITS.passes:
            for job_id in front:
                job = self.expected.jobs[job_id]
                if job.priority == first.priority and job.model in loaded:
                    first.passes += job is not first
                    return job_id
        return front[0]


class TestQueue(QueueMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(
        max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestQueueLonger(QueueMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(
        max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
