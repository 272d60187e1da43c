"""The command `kineograph worker` as a process that is stopped, killed and started again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.conftest import sd

import kineograph as kg
from kineograph.models.loading.options import ModelSource
from kineograph.service import loaded_models
from kineograph.service.jobs import Job, JobRequest, QueueLimits
from kineograph.service.loaded_models import LoadedModels
from kineograph.service.queue import JobQueue
from kineograph.service.worker import run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 40
LONG = {
    "prompt": "a fish", "num_frames": 2, "num_inference_steps": STEPS, "height": 16, "width": 16, "clips": 4, "seed": 3,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> str:
    sd().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", QueueLimits(lease_seconds=4))


def start_worker(queue: JobQueue) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kineograph", "worker", str(queue.folder), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(done: Callable[[], Any], worker: subprocess.Popen[str]) -> None:
    while not done():
        assert worker.poll() is None, worker.communicate()[1]
        time.sleep(0.005)


def submit(queue: JobQueue, folder: str, **options: Any) -> Job:
    return queue.submit("ann", JobRequest("generate", folder, {**LONG, **options}, {}))


def clips(queue: JobQueue, job: Job) -> int:
    return len(list(queue.files.clips(job.id).rglob("*.safetensors")))


def test_a_job_that_was_killed_in_its_third_clip_goes_on_there_and_comes_out_the_same(
    queue: JobQueue, folder: str
) -> None:
    job = submit(queue, folder)
    worker = start_worker(queue)
    try:
        wait_until(lambda: clips(queue, job) == 2 and queue.get(job.id).progress > 52, worker)
        os.kill(worker.pid, signal.SIGKILL)
    finally:
        worker.kill()
        worker.communicate()
    killed = queue.get(job.id)
    assert killed.state == "in_progress"
    assert 50 < killed.progress < 75
    assert clips(queue, job) == 2
    assert queue.claim("test") is None  # until its lease ends
    time.sleep(4)
    models, evaluations = LoadedModels.on("cpu"), list[int]()
    (model,) = models.get(ModelSource(folder, {}))
    model.net.register_forward_pre_hook(lambda *_: evaluations.append(0))
    second = queue.claim("test")
    assert second is not None
    assert (second.attempt, second.failures) == (2, 1)
    run_job(queue, models, second, threading.Event())
    done = queue.get(job.id)
    assert done.state == "completed"
    continued = len(evaluations)
    whole = kg.generate(model, **LONG, progress=False)  # type: ignore[arg-type]
    assert done.result is not None
    assert done.result["frames_sha256"] == whole.digest
    assert len(evaluations) - continued == 2 * continued  # clips 1 and 2 were not sampled again


def test_sigterm_ends_the_step_and_puts_the_job_back(queue: JobQueue, folder: str) -> None:
    job = submit(queue, folder)
    worker = start_worker(queue)
    try:
        wait_until(lambda: clips(queue, job) >= 1, worker)
        worker.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, err = worker.communicate(timeout=60)
        assert time.monotonic() - started < 20
    finally:
        worker.kill()
    assert worker.returncode == 0, err
    assert "stopping after this step" in err
    assert "Traceback" not in err
    assert "a fish" not in err  # no prompts in logs
    back = queue.get(job.id)
    assert (back.state, back.failures, back.attempt) == ("queued", 0, 1)
    assert clips(queue, job) >= 1
    assert queue.list_workers() == []


def test_a_worker_renews_its_lease_while_a_model_loads(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue.open(tmp_path / "short", QueueLimits(lease_seconds=1.0))
    load, claims = loaded_models.load, list[Job | None]()

    def slow(name: str, **options: Any) -> Any:
        for _ in range(5):
            time.sleep(0.6)
            claims.append(queue.claim("second"))
        return load(name, **options)

    monkeypatch.setattr(loaded_models, "load", slow)
    job = submit(queue, folder, clips=1, num_inference_steps=2)
    claimed = queue.claim("first")
    assert claimed is not None
    run_job(queue, LoadedModels.on("cpu"), claimed, threading.Event())
    assert claims == [None] * 5
    assert (queue.get(job.id).state, queue.get(job.id).attempt) == ("completed", 1)
