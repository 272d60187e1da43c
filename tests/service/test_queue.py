"""The queue: claims, leases, fencing, fairness, limits, cancellation, expiry."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from moved_clock import MovedClock

from kineograph.errors import InputError
from kineograph.service.database import MIGRATIONS, split_statements
from kineograph.service.jobs import (
    SHORT_COMMANDS,
    VIDEO_COMMANDS,
    IdempotencyError,
    Job,
    JobRequest,
    LostLeaseError,
    QueueFullError,
    QueueLimits,
    UnknownJobError,
    new_job_id,
)
from kineograph.service.queue import PREVIEWS, JobQueue

RESULT = {"width": 16, "height": 16}


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def queue(tmp_path: Path, clock: MovedClock) -> JobQueue:
    return JobQueue.open(tmp_path, clock=clock)


def request(prompt: str = "a fish", model: str = "pocket", priority: int = 0, key: str | None = None) -> JobRequest:
    return JobRequest("generate", model, {"prompt": prompt}, {}, priority, idempotency_key=key)


def claim(queue: JobQueue, worker: str = "worker", loaded: tuple[str, ...] = ()) -> Job:
    job = queue.claim(worker, loaded)
    assert job is not None
    return job


def complete(queue: JobQueue, job: Job, content: bytes = b"frames") -> Job:
    part = queue.files.make_part(job)
    (part / "video.mp4").write_bytes(content)
    return queue.complete(job, part, RESULT)


def states(queue: JobQueue, job: Job) -> list[str]:
    return [each.data["state"] for each in queue.events(job_id=job.id) if each.kind == "state"]


def test_a_job_goes_through_the_queue(queue: JobQueue) -> None:
    submitted = queue.submit("ann", request())
    assert (submitted.state, submitted.owner, submitted.options) == ("queued", "ann", {"prompt": "a fish"})
    job = claim(queue)
    assert (job.id, job.state, job.attempt, job.lease_owner) == (submitted.id, "in_progress", 1, "worker")
    assert queue.claim("other") is None
    assert queue.heartbeat(job, 50.0).progress == 50
    done = complete(queue, job)
    assert (done.state, done.result, done.bytes, done.progress) == ("completed", RESULT, 6, 100)
    assert (queue.files.results(job.id) / "video.mp4").read_bytes() == b"frames"
    assert states(queue, job) == ["queued", "in_progress", "completed"]
    assert [each.data for each in queue.events(job_id=job.id) if each.kind == "progress"] == [{"progress": 50.0}]
    assert queue.last_event() == queue.events()[-1].number


def test_everything_is_there_after_a_restart(queue: JobQueue, clock: MovedClock) -> None:
    queue.submit("ann", request())
    job = complete(queue, claim(queue))
    waiting = queue.submit("bob", request(key="one"))
    queue.close()
    again = JobQueue.open(queue.folder, clock=clock)
    assert again.get(job.id) == job
    assert again.get(waiting.id) == waiting
    assert len(again.events()) == 4


def test_a_lost_job_goes_to_another_worker_and_its_first_worker_can_write_nothing(
    queue: JobQueue, clock: MovedClock
) -> None:
    queue.submit("ann", request())
    first = claim(queue, "first")
    part = queue.files.make_part(first)
    clock.wait(29)
    queue.heartbeat(first)
    clock.wait(29)
    assert queue.claim("second") is None
    clock.wait(2)
    second = claim(queue, "second")
    assert (second.id, second.attempt, second.failures) == (first.id, 2, 1)
    for write in (
        lambda: queue.heartbeat(first, 99.0),
        lambda: queue.check_attempt(first),
        lambda: queue.add_event(first, "preview", {}),
        lambda: queue.complete(first, part, RESULT),
        lambda: queue.fail(first, "internal_error", "no"),
        lambda: queue.release(first),
    ):
        with pytest.raises(LostLeaseError, match="no longer of attempt 1"):
            write()
    assert queue.get(first.id) == second
    assert complete(queue, second, b"second").state == "completed"
    with pytest.raises(LostLeaseError):
        queue.fail(second, "internal_error", "no")
    queue.clean()
    assert not part.exists()
    assert (queue.files.results(first.id) / "video.mp4").read_bytes() == b"second"


def test_a_job_fails_after_three_workers_were_lost(queue: JobQueue, clock: MovedClock) -> None:
    queue.submit("ann", request())
    for number in range(3):
        claim(queue, f"worker {number}")
        clock.wait(31)
    assert queue.claim("worker 3") is None
    (job,) = queue.list_jobs()
    assert (job.state, job.error_code, job.failures) == ("failed", "worker_lost", 3)
    assert "3 attempts" in str(job.error_message)
    assert "worker 2" in str(job.error_message)


def test_released_jobs_count_no_failure(queue: JobQueue) -> None:
    queue.submit("ann", request())
    for attempt in range(1, 6):
        job = claim(queue)
        assert job.attempt == attempt
        assert queue.release(job).failures == 0


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_leases_do_not_follow_jumps_of_the_clock(queue: JobQueue, clock: MovedClock, jump: float) -> None:
    queue.submit("ann", request())
    job = claim(queue)
    clock.wall += jump
    assert queue.claim("second") is None
    clock.wait(31)
    assert claim(queue, "second").id == job.id


@pytest.mark.parametrize("uptime", [0.0, 985.0, 5000.0])
def test_leases_end_with_a_restart_of_the_host(queue: JobQueue, clock: MovedClock, uptime: float) -> None:
    queue.submit("ann", request())
    clock.wait(3)
    job = claim(queue)
    clock.uptime = uptime
    assert claim(queue, "second").id == job.id


def test_a_queued_job_is_cancelled_at_once(queue: JobQueue) -> None:
    first, second = (queue.submit("ann", request()) for _ in range(2))
    assert queue.cancel(first.id).state == "cancelled"
    assert claim(queue).id == second.id
    assert queue.claim("worker") is None
    assert queue.cancel(first.id).state == "cancelled"


@pytest.mark.parametrize("end", ["complete", "fail", "release", "lost"])
def test_a_running_job_whose_cancellation_was_requested_ends_cancelled(
    queue: JobQueue, clock: MovedClock, end: str
) -> None:
    queue.submit("ann", request())
    job = claim(queue)
    assert queue.cancel(job.id).cancel_requested
    assert queue.heartbeat(job).cancel_requested
    if end == "complete":
        complete(queue, job)
    elif end == "fail":
        queue.fail(job, "internal_error", "no")
    elif end == "release":
        queue.release(job)
    else:
        clock.wait(31)
    assert queue.claim("worker") is None
    assert queue.get(job.id).state == "cancelled"
    queue.clean()
    assert not list((queue.folder / "results").iterdir())


def test_owners_see_their_own_jobs_alone(queue: JobQueue) -> None:
    job = queue.submit("ann", request())
    for act in (queue.get, queue.cancel, queue.change, queue.delete, queue.restore):
        with pytest.raises(UnknownJobError, match="no job"):
            act(job.id, "bob")
    with pytest.raises(UnknownJobError):
        queue.list_jobs("bob", after=job.id)
    assert queue.list_jobs("bob") == []
    assert queue.events(owner="bob") == []
    assert queue.get(job.id, "ann") == job
    assert queue.count_jobs("bob")["queued"] == 0


def test_lists_are_paged_in_both_orders(queue: JobQueue) -> None:
    jobs = [queue.submit("ann", request(str(number))) for number in range(5)]
    assert queue.list_jobs("ann", limit=2) == [jobs[4], jobs[3]]
    assert queue.list_jobs("ann", after=jobs[3].id, limit=2) == [jobs[2], jobs[1]]
    assert queue.list_jobs("ann", after=jobs[1].id, order="asc") == jobs[2:]
    assert queue.list_jobs("ann", states=["completed"]) == []


def test_owners_take_turns(queue: JobQueue) -> None:
    for owner, count in (("ann", 6), ("bob", 2), ("eve", 1)):
        for _ in range(count):
            queue.submit(owner, request())
    order = [claim(queue).owner for _ in range(9)]
    assert order == ["ann", "bob", "eve", "ann", "bob", "ann", "ann", "ann", "ann"]
    queue.submit("ann", request())
    queue.submit("bob", request())
    assert claim(queue).owner == "bob"


def test_priorities_come_first(queue: JobQueue) -> None:
    low, high = queue.submit("ann", request(priority=-1)), queue.submit("ann", request(priority=5))
    usual = queue.submit("bob", request())
    queue.change(usual.id, priority=7)
    assert [claim(queue).id for _ in range(3)] == [usual.id, high.id, low.id]


def test_jobs_of_a_loaded_model_are_preferred_but_pass_over_no_job_more_than_four_times(queue: JobQueue) -> None:
    other = queue.submit("bob", request(model="other"))
    for _ in range(10):
        queue.submit("ann", request(model="pocket"))
    claimed = [claim(queue, loaded=("pocket",)).id for _ in range(6)]
    assert claimed.index(other.id) == 4


def test_the_look_ahead_does_not_pass_priorities(queue: JobQueue) -> None:
    urgent = queue.submit("ann", request(model="other", priority=1))
    queue.submit("ann", request(model="pocket"))
    assert claim(queue, loaded=("pocket",)).id == urgent.id


def test_paused_jobs_wait(queue: JobQueue) -> None:
    job = queue.submit("ann", request())
    queue.change(job.id, paused=True)
    assert queue.claim("worker") is None
    queue.change(job.id, paused=False)
    running = claim(queue)
    queue.change(job.id, paused=True)
    assert queue.heartbeat(running).paused
    assert queue.release(running).state == "queued"
    assert queue.claim("worker") is None


def test_full_queues_refuse_and_say_when_to_try_again(tmp_path: Path, clock: MovedClock) -> None:
    queue = JobQueue.open(tmp_path, QueueLimits(queued=3, queued_per_owner=2), clock)
    queue.submit("ann", request(key="one"))
    queue.submit("ann", request())
    with pytest.raises(QueueFullError, match="2 jobs of yours wait") as refused:
        queue.submit("ann", request())
    assert refused.value.retry_after == 30
    queue.submit("bob", request())
    with pytest.raises(QueueFullError, match="holds 3 jobs"):
        queue.submit("eve", request())
    assert queue.submit("ann", request(key="one")).idempotency_key == "one"
    job = claim(queue)
    clock.wait(8)
    complete(queue, job)
    queue.announce("a", "cpu")
    queue.announce("b", "cpu", ["pocket"])
    assert [each.models for each in queue.list_workers()] == [[], ["pocket"]]
    queue.submit("eve", request())
    with pytest.raises(QueueFullError) as refused:
        queue.submit("eve", request())
    assert refused.value.retry_after == 4
    clock.wait(31)
    assert queue.list_workers() == []


def test_an_idempotency_key_stands_for_one_request_of_one_owner(queue: JobQueue) -> None:
    job = queue.submit("ann", request(key="one"))
    assert queue.submit("ann", request(key="one")) == job
    assert queue.submit("bob", request(key="one")).id != job.id
    with pytest.raises(IdempotencyError, match="another request"):
        queue.submit("ann", request("a bird", key="one"))
    done = complete(queue, claim(queue))
    assert queue.submit("ann", request(key="one")) == done
    assert len(queue.list_jobs("ann")) == 1


def test_requests_with_uploads_are_equal_if_they_were_sent_equal(queue: JobQueue) -> None:
    def sent(digest: str) -> Job:
        job_id = new_job_id()
        options = {"prompt": "a fish", "image": str(queue.files.inputs(job_id) / "image.png")}
        request = JobRequest("animate", "pocket", options, idempotency_key="one", sent_sha256=digest, job_id=job_id)
        return queue.submit("ann", request)

    assert sent("a" * 64) == sent("a" * 64)
    with pytest.raises(IdempotencyError):
        sent("b" * 64)


def test_deleted_jobs_can_be_brought_back_until_they_expire(queue: JobQueue, clock: MovedClock) -> None:
    queue.submit("ann", request())
    job = complete(queue, claim(queue))
    queue.delete(job.id)
    assert queue.list_jobs() == []
    assert [each.id for each in queue.list_jobs(which="deleted")] == [job.id]
    clock.wait(86000)
    assert queue.clean() == []
    assert queue.restore(job.id).deleted_at is None
    clock.wait(6 * 86400)
    queue.delete(job.id)
    clock.wait(86400)
    assert queue.clean() == [job.id]
    assert not queue.files.results(job.id).exists()
    assert queue.events() == []
    with pytest.raises(UnknownJobError):
        queue.restore(job.id)


def test_deletion_cancels_a_job_that_is_not_finished(queue: JobQueue, clock: MovedClock) -> None:
    first, second = (queue.submit("ann", request()) for _ in range(2))
    running = claim(queue)
    assert queue.delete(second.id).state == "cancelled"
    assert queue.delete(first.id).cancel_requested
    done = queue.release(running)
    assert (done.state, done.expires_at) == ("cancelled", clock.wall + 86400)


def test_jobs_with_a_star_do_not_expire(queue: JobQueue, clock: MovedClock) -> None:
    jobs = [queue.submit("ann", request()) for _ in range(3)]
    queue.change(jobs[0].id, starred=True)
    for _ in jobs:
        complete(queue, claim(queue))
    assert queue.change(jobs[1].id, starred=True).expires_at is None
    clock.wait(8 * 86400)
    assert queue.clean() == [jobs[2].id]
    assert queue.change(jobs[0].id, starred=False).expires_at == clock.wall + 7 * 86400


def test_the_oldest_results_make_room(tmp_path: Path, clock: MovedClock) -> None:
    queue = JobQueue.open(tmp_path, QueueLimits(result_bytes=100), clock)
    jobs = [queue.submit("ann", request()) for _ in range(5)]
    for _ in jobs:
        complete(queue, claim(queue), bytes(40))
        clock.wait(1)
    queue.change(jobs[0].id, starred=True)
    queue.delete(jobs[4].id)
    assert queue.clean() == [jobs[4].id, jobs[1].id, jobs[2].id]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted([jobs[0].id, jobs[3].id])


def test_an_attempt_that_was_killed_after_the_rename_is_replaced(queue: JobQueue, clock: MovedClock) -> None:
    queue.submit("ann", request())
    job = claim(queue)
    part = queue.files.make_part(job)
    (part / "video.mp4").write_bytes(b"first")
    queue.files.publish(job.id, part)
    clock.wait(31)
    second = claim(queue)
    complete(queue, second, b"second")
    assert (queue.files.results(job.id) / "video.mp4").read_bytes() == b"second"


def test_files_of_no_job_are_removed(queue: JobQueue) -> None:
    waiting, other = queue.submit("ann", request()), new_job_id()
    queue.files.clips(waiting.id).mkdir()
    queue.files.clips(other).mkdir()
    queue.files.results(other).mkdir()
    queue.files.inputs(other).mkdir()  # uploads come before their job
    (queue.folder / "results" / "notes").mkdir()
    queue.clean()
    left = {path.relative_to(queue.folder).as_posix() for path in queue.folder.glob("*/*")}
    assert left == {f"clips/{waiting.id}", f"inputs/{other}", "results/notes"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"command": "fly"}, "`command` is generate or animate or edit"),
        ({"model": "a\nb"}, "`model` is a text"),
        ({"priority": 101}, "`priority` is a whole number"),
        ({"options": {"seed": float("nan")}}, "JSON values"),
        ({"options": {"prompt": "\ud800"}}, "lone surrogate"),
        ({"options": {"prompt": "a" * (1 << 20)}}, "at most"),
        ({"idempotency_key": ""}, "`idempotency_key` is a text"),
        ({"job_id": "../../etc"}, "`job_id` is one of"),
        ({"metadata": {"callback": print}}, "JSON values"),
    ],
)
def test_invalid_requests_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        JobRequest(**{"command": "generate", "model": "pocket", "options": {}, "metadata": {}, **wrong})


@pytest.mark.parametrize("id", ["../results", "video_" + "0" * 31, ""])
def test_no_other_file_can_be_named(queue: JobQueue, id: str) -> None:
    with pytest.raises(UnknownJobError):
        queue.files.results(id)


def test_a_full_disk_refuses_jobs_and_loses_none(queue: JobQueue) -> None:
    jobs = [queue.submit("ann", request()) for _ in range(2)]
    running = claim(queue)
    with queue.database.connection() as connection:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size for it
    with pytest.raises(sqlite3.OperationalError, match="full"):
        queue.submit("ann", request("a" * 100_000))
    assert len(queue.list_jobs()) == 2
    assert queue.get(jobs[1].id) == jobs[1]
    with queue.database.connection() as connection:
        connection.execute("PRAGMA max_page_count = 100000")
    assert queue.submit("ann", request()).number == 3
    assert complete(queue, running).state == "completed"


def test_a_locked_file_delays_a_write_and_no_read(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    job = queue.submit("ann", request())
    monkeypatch.setattr("kineograph.service.database.BUSY_SECONDS", 0.05)
    other, impatient = sqlite3.connect(queue.folder / "queue.sqlite3"), JobQueue.open(queue.folder)
    other.execute("BEGIN IMMEDIATE")
    assert impatient.get(job.id) == job
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        impatient.cancel(job.id)
    other.execute("ROLLBACK")
    other.close()
    assert impatient.cancel(job.id).state == "cancelled"


def test_events_cannot_change(queue: JobQueue) -> None:
    queue.submit("ann", request())
    connection = sqlite3.connect(queue.folder / "queue.sqlite3")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("UPDATE events SET data = '{}'")
    connection.close()


def test_files_of_newer_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    JobQueue.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "queue.sqlite3")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="newer version of Kineograph"):
        JobQueue.open(tmp_path)
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "queue.sqlite3").write_bytes(b"something else" * 100)
    with pytest.raises(InputError, match="no queue of Kineograph"):
        JobQueue.open(tmp_path)


def test_a_migration_happens_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = JobQueue.open(tmp_path)
    job = queue.submit("ann", request())
    queue.close()
    broken = (*MIGRATIONS, "ALTER TABLE jobs ADD COLUMN new TEXT;\nALTER TABLE missing ADD COLUMN new TEXT;\n")
    monkeypatch.setattr("kineograph.service.database.MIGRATIONS", broken)
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        JobQueue.open(tmp_path)
    monkeypatch.setattr("kineograph.service.database.MIGRATIONS", (*MIGRATIONS, broken[-1].split("\n")[0]))
    newer = JobQueue.open(tmp_path)
    assert newer.get(job.id) == job
    newer.close()
    assert len(list(split_statements(broken[-1]))) == 2


CLAIM_ALL = """
import json, sys
from kineograph.service.jobs import JobRequest
from kineograph.service.queue import PREVIEWS, JobQueue

