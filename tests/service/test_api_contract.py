"""The video contract of the REST service: what `openai`'s client does, and each route's answers and errors."""

import errno
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from moved_clock import MovedClock
from served import CONTENT, complete, error_of, served
from starlette.testclient import TestClient

from kineograph.service.api import create_app
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.declaration import read_declaration
from kineograph.service.jobs import QueueLimits
from kineograph.service.queue import JobQueue

VIDEO_KEYS = {
    "id", "object", "model", "status", "progress", "created_at", "completed_at", "expires_at", "prompt", "size",
    "seconds", "remixed_from_video_id", "error",
}  # fmt: skip


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", QueueLimits(queued=6), MovedClock())


@pytest.fixture
def app(queue: JobQueue) -> FastAPI:
    return create_app(Service(queue, ServeSettings(poll_seconds=0.25)))


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)


def create(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={"prompt": "a fish", **fields})
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


def test_the_openai_client_creates_polls_lists_downloads_and_deletes(app: FastAPI, queue: JobQueue) -> None:
    import openai

    image = ("fish.png", b"a png", "image/png")
    with (
        served(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # of the model, not of the contract
    ):
        videos = client.videos
        assert "pocket-video" in [each.id for each in client.models.list()]
        first = videos.create(prompt="a red fish", model="pocket", seconds="4", size="64x32")  # type: ignore[arg-type]
        second = videos.create(
            prompt="it swims", input_reference=image, extra_body={"num_frames": 3, "refine_at": [0.9, 0.5]}
        )
        assert (first.status, first.seconds, first.size, first.model) == ("queued", "4", "64x32", "pocket")
        assert second.model == "pocket-animate"
        waiting = videos.with_raw_response.retrieve(first.id)
        assert waiting.headers["openai-poll-after-ms"] == "250"
        assert [each.id for each in videos.list(limit=1)] == [second.id, first.id]  # of two pages
        complete(queue)
        done = videos.retrieve(first.id)
        assert (done.status, done.progress, done.seconds, done.size) == ("completed", 100, "1.5", "64x32")
        assert done.completed_at is not None
        assert done.error is None
        assert videos.download_content(first.id).read() == CONTENT["video.mp4"]
        assert videos.download_content(first.id, variant="thumbnail").read() == CONTENT["thumbnail.webp"]
        assert videos.delete(first.id).deleted
        with pytest.raises(openai.NotFoundError, match="there is no job"):
            videos.retrieve(first.id)
        with pytest.raises(openai.BadRequestError) as refused:
            videos.create(prompt="a fish", model="sora-2")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    job = queue.get(second.id)
    assert (job.options["num_frames"], job.options["refine_at"]) == (3, [0.9, 0.5])
    assert Path(job.options["image"]).read_bytes() == b"a png"


def test_a_video_has_all_keys_of_the_contract(client: TestClient) -> None:
    video = create(client)
    assert video.keys() >= VIDEO_KEYS
    assert client.get(f"/v1/videos/{video['id']}").json() == video


def test_the_answer_says_what_will_be_made(client: TestClient) -> None:
    assert create(client, seconds="1.9")["seconds"] == "2"  # 7.6 frames at 4 a second
    assert create(client, seconds=0.01)["num_frames"] == 1
    video = create(client, model="pocket-video", seconds="4", clips=2, fps=6)
    assert (video["num_frames"], video["fps"], video["seconds"]) == (24, 6, "4")
    assert create(client, model="pocket-video")["num_frames"] == 16


def test_seconds_become_frames_of_the_model(client: TestClient, queue: JobQueue) -> None:
    video = create(client, model="pocket-video", seconds="4", clips=2)
    options = queue.get(video["id"]).options
    assert options == {"prompt": "a fish", "clips": 2, "fps": 8.0, "num_frames": 16}


def test_a_failed_video_says_why(client: TestClient, queue: JobQueue) -> None:
    video = create(client)
    job = queue.claim("worker")
    assert job is not None
    queue.fail(job, "out_of_memory", "fewer frames")
    failed = client.get(f"/v1/videos/{video['id']}")
    assert failed.json()["error"] == {"code": "out_of_memory", "message": "fewer frames"}
    assert "openai-poll-after-ms" not in failed.headers
    error = error_of(client.get(f"/v1/videos/{video['id']}/content"))
    assert (error["code"], "is failed and has no content" in error["message"]) == ("video_not_ready", True)


def test_a_page_of_the_list(client: TestClient) -> None:
    ids = [create(client)["id"] for _ in range(3)]
    page = client.get("/v1/videos", params={"limit": 2, "order": "asc"}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:2], True)
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[0], ids[1])
    rest = client.get("/v1/videos", params={"after": page["last_id"], "order": "asc"}).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert error_of(client.get("/v1/videos?after=video_x"))["param"] == "after"
    assert error_of(client.get("/v1/videos?limit=0"))["param"] == "limit"


