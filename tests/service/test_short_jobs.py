"""Short jobs: checks of requests, settings of files, control maps; the limits of the processes that read uploads."""

import base64
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.conftest import sd
from PIL import Image
from service.limited_calls import die, interrupt, take, wait

from kineograph.errors import InputError
from kineograph.media.video import Video
from kineograph.service import limited
from kineograph.service.jobs import Job, JobRequest
from kineograph.service.limited import Limits, check_uploads, run_limited
from kineograph.service.loaded_models import LoadedModels
from kineograph.service.queue import JobQueue
from kineograph.service.short_jobs import check_video_request, inspect_file, preview_map
from kineograph.service.video_jobs import expected_seconds
from kineograph.service.worker import run_job, run_worker

FEW = {"prompt": "a fish", "num_frames": 2, "num_inference_steps": 2, "height": 16, "width": 16}
LARGE = 1e12  # bytes of a device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "model"
    sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def video(tmp_path: Path) -> str:
    frames = np.zeros((3, 16, 32, 3), np.uint8)
    frames[:, 4:12, 8:24] = 255
    return str(Video(frames, 8.0).save(tmp_path / "video.mp4"))


def check(folder: str, memory: float = LARGE, **options: Any) -> dict[str, Any]:
    return check_video_request(
        {"command": "generate", "model": folder, "options": {**FEW, **options}}, "cpu", None, memory
    )


@pytest.mark.slow
def test_a_check_says_what_a_request_makes(folder: str) -> None:
    found = check(folder, clips=3)
    assert found["accepted"]
    assert (found["method"], found["num_frames"], found["width"]) == ("text2video-zero", 6, 16)
    assert 0 < found["expected_memory"] < LARGE
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "`num_frames` is a whole number"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"device": "cuda"}, "`device` is not an option of a job"),
        ({"image": "missing.png"}, "missing.png"),
        ({"overlap": 2}, "`overlap` does nothing here"),
        ({"clips": 2, "then": ["a", "b"]}, "ask for more"),
    ],
)
def test_a_check_says_why_a_request_is_refused(folder: str, options: dict[str, Any], message: str) -> None:
    found = check(folder, **options)
    assert not found["accepted"]
    assert message in found["error"]


@pytest.mark.slow
def test_a_check_refuses_more_memory_than_the_device_has(folder: str) -> None:
    assert "needs about" in check(folder, 1e6)["error"]


def test_the_expected_time_is_that_of_the_latest_videos_of_a_model(tmp_path: Path) -> None:
    queue = JobQueue.open(tmp_path / "service")
    facts = {"num_inference_steps": 10, "num_frames": 8, "height": 64, "width": 64}
    assert expected_seconds(queue, "pocket", facts) is None
    for seconds in (1.0, 2.0, 50.0):
        queue.submit("ann", JobRequest("generate", "pocket", {"prompt": "a fish"}))
        job = queue.claim("worker")
        assert job is not None
        queue.complete(job, queue.files.make_part(job), {**facts, "seconds": seconds + 3, "loading_seconds": 3.0})
    assert expected_seconds(queue, "pocket", {**facts, "num_frames": 16}) == 4.0
    assert expected_seconds(queue, "pocket-video", facts) is None


@pytest.mark.slow
def test_an_inspection_returns_the_settings_as_a_request(folder: str, tmp_path: Path, video: str) -> None:
    queue = JobQueue.open(tmp_path / "service")
    job = run(queue, LoadedModels.on("cpu"), JobRequest("generate", folder, {**FEW, "seed": 3}))
    found = inspect_file(str(queue.files.results(job.id) / "video.mp4"))
    assert (found["num_frames"], found["width"], found["problem"]) == (2, 16, None)
    expected = {"prompt": "a fish", "seed": 3, "num_frames": 2, "num_inference_steps": 2, "model": folder}
    assert expected.items() <= found["request"].items()
    assert found["sources"] == [folder]
    other = inspect_file(video)
    assert (other["settings"], other["request"], other["num_frames"]) == ({}, None, 3)