queue, claimed = JobQueue.open(sys.argv[1]), []
while (job := queue.claim(sys.argv[2])) is not None:
    claimed.append(job.id)
    queue.heartbeat(job, 50.0)
    part = queue.files.make_part(job)
    (part / "video.mp4").write_bytes(b"frames")
    queue.complete(job, part, {"num_frames": 8})
    if len(claimed) in (10, 20):
        queue.submit("other", JobRequest("generate", "pocket", {"prompt": "a fish"}))
print(json.dumps(claimed))
"""


@pytest.mark.slow
def test_processes_share_a_queue(tmp_path: Path) -> None:
    queue = JobQueue.open(tmp_path)
    for number in range(60):
        queue.submit(f"owner {number % 3}", request())
    programs = [[sys.executable, "-c", CLAIM_ALL, str(tmp_path), f"worker {k}"] for k in range(2)]
    workers = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for program in programs]
    claimed = [job_id for each in workers for job_id in json.loads(each.communicate(timeout=120)[0])]
    assert [each.returncode for each in workers] == [0, 0]
    total = len(queue.list_jobs(limit=1000))
    assert total >= 60
    assert max(Counter(claimed).values()) == 1
    assert len(claimed) == queue.count_jobs()["completed"] == total


def test_the_queue_imports_no_torch() -> None:
    code = "import sys, kineograph.service.queue; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_latest_previews_are_kept(queue: JobQueue) -> None:
    queue.submit("ann", request())
    job = claim(queue)
    for number in range(PREVIEWS + 5):
        queue.add_event(job, "preview", {"image": str(number)})
    images = [each.data["image"] for each in queue.events(job_id=job.id) if each.kind == "preview"]
    assert images == [str(number) for number in range(5, PREVIEWS + 5)]
    assert len(states(queue, job)) == 2


def test_short_jobs_are_claimed_apart_cost_no_turn_and_expire_soon(queue: JobQueue, clock: MovedClock) -> None:
    video = queue.submit("ann", request())
    check = queue.submit("ann", JobRequest("check", "pocket", {}))
    assert check.id.startswith("check_")
    found = queue.claim("worker", commands=SHORT_COMMANDS)
    assert found is not None
    assert found.id == check.id
    assert queue.claim("worker", commands=SHORT_COMMANDS) is None
    complete(queue, found)
    other = queue.submit("bob", request())
    assert [claim(queue).id, claim(queue).id] == [video.id, other.id]
    clock.wait(queue.limits.short_seconds + 1)
    assert queue.clean() == [check.id]
    assert [each.id for each in queue.list_jobs(commands=VIDEO_COMMANDS, order="asc")] == [video.id, other.id]


def test_clips_of_completed_jobs_are_kept_and_count(queue: JobQueue) -> None:
    queue.submit("ann", request())
    job = claim(queue)
    clip = queue.files.clips(job.id) / "key" / "0000.safetensors"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"clip")
    assert complete(queue, job).bytes == len(b"frames") + len(b"clip")
    queue.clean()
    extension = queue.submit("ann", request())
    queue.files.copy_clips(job.id, extension.id)
    queue.delete(job.id)
    assert (queue.files.clips(extension.id) / "key" / "0000.safetensors").read_bytes() == b"clip"
