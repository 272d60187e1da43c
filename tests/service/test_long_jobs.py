"""Jobs of workers that go on from others: extended videos, and customisations that were stopped."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_video_customising as tiny
from models.conftest import sd
from PIL import Image

import kineograph as kg
from kineograph.service.jobs import Job, JobRequest
from kineograph.service.loaded_models import LoadedModels
from kineograph.service.queue import JobQueue
from kineograph.service.worker import run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FEW = {"prompt": "a fish", "num_frames": 2, "num_inference_steps": 4, "height": 16, "width": 16, "seed": 3}


def run(queue: JobQueue, models: LoadedModels, request: JobRequest) -> Job:
    queue.submit("ann", request)
    return run_next(queue, models)


def run_next(queue: JobQueue, models: LoadedModels) -> Job:
    job = queue.claim("worker")
    assert job is not None
    run_job(queue, models, job, threading.Event())
    return queue.get(job.id)


def frames(queue: JobQueue, job: Job) -> np.ndarray:
    return kg.open_video(queue.files.results(job.id) / "video.mp4").frames


def test_an_extended_video_begins_with_the_video_whose_clips_are_not_sampled_again(tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "model")
    folder, queue, models = str(tmp_path / "model"), JobQueue.open(tmp_path / "service"), LoadedModels.on("cpu")
    evaluations = list[int]()
    one = run(queue, models, JobRequest("generate", folder, FEW))
    (loaded,) = models.loaded.values()
    loaded.model.net.register_forward_pre_hook(lambda *_: evaluations.append(0))
    two = run(queue, models, JobRequest("generate", folder, {**FEW, "clips": 2, "then": ["a cat"]}, source_id=one.id))
    of_two = len(evaluations)
    options = {**FEW, "clips": 3, "then": ["a cat", "a dog"]}
    three = run(queue, models, JobRequest("generate", folder, options, source_id=two.id))
    assert (one.state, two.state, three.state) == ("completed",) * 3
    assert len(evaluations) - of_two == of_two // 2
    whole = kg.generate(loaded.model, **options, progress=False)  # type: ignore[arg-type]
    assert three.result is not None
    assert three.result["frames_sha256"] == whole.digest
    assert two.bytes > queue.files.results(two.id).joinpath("video.mp4").stat().st_size
    for shorter, longer in ((one, two), (two, three)):
        a, b = frames(queue, shorter), frames(queue, longer)
        assert np.abs(a[:2].astype(int) - b[:2]).mean() < 10  # two encodings of the same frames
    queue.delete(two.id)
    assert queue.files.clips(three.id).is_dir()


def test_a_customisation_that_was_stopped_goes_on_and_its_adapter_can_be_loaded(tmp_path: Path) -> None:
    folder = tiny.save_waves(kg.load(sd()), tmp_path / "video")
    queue, models, stop = JobQueue.open(tmp_path / "service"), LoadedModels.on("cpu"), threading.Event()
    steps: dict[str, Any] = {"max_train_steps": 2, "train_batch_size": 1}
    image = {"training": steps, "prior_pictures": 2, "crops": 1, "height": 16, "width": 16}
    settings = {"training": steps, "motion_training": steps, "image": image, "stills": 2, "natural_videos": 2}
    settings |= {"num_frames": 3, "drawing": {"num_inference_steps": 2}}
    options = {"subject": "sks fish", "settings": settings}
    job = queue.submit("ann", JobRequest("customise", str(folder), options))
    queue.files.inputs(job.id).mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(255, size=(64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(queue.files.inputs(job.id) / f"{number}.png")
    claimed, check, checks = queue.claim("worker"), queue.check_attempt, list[int]()
    assert claimed is not None

    def stopped(each: Job) -> Job:
        checks.append(1)
        if len(checks) == 12:
            stop.set()
        return check(each)

    object.__setattr__(queue, "check_attempt", stopped)
    run_job(queue, models, claimed, stop)
    object.__delattr__(queue, "check_attempt")
    assert queue.get(job.id).state == "queued", queue.get(job.id).error_message
    done = run_next(queue, models)
    assert done.state == "completed", done.error_message
    assert not queue.files.clips(job.id).exists()
    adapter = queue.files.results(job.id) / "adapter.safetensors"
    few = {**FEW, "prompt": "sks fish", "adapter": str(adapter)}
    video = run(queue, models, JobRequest("generate", str(folder), few))
    assert video.state == "completed", video.error_message