def test_content_is_read_in_parts_by_variant(client: TestClient, queue: JobQueue) -> None:
    video = create(client)
    complete(queue)
    path = f"/v1/videos/{video['id']}/content"
    assert client.get(path).headers["content-type"] == "video/mp4"
    assert client.get(path, headers={"Range": "bytes=3-"}).content == CONTENT["video.mp4"][3:]
    assert client.get(path, params={"variant": "spritesheet"}).content == CONTENT["spritesheet.jpg"]
    assert error_of(client.get(path, params={"variant": "gif"}))["param"] == "variant"


def test_deleted_and_unknown_videos_are_not_found(client: TestClient, queue: JobQueue) -> None:
    video = create(client)
    path = f"/v1/videos/{video['id']}"
    assert client.delete(path).json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    assert queue.get(video["id"]).state == "cancelled"
    for answer in (client.get(path), client.delete(path), client.get(f"{path}/content"), client.get("/v1/videos/x")):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert client.get("/v1/videos").json()["data"] == []


def test_an_idempotency_key_stands_for_one_request(client: TestClient, queue: JobQueue) -> None:
    def send(content: bytes, key: str = "k") -> Any:
        files = {"image": ("fish.png", content)}
        return client.post("/v1/videos", data={"prompt": "a"}, files=files, headers={"Idempotency-Key": key})

    first = send(b"1")
    assert send(b"1").json() == first.json()
    changed = send(b"2")
    assert (changed.status_code, error_of(changed)["code"]) == (409, "idempotency_key_reused")
    assert send(b"2", "other").json()["id"] != first.json()["id"]
    assert len(list((queue.folder / "inputs").iterdir())) == 2  # uploads of what was not queued are removed


def test_a_full_queue_says_when_to_try_again(client: TestClient, queue: JobQueue) -> None:
    for _ in range(6):
        create(client)
    full = client.post("/v1/videos", data={"prompt": "a"}, files={"image": ("a.png", b"1")})
    assert (full.status_code, error_of(full)["code"]) == (429, "queue_full")
    assert int(full.headers["Retry-After"]) > 0
    assert list((queue.folder / "inputs").iterdir()) == []


def test_health_readiness_and_models(client: TestClient, queue: JobQueue) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert (client.get("/ready").status_code, client.get("/ready").json()["workers"]) == (503, 0)
    queue.announce("worker", "cpu")
    assert client.get("/ready").json() == {"status": "ok", "workers": 1}
    model = client.get("/v1/models/pocket-video").json()
    assert (model["object"], model["size"], model["num_frames"]) == ("model", "128x128", 16)
    assert error_of(client.get("/v1/models/x"))["code"] == "model_not_found"


def test_every_error_is_in_the_envelope(client: TestClient, queue: JobQueue) -> None:
    assert error_of(client.get("/nowhere"))["code"] == "not_found"
    assert error_of(client.put("/v1/videos"))["code"] == "method_not_allowed"
    assert error_of(client.post("/v1/videos", content="x", headers={"Content-Type": "text/plain"}))["code"] == (
        "unsupported_media_type"
    )
    queue.database.path.rename(queue.database.path.with_suffix(".away"))
    queue.close()
    broken = client.get("/v1/videos")
    assert (broken.status_code, error_of(broken)["code"]) == (503, "queue_unavailable")


def test_an_error_of_the_program_has_no_details(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, *values: object, **options: object) -> None:
        raise AssertionError("a secret")

    monkeypatch.setattr(JobQueue, "list_jobs", fail)
    answer = client.get("/v1/videos")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert error_of(answer)["type"] == "server_error"


def test_the_web_process_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kineograph.cli.serve import read_settings;"
        "from kineograph.service.api import create_app; from kineograph.service.api.context import Service;"
        "from kineograph.service.queue import JobQueue; from starlette.testclient import TestClient;"
        "settings, _ = read_settings({}, [], Path());"
        "client = TestClient(create_app(Service(JobQueue.open(sys.argv[1]), settings)), base_url='http://localhost');"
        "answer = client.post('/v1/videos', data={'prompt': 'a'}, files={'image': ('a.png', b'1')});"
        "assert answer.status_code == 200, answer.text;"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    modules = subprocess.check_output([sys.executable, "-c", code, tmp_path], text=True).split()
    assert not {"torch", "numpy", "PIL", "av", "diffusers", "transformers"} & set(modules)


def test_the_schema_names_every_field(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    fields = schema["components"]["schemas"]["VideoRequest"]["properties"]
    assert fields.keys() >= {"prompt", "seconds", "size", "input_reference", *read_declaration().options}
    form = schema["components"]["schemas"]["VideoForm"]["properties"]
    assert (form["image"]["format"], form["files"]["items"]["format"]) == ("binary", "binary")
    assert "422" not in json.dumps(schema)


def test_a_full_disk_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kineograph.service.api.fields.store_file", fail)
    answer = client.post("/v1/videos", data={"prompt": "a"}, files={"image": ("a.png", b"1")})
    assert (answer.status_code, error_of(answer)["code"]) == (507, "disk_full")