def test_a_preview_is_the_control_map_of_a_frame(video: str) -> None:
    found = preview_map(video, "canny", 1)
    with Image.open(io.BytesIO(base64.b64decode(found["image"]))) as image:
        assert image.size == (32, 16)
        assert np.asarray(image).max() > 128
    with pytest.raises(InputError, match="`frame` is a whole number from 0 to 2"):
        preview_map(video, "canny", 3)


def test_uploads_are_limited(video: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"no media")
    (tmp_path / "bad.png").write_bytes(b"no image")
    check_uploads([video, str(tmp_path / "style.safetensors")])
    with pytest.raises(InputError, match=r"cannot read .*bad.png"):
        check_uploads([str(tmp_path / "bad.png")])
    for name, value, message in (("MAX_PIXELS", 100, "frames of 32 x 16"), ("MAX_SECONDS", 0.1, "longer than")):
        with monkeypatch.context() as patch:
            patch.setattr(limited, name, value)
            with pytest.raises(InputError, match=message):
                check_uploads([video])


# --- in processes


def run(queue: JobQueue, models: LoadedModels, request: JobRequest) -> Job:
    queue.submit("ann", request)
    job = queue.claim("worker")
    assert job is not None
    run_job(queue, models, job, threading.Event())
    return queue.get(job.id)


def stop() -> None:
    raise TimeoutError("stopped")


@pytest.mark.slow
def test_a_process_has_limits() -> None:
    few = Limits(20, 1 << 28)
    assert run_limited(wait, {"seconds": 0.1}, few, lambda: None) == 0.1
    with pytest.raises(InputError, match="more than 0.5 seconds"):
        run_limited(wait, {"seconds": 60}, few._replace(seconds=0.5), lambda: None)
    assert run_limited(take, {"size": 1 << 20}, few, lambda: None) == 1 << 20
    with pytest.raises(InputError, match="too much memory"):
        run_limited(take, {"size": 1 << 30}, few, lambda: None)
    assert run_limited(interrupt, {}, few, lambda: None)
    with pytest.raises(InputError, match="ended with SIGABRT"):
        run_limited(die, {"status": 0}, few, lambda: None)
    with pytest.raises(RuntimeError, match="traceback is in the log"):
        run_limited(die, {"status": 1}, few, lambda: None)
    with pytest.raises(RuntimeError, match="traceback is in the log"):
        run_limited(wait, {"seconds": "a"}, few, lambda: None)
    with pytest.raises(TimeoutError, match="stopped"):
        run_limited(wait, {"seconds": 60}, few, stop)
    with pytest.raises(TimeoutError, match="stopped"):
        run_limited(die, {"status": 1}, few, stop)


@pytest.mark.slow
def test_short_jobs_run_while_a_video_is_generated(folder: str, tmp_path: Path, video: str) -> None:
    queue, ended = JobQueue.open(tmp_path / "service"), threading.Event()
    long = queue.submit("ann", JobRequest("generate", folder, {**FEW, "num_inference_steps": 900, "num_frames": 8}))
    options = {"command": "generate", "model": folder, "options": FEW}
    jobs = [
        queue.submit("ann", JobRequest("check", folder, options)),
        queue.submit("ann", JobRequest("inspect", "none", {"file": video})),
        queue.submit("ann", JobRequest("preview", "none", {"file": video, "kind": "canny", "frame": 0})),
        queue.submit("ann", JobRequest("preview", "none", {"file": video, "kind": "canny", "frame": 9})),
    ]
    thread = threading.Thread(target=run_worker, args=(queue, LoadedModels.on("cpu"), "worker", ended))
    thread.start()
    while not all(queue.get(each.id).finished for each in jobs):
        time.sleep(0.05)
    assert queue.get(long.id).state == "in_progress"
    ended.set()
    thread.join()
    states = [queue.get(each.id).state for each in jobs]
    assert states == ["completed", "completed", "completed", "failed"]
    assert queue.get(jobs[3].id).error_code == "invalid_request"
    assert queue.get(long.id).state == "queued"
