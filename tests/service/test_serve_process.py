"""The command `kineograph serve` as a process: a video from a real worker, and how both processes end."""

import signal
import time
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from models.conftest import sd
from served import serving

from kineograph.cli.serve import name_models, read_settings
from kineograph.errors import InputError
from kineograph.service.declaration import print_declaration
from kineograph.service.jobs import QueueLimits
from kineograph.service.queue import JobQueue


def slow(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.timeout(300)(test))


FEW = {"num_inference_steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sd().save_pretrained(folder)
    return str(folder)


def wait_for_no_worker(queue: JobQueue) -> None:
    for _ in range(300):
        if not queue.list_workers():
            return
        time.sleep(0.1)
    pytest.fail("the worker did not end")


@slow
def test_the_openai_client_gets_a_video_of_the_operators_model(tmp_path: Path, model: str) -> None:
    import openai

    with (
        serving(tmp_path / "service", "--model", f"own={model}", "--set", "queued=5") as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
    ):
        videos = client.videos
        assert [each.id for each in client.models.list()] == ["own"]
        video = videos.create(prompt="a fish", seconds="1", size="16x16", extra_body=FEW)  # type: ignore[arg-type]
        while video.status in ("queued", "in_progress"):
            answer = videos.with_raw_response.retrieve(video.id)
            video = answer.parse()
            time.sleep(float(answer.headers.get("openai-poll-after-ms", "0")) / 1000)
        assert (video.status, video.model, video.size, video.seconds) == ("completed", "own", "16x16", "1"), video.error
        assert videos.download_content(video.id).read()[4:8] == b"ftyp"
        assert videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
        assert videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8"
        queue = JobQueue.open(tmp_path / "service")
        assert queue.limits.queued == 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert queue.list_workers() == []


@slow
def test_a_job_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    queue = JobQueue.open(tmp_path / "service")
    fields = {"prompt": "a fish", "num_frames": 2, "num_inference_steps": 400, "size": "32x32"}
    with serving(tmp_path / "service") as (process, url):
        video = httpx.post(f"{url}/v1/videos", json=fields).json()
        while queue.get(video["id"]).progress < 1:
            time.sleep(0.05)
        process.kill()
        wait_for_no_worker(queue)
    job = queue.get(video["id"])
    assert (job.state, job.failures) == ("queued", 0)  # its worker drained
    with serving(tmp_path / "service") as (process, url):
        while queue.get(video["id"]).progress < 1:
            time.sleep(0.05)
        httpx.post(f"{url}/v1/videos", json=fields).raise_for_status()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert queue.get(video["id"]).attempt == 2


def test_a_model_that_cannot_be_described_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"nowhere/at-all\.safetensors") as refused:
        print_declaration(["own=nowhere/at-all.safetensors"])
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quueued=5", "`set` is NAME=VALUE with the name of a setting, not 'quueued=5': did you mean queued?"),
        ("queued", "`set` is NAME=VALUE"),
        ("queued=none", "`queued`: .*, not 'none'"),
        ("queued=0", "`queued` is a whole number from 1"),
        ("max_upload_bytes=0", "`max_upload_bytes` is a whole number from 1"),
        ("opened_folder=nowhere", "the folder to open, nowhere, is not there"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings({}, [text], tmp_path)


def test_limits_that_are_given_join_those_that_are_recorded(tmp_path: Path) -> None:
    JobQueue.open(tmp_path, QueueLimits(queued=7)).close()
    settings, limits = read_settings({"port": 1}, ["queued_per_owner=3", "poll_seconds=2"], tmp_path)
    assert limits == QueueLimits(queued=7, queued_per_owner=3)
    assert (settings.port, settings.poll_seconds) == (1, 2.0)
    assert read_settings({}, [], tmp_path)[1] is None


def test_models_have_names(tmp_path: Path) -> None:
    (tmp_path / "tiny.v1").mkdir()
    given = [str(tmp_path / "tiny.v1"), "stabilityai/sd-turbo", "own=a=b.ckpt", "c.safetensors"]
    assert name_models(given) == {
        "tiny.v1": str(tmp_path / "tiny.v1"), "sd-turbo": "stabilityai/sd-turbo", "own": "a=b.ckpt",
        "c": "c.safetensors",
    }  # fmt: skip
    with pytest.raises(InputError, match="two models are named 'pocket'"):
        name_models(["pocket", "elsewhere/pocket"])
