"""The worker: results, the ends of attempts, models and LoRAs that stay loaded."""

import base64
import errno
import io
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.conftest import sd
from moved_clock import MovedClock
from PIL import Image

import kineograph as kg
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.models.loading.options import ModelSource
from kineograph.models.model import Model
from kineograph.service import loaded_models, video_jobs, worker
from kineograph.service.jobs import Job, JobRequest, seed_of
from kineograph.service.loaded_models import LoadedModels, count_bytes
from kineograph.service.queue import JobQueue
from kineograph.service.video_jobs import read_call
from kineograph.service.worker import explain, run_job, run_worker

FEW = {"prompt": "a fish", "num_frames": 2, "num_inference_steps": 4, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models, the second with other weights."""
    folder = tmp_path_factory.mktemp("models")
    first, second = sd(), sd()
    with torch.no_grad():
        next(second.unet.parameters()).add_(0.5)
    for name, pipeline in (("first", first), ("second", second)):
        pipeline.save_pretrained(folder / name)
    return str(folder / "first"), str(folder / "second")


@pytest.fixture(scope="module")
def models() -> LoadedModels:
    return LoadedModels.on("cpu")


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def queue(tmp_path: Path, clock: MovedClock) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=clock)


def submit(queue: JobQueue, model: str, command: str = "generate", **options: Any) -> Job:
    return queue.submit("ann", JobRequest(command, model, {**FEW, **options}, {}))


def run_next(queue: JobQueue, models: LoadedModels, stop: threading.Event | None = None) -> Job:
    job = queue.claim("worker", models.names)
    assert job is not None
    run_job(queue, models, job, stop or threading.Event())
    return queue.get(job.id)


def at_check(queue: JobQueue, monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> list[int]:
    """Do something at the check of this number, which is after so many sampling steps; return the checks so far."""
    check, checks = queue.check_attempt, list[int]()

    def checked(job: Job) -> Job:
        if len(checks) == number:
            act()
        checks.append(len(checks))
        return check(job)

    monkeypatch.setattr(JobQueue, "check_attempt", lambda _, job: checked(job))
    return checks


def generated(folder: str, **options: Any) -> Video:
    return kg.generate(kg.load(folder, device="cpu"), **{**FEW, "progress": False, **options})  # type: ignore[arg-type]


def test_a_job_makes_the_video_that_the_library_makes(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str]
) -> None:
    submit(queue, folders[0], seed=5)
    job = run_next(queue, models)
    assert job.state == "completed", job.error_message
    expected = generated(folders[0], seed=5)
    assert job.result is not None
    assert job.result["frames_sha256"] == expected.digest
    assert (job.result["num_frames"], job.result["width"], job.result["seed"]) == (2, 16, 5)
    files = queue.files.results(job.id)
    assert sorted(path.name for path in files.iterdir()) == ["spritesheet.jpg", "thumbnail.webp", "video.mp4"]
    assert read_settings(files / "video.mp4")["frames_sha256"] == expected.digest
    assert job.bytes == sum(path.stat().st_size for path in files.iterdir())
    with Image.open(files / "thumbnail.webp") as thumbnail:
        assert thumbnail.size == (16, 16)
    assert {each.kind for each in queue.events(job_id=job.id)} == {"state", "engine", "progress"}


@pytest.mark.slow
def test_warnings_are_events(queue: JobQueue, models: LoadedModels, folders: tuple[str, str]) -> None:
    submit(queue, folders[0], num_frames=1, num_inference_steps=1, height=64, width=64)
    job = run_next(queue, models)
    (warning,) = [each for each in queue.events(job_id=job.id) if each.kind == "warning"]
    assert "64 x 64 is far from that" in warning.data["message"]


@pytest.mark.slow
def test_previews_are_events_with_small_images(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_jobs, "PREVIEW_SECONDS", 0)
    monkeypatch.setattr(video_jobs, "PREVIEW_SHARE", 1)
    submit(queue, folders[0], seed=5)
    job = run_next(queue, models)
    assert job.result is not None
    assert job.result["frames_sha256"] == generated(folders[0], seed=5).digest
    previews = [each for each in queue.events(job_id=job.id) if each.kind == "preview"]
    assert previews
    with Image.open(io.BytesIO(base64.b64decode(previews[0].data["image"]))) as image:
        assert (image.format, image.size) == ("WEBP", (16, 16))


@pytest.mark.slow
def test_a_job_without_a_seed_has_one_that_all_its_attempts_share(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(queue, folders[0])
    stop = threading.Event()
    checks = at_check(queue, monkeypatch, 2, stop.set)
    stopped = run_next(queue, models, stop)
    assert (stopped.state, stopped.failures, len(checks)) == ("queued", 0, 3)
    done = run_next(queue, models)
    assert done.attempt == 2
    assert done.result is not None
    assert done.result["seed"] == seed_of(job.id)
    assert done.result["frames_sha256"] == generated(folders[0], seed=seed_of(job.id)).digest


def test_cancellation_ends_a_job_within_one_step(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(queue, folders[0]), submit(queue, folders[0])
    checks = at_check(queue, monkeypatch, 2, lambda: queue.cancel(first.id))
    assert run_next(queue, models).state == "cancelled"
    assert len(checks) == 3
    assert not list((queue.folder / "results").iterdir())
    assert run_next(queue, models) == queue.get(second.id)
    assert queue.get(second.id).state == "completed"


@pytest.mark.slow
def test_a_paused_job_goes_back_to_the_queue(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(queue, folders[0])
    at_check(queue, monkeypatch, 2, lambda: queue.change(job.id, paused=True))
    assert run_next(queue, models).state == "queued"
    assert queue.claim("worker") is None


def test_a_worker_that_lost_its_lease_changes_nothing(
    queue: JobQueue,
    models: LoadedModels,
    folders: tuple[str, str],
    clock: MovedClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    submit(queue, folders[0])

    def lose() -> None:
        clock.wait(31)
        assert queue.claim("second") is not None

    at_check(queue, monkeypatch, 2, lose)
    job = run_next(queue, models)
    assert (job.state, job.lease_owner, job.attempt) == ("in_progress", "second", 2)
    assert "no longer of attempt 1" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"no_such_option": 1}, "there is no option `no_such_option`"),
        ({"keep_clips": "/etc"}, "`keep_clips` is not an option of a job"),
        ({"device": "cuda"}, "`device` is not an option of a job"),
        ({"video_dtype": "float16", "video_model": "pocket-video"}, "`video_dtype` is not an option of a job"),
        ({"latents": 1}, "`latents` is not an option of a job"),
        ({"num_videos_per_prompt": 2}, "`num_videos_per_prompt` is not an option of a job"),
        ({"prompt": ["a", "b"]}, "a job of generate has one `prompt`, a text"),
        ({"video_lora": "style.safetensors"}, "`video_lora`: expected the video model that they belong to"),
        ({"lora": "missing.safetensors"}, "missing.safetensors"),
    ],
)
def test_invalid_requests_fail_with_their_message(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    submit(queue, folders[0], **options)
    job = run_next(queue, models)
    assert (job.state, job.error_code) == ("failed", "invalid_request")
    assert message in str(job.error_message)
    assert "\n" not in str(job.error_message)


def test_unknown_models_fail(queue: JobQueue, models: LoadedModels) -> None:
    submit(queue, str(queue.folder / "missing"))
    assert "missing: expected a file, a folder" in str(run_next(queue, models).error_message)


def test_a_job_of_animate_has_an_image(queue: JobQueue, models: LoadedModels, folders: tuple[str, str]) -> None:
    submit(queue, folders[0], "animate")
    assert run_next(queue, models).error_message == "a job of animate has one `image`, a text, not None"


def test_programming_errors_fail_the_job_and_have_their_traceback_in_the_log(
    queue: JobQueue,
    models: LoadedModels,
    folders: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    submit(queue, folders[0])
    monkeypatch.setitem(worker.COMMANDS, "generate", lambda *_, **__: {}["missing"])  # type: ignore[misc]
    job = run_next(queue, models)
    assert (job.state, job.error_code) == ("failed", "internal_error")
    assert "KeyError" in str(job.error_message)
    assert "Traceback" in caplog.text
    assert "Traceback" not in str(job.error_message)


@pytest.mark.slow
def test_lack_of_memory_fails_a_job_once_other_models_are_unloaded(
    queue: JobQueue, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = LoadedModels.on("cpu")
    calls = list[int]()

    def full(*_: object, **__: object) -> None:
        calls.append(len(models))
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    for folder in folders:
        submit(queue, folder)
        run_next(queue, models)
    submit(queue, folders[0])
    monkeypatch.setattr(video_jobs, "run_all", full)
    job = run_next(queue, models)
    assert (job.state, job.error_code) == ("failed", "out_of_memory")
    assert calls == [2, 1]


@pytest.mark.slow
def test_a_full_disk_fails_the_job_and_leaves_nothing(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(queue, folders[0])
    submit(queue, folders[0])

    def full(self: Video, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Video, "save", full)
        job = run_next(queue, models)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert not list((queue.folder / "results").iterdir())
    assert run_next(queue, models).state == "completed"


@pytest.mark.slow
def test_a_result_waits_for_a_queue_that_cannot_be_written(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(queue, folders[0])
    complete, failures = JobQueue.complete, [sqlite3.OperationalError("database or disk is full")] * 3

    def completed(*arguments: Any) -> Job:
        if failures:
            raise failures.pop()
        return complete(*arguments)

    monkeypatch.setattr(worker, "TRY_SECONDS", 0)
    monkeypatch.setattr(JobQueue, "complete", completed)
    assert run_next(queue, models).state == "completed"


def test_errors_of_files_do_not_show_paths() -> None:
    assert explain(PermissionError(errno.EACCES, "Permission denied", "/secret")) == ("file_error", "Permission denied")
    assert explain(MemoryError())[0] == "out_of_memory"


def test_a_second_model_has_its_own_options(queue: JobQueue) -> None:
    own = {"lora": "a.st", "num_frames": None, "num_inference_steps": None, "height": None, "width": None}
    second = {"video_model": "pocket-video", "video_clip_skip": 1}
    job = submit(queue, "pocket", prompt="a", **own, **second)
    sources, arguments = read_call(job)
    assert sources == [
        ModelSource("pocket", {"lora": "a.st"}),
        ModelSource("pocket-video", {"clip_skip": 1}, "video_"),
    ]
    assert arguments == {"prompt": "a"}


@pytest.mark.slow
def test_the_worker_runs_until_it_is_stopped(
    queue: JobQueue, models: LoadedModels, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [submit(queue, folders[0]) for _ in range(2)]
    stop, waits = threading.Event(), list[float]()
    seen = list[Any]()

    def wait(seconds: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            waits.append(seconds or 0)
            seen[:] = queue.list_workers()
            stop.set()
        else:
            time.sleep(0.01)
        return True

    monkeypatch.setattr(stop, "wait", wait)
    run_worker(queue, models, "worker", stop)
    assert [queue.get(each.id).state for each in jobs] == ["completed"] * 2
    assert (waits, [each.device for each in seen]) == ([0.5], ["cpu"])
    assert queue.list_workers() == []


def test_the_worker_waits_for_a_queue_that_is_locked(
    queue: JobQueue, models: LoadedModels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(JobQueue, "claim", locked)
    monkeypatch.setattr(stop, "wait", lambda _: stop.set())
    run_worker(queue, models, "worker", stop)
    assert "cannot be used now" in caplog.text


# --- models


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded."""
    load, names = loaded_models.load, list[str]()

    def counted(name: str, **options: Any) -> Model:
        names.append(Path(name).name)
        return load(name, **options)

    monkeypatch.setattr(loaded_models, "load", counted)
    return names


@pytest.mark.slow
def test_models_stay_loaded_within_the_budget(folders: tuple[str, str], loads: list[str]) -> None:
    first, second = (ModelSource(each, {}) for each in folders)
    (model,) = LoadedModels.on("cpu").get(first)
    size = count_bytes(model)
    assert size == sum(
        weight.numel() * weight.element_size()
        for network in (model.net, model.vae, model.text_encoders[0].network)
        for weight in (*network.parameters(), *network.buffers())
    )
    loads.clear()
    both, one = LoadedModels.on("cpu", budget=2 * size), LoadedModels.on("cpu", budget=2 * size - 1)
    for models, expected in ((both, ["first", "second"]), (one, ["first", "second", "first", "second"])):
        for source in (first, second, first, second):
            models.get(source)
        assert loads == expected
        assert models.names[-1] == folders[1]
        loads.clear()
    assert len(both) == 2
    assert len(one) == 1
    assert len(one.get(first, second)) == 2  # those of one request
    assert len(one) == 2


@pytest.mark.slow
def test_the_least_recently_used_model_goes(folders: tuple[str, str], loads: list[str]) -> None:
    first, second, changed = (
        ModelSource(folders[0], {}),
        ModelSource(folders[1], {}),
        ModelSource(folders[0], {"clip_skip": 1}),
    )
    models = LoadedModels.on("cpu")
    size = count_bytes(models.get(first)[0])
    models = LoadedModels.on("cpu", budget=2.5 * size)
    loads.clear()
    for source in (first, second, first, changed, first):
        models.get(source)
    assert loads == ["first", "second", "first"]
    assert models.names == (folders[0],)


@pytest.mark.slow
def test_models_that_lack_memory_are_loaded_without_others(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = LoadedModels.on("cpu")
    models.get(ModelSource(folders[0], {}))
    load, failures = loaded_models.load, [RuntimeError("CUDA out of memory")]

    def full(name: str, **options: Any) -> Model:
        if failures:
            raise failures.pop()
        return load(name, **options)

    monkeypatch.setattr(loaded_models, "load", full)
    models.get(ModelSource(folders[1], {}))
    assert models.names == (folders[1],)


@pytest.mark.slow
def test_loras_come_and_go_without_loading_the_model_again(
    queue: JobQueue, folders: tuple[str, str], loads: list[str], tmp_path: Path
) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = sd().unet.get_submodule(name).in_features
    key = f"lora_unet_{name.replace('.', '_')}"
    lora = {
        f"{key}.lora_down.weight": torch.ones(2, width),
        f"{key}.lora_up.weight": torch.ones(width, 2),
        f"{key}.alpha": torch.tensor(2.0),
    }
    file = tmp_path / "style.safetensors"
    write_tensors(lora, file, {})
    models = LoadedModels.on("cpu")
    options: list[dict[str, Any]] = [{}, {"lora": [[str(file), 3.0]]}, {}, {"lora": str(file)}]
    results = []
    for each in options:
        submit(queue, folders[0], seed=1, **each)
        job = run_next(queue, models)
        assert job.result is not None, job.error_message
        results.append((job.result["frames_sha256"], read_settings(queue.files.results(job.id) / "video.mp4")))
    assert loads == ["first"]
    assert results[0][0] == results[2][0]
    for lora_option, (digest, settings) in zip(
        ({"lora": (str(file), 3.0)}, {"lora": str(file)}), results[1::2], strict=True
    ):
        model = kg.load(folders[0], device="cpu", **lora_option)  # type: ignore[arg-type]
        expected = kg.generate(model, **FEW, seed=1, progress=False)  # type: ignore[arg-type]
        assert digest == expected.digest != results[0][0]
        assert json.loads(json.dumps(expected.settings)) == settings
    assert results[1][0] != results[3][0]
