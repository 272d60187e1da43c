"""Routes beside the shared contract: cancel, remix, extend, change, restore, schema, checks, inspections, previews."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kineograph.service.api import create_app, short_routes
from kineograph.service.api.access import current_owner
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import SHORT_COMMANDS, Job, JobRequest, seed_of, with_names
from kineograph.service.queue import JobQueue

FACTS = {"width": 128, "height": 128, "num_frames": 8, "fps": 4.0, "seed": 7, "engine": "torch"}
PROMPT = {"prompt": "a red fish"}


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service")


@pytest.fixture
def client(queue: JobQueue, tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "opened").mkdir()
    (tmp_path / "opened" / "style.safetensors").write_bytes(b"lora")
    settings = ServeSettings(opened_folder=tmp_path / "opened")
    app = create_app(Service(queue, settings))
    app.dependency_overrides[current_owner] = lambda: "local"
    with TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found


def create(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={**PROMPT, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def complete(queue: JobQueue, result: dict[str, Any] | None = None, commands: tuple[str, ...] = ()) -> Job:
    """Complete the next job without a model."""
    job = queue.claim("worker", (), commands)
    assert job is not None
    part = queue.files.make_part(job)
    if job.command not in SHORT_COMMANDS:
        (part / "video.mp4").write_bytes(b"video")
    return queue.complete(job, part, FACTS if result is None else result)


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def test_a_queued_video_is_cancelled_at_once_and_a_running_one_after_its_step(
    client: TestClient, queue: JobQueue
) -> None:
    running, queued = create(client)["id"], create(client)["id"]
    job = queue.claim("worker")
    assert job is not None
    assert client.post(f"/v1/videos/{queued}/cancel").json()["status"] == "cancelled"
    answer = client.post(f"/v1/videos/{running}/cancel").json()
    assert (answer["status"], answer["cancel_requested"]) == ("in_progress", True)
    queue.release(job)
    assert client.post(f"/v1/videos/{running}/cancel").json()["status"] == "cancelled"
    assert "no job" in refused(client.post(f"/v1/videos/video_{'0' * 32}/cancel"), 404)


def test_properties_are_changed(client: TestClient, queue: JobQueue) -> None:
    video = create(client)["id"]
    answer = client.patch(f"/v1/videos/{video}", json={"priority": 5, "paused": True, "starred": True}).json()
    assert (answer["priority"], answer["paused"], answer["starred"]) == (5, True, True)
    assert queue.claim("worker") is None
    client.patch(f"/v1/videos/{video}", json={"paused": False})
    complete(queue)
    assert client.patch(f"/v1/videos/{video}", json={"starred": False}).json()["expires_at"] > 0
    refused(client.patch(f"/v1/videos/{video}", json={"priority": 1000}), 400)
    refused(client.patch(f"/v1/videos/{video}", json={"state": "failed"}), 400)
    assert "not finished" in refused(client.patch(f"/v1/videos/{video}", json={"paused": True}), 400)


def test_a_deleted_video_comes_back(client: TestClient, queue: JobQueue) -> None:
    video = create(client)["id"]
    complete(queue)
    assert client.delete(f"/v1/videos/{video}").status_code == 200
    refused(client.get(f"/v1/videos/{video}"), 404)
    assert client.post(f"/v1/videos/{video}/restore").json()["status"] == "completed"
    assert client.get(f"/v1/videos/{video}/content").content == b"video"


def test_a_remix_changes_fields_and_keeps_the_others_with_the_seed(client: TestClient, queue: JobQueue) -> None:
    source = create(client, num_frames=8, lora=[["style.safetensors", 0.5]], size="64x64")["id"]
    before = queue.get(source)
    complete(queue)
    remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": "a blue fish"}).json()
    job = queue.get(remix["id"])
    assert remix["remixed_from_video_id"] == source
    assert job.options == {**before.options, "prompt": "a blue fish", "seed": 7}
    assert (job.command, job.model) == (before.command, before.model)
    smaller = client.post(f"/v1/videos/{source}/remix", json={"size": "32x32", "seconds": "1", "seed": 1}).json()
    options = queue.get(smaller["id"]).options
    assert (options["width"], options["num_frames"], options["seed"], options["prompt"]) == (32, 4, 1, "a red fish")
    assert "no field `speed`" in refused(client.post(f"/v1/videos/{source}/remix", json={"speed": 2}), 400)
    unfinished = client.post(f"/v1/videos/{remix['id']}/remix", json={"prompt": "a fish"}).json()
    assert queue.get(unfinished["id"]).options["seed"] == 7
    other = create(client)["id"]
    assert queue.get(client.post(f"/v1/videos/{other}/remix", json=PROMPT).json()["id"]).options["seed"] == seed_of(
        other
    )


def test_a_remix_has_copies_of_the_uploads(client: TestClient, queue: JobQueue) -> None:
    files = {"image": ("fish.png", b"image", "image/png")}
    source = client.post("/v1/videos", data=PROMPT, files=files).json()["id"]
    remix = client.post(f"/v1/videos/{source}/remix", json={"prompt": "a fish dives"}).json()["id"]
    own = Path(queue.get(remix).options["image"])
    assert own.parent == queue.files.inputs(remix).resolve()
    assert own.read_bytes() == b"image"
    other = client.post(f"/v1/videos/{source}/remix", files={"image": ("cat.png", b"cat", "image/png")}).json()["id"]
    assert Path(queue.get(other).options["image"]).read_bytes() == b"cat"
    again = client.post(f"/v1/videos/{other}/remix", files={"image": ("cat.png", b"cat 2", "image/png")}).json()["id"]
    assert Path(queue.get(again).options["image"]).read_bytes() == b"cat 2"


def test_an_extension_has_further_clips_of_the_same_video(client: TestClient, queue: JobQueue) -> None:
    source = create(client)["id"]
    assert "is queued" in refused(client.post(f"/v1/videos/{source}/extend", json={"clips": 1}), 409)
    complete(queue)
    extension = client.post(f"/v1/videos/{source}/extend", json={"clips": 2, "prompt": "it jumps"}).json()
    options = queue.get(extension["id"]).options
    expected = {**PROMPT, "clips": 3, "num_frames": 8, "fps": 4.0, "engine": "torch", "seed": 7, "then": ["it jumps"]}
    assert options == expected
    assert (extension["num_frames"], extension["remixed_from_video_id"]) == (24, source)
    complete(queue, {**FACTS, "num_frames": 24})
    longer = client.post(f"/v1/videos/{extension['id']}/extend", json={"seconds": 3, "prompt": "it sleeps"}).json()
    options = queue.get(longer["id"]).options
    assert (options["clips"], options["then"]) == (5, ["it jumps", "it jumps", "it sleeps"])


@pytest.mark.parametrize(
    ("fields", "extension", "message"),
    [
        ({}, {}, "`clips` or `seconds`"),
        ({}, {"clips": 1, "seconds": 1}, "`clips` or `seconds`"),
        ({}, {"clips": 1024}, "at most 1024 clips"),
        ({"control": {"canny": "style.safetensors"}}, {"clips": 1}, "follows the frames of an input video"),
        ({"prompt_at": {"4": "a cat"}}, {"clips": 1}, "prompts at frames"),
    ],
)
def test_what_cannot_be_extended_is_refused(
    client: TestClient, queue: JobQueue, fields: dict[str, Any], extension: dict[str, Any], message: str
) -> None:
    source = create(client, **fields)["id"]
    complete(queue)
    assert message in refused(client.post(f"/v1/videos/{source}/extend", json=extension), 400)


def test_the_schema_has_every_option(client: TestClient) -> None:
    schema = client.get("/v1/schema").json()
    assert schema["options"]["num_inference_steps"]["default"] == 20
    assert "generate" in schema["models"]["pocket"]["commands"]


@pytest.fixture
def worker(queue: JobQueue) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Start a thread that completes the next short job with this result."""
    threads = list[threading.Thread]()

    def start(result: dict[str, Any]) -> None:
        def run() -> None:
            while not queue.count_jobs()["queued"]:
                pass
            complete(queue, result, SHORT_COMMANDS)

        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield start
    for each in threads:
        each.join()


def test_a_check_answers_what_a_request_makes(
    client: TestClient, queue: JobQueue, worker: Callable[[dict[str, Any]], None]
) -> None:
    worker({"accepted": True, "num_frames": 8, "expected_seconds": 3.5, "warnings": []})
    answer = client.post("/v1/check", json={**PROMPT, "num_frames": 8})
    assert answer.status_code == 200
    assert answer.json()["result"]["expected_seconds"] == 3.5
    job = queue.get(answer.json()["id"])
    assert job.options == {"command": "generate", "model": "pocket", "options": {**PROMPT, "num_frames": 8}}
    assert client.get("/v1/videos").json()["data"] == []
    refused(client.get(f"/v1/videos/{job.id}"), 404)


def test_a_check_answers_why_a_request_is_refused(client: TestClient, worker: Callable[[dict[str, Any]], None]) -> None:
    at_once = client.post("/v1/check", json={**PROMPT, "num_frames": 0}).json()
    assert (at_once["id"], at_once["result"]["accepted"]) == (None, False)
    assert at_once["result"]["error"]["param"] == "num_frames"
    unknown = client.post("/v1/check", json={**PROMPT, "model": "no"}).json()
    assert unknown["result"]["error"]["code"] == "model_not_found"
    worker({"accepted": False, "error": "`camera` does nothing here: with videocrafter"})
    error = client.post("/v1/check", json={**PROMPT, "camera": "pan:1,1"}).json()["result"]["error"]
    assert error["param"] == "camera"


def test_a_check_without_a_free_worker_is_asked_for_later(
    client: TestClient, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_routes, "WAIT_SECONDS", 0.05)
    answer = client.post("/v1/check", json=PROMPT)
    assert answer.status_code == 202
    place = answer.headers["Location"]
    assert client.get(place).json()["status"] == "queued"
    complete(queue, {"accepted": True, "warnings": []})
    assert client.get(place).json()["result"]["accepted"]


def test_an_inspection_says_what_is_missing(
    client: TestClient, queue: JobQueue, worker: Callable[[dict[str, Any]], None]
) -> None:
    shape = {"num_frames": 8, "width": 64, "height": 64, "fps": 4.0, "settings": {}, "problem": None}
    sources = ["pocket", "/home/ann/style.safetensors", "/etc/passwd"]
    worker({**shape, "request": PROMPT, "sources": sources})
    answer = client.post("/v1/inspect", files={"file": ("fish.mp4", b"video", "video/mp4")}).json()
    assert answer["result"]["missing"] == ["/etc/passwd"]
    assert answer["result"]["request"] == PROMPT
    job = queue.get(answer["id"])
    assert Path(job.options["file"]).read_bytes() == b"video"
    refused(client.post("/v1/inspect", json={}), 400)
    refused(client.post("/v1/inspect", json={"path": "/etc/passwd"}), 400)


def test_a_preview_is_of_a_file_or_a_completed_video(
    client: TestClient, queue: JobQueue, worker: Callable[[dict[str, Any]], None]
) -> None:
    video = create(client)["id"]
    refused(client.post("/v1/previews", json={"video_id": video}), 409)
    complete(queue)
    worker({"kind": "canny", "frame": 3, "num_frames": 8, "width": 64, "height": 64, "image": "UklG"})
    answer = client.post("/v1/previews", data={"video_id": video, "kind": "canny", "frame": "3"}).json()
    assert answer["result"]["image"] == "UklG"
    assert queue.get(answer["id"]).options["frame"] == 3
    assert "`kind` is canny" in refused(client.post("/v1/previews", json={"video_id": video, "kind": "x"}), 400)
    refused(client.post("/v1/previews", json={"video_id": video, "frame": -1}), 400)


def test_jobs_of_others_are_not_found(client: TestClient, queue: JobQueue) -> None:
    other = queue.submit("other", JobRequest("generate", "pocket", PROMPT)).id
    check = queue.submit("other", JobRequest("check", "pocket", {})).id
    for method, path in (
        ("POST", f"/v1/videos/{other}/cancel"),
        ("POST", f"/v1/videos/{other}/remix"),
        ("POST", f"/v1/videos/{other}/restore"),
        ("GET", f"/v1/videos/{other}/events"),
        ("GET", f"/v1/tasks/{check}"),
    ):
        refused(client.request(method, path), 404)
    refused(client.patch(f"/v1/videos/{other}", json={"priority": 1}), 404)
    refused(client.post(f"/v1/videos/{other}/extend", json={"clips": 1}), 404)
    refused(client.post("/v1/inspect", json={"video_id": other}), 404)


IMAGES = [("images", (f"{number}.png", b"image %d" % number, "image/png")) for number in range(3)]


def test_a_customisation_is_a_job_whose_adapter_videos_name(client: TestClient, queue: JobQueue) -> None:
    data = {"subject": "sks fish", "settings": '{"training": {"max_train_steps": 5}}', "previews": "sks fish dives"}
    answer = client.post("/v1/customisations", data=data, files=IMAGES).json()
    assert (answer["status"], answer["subject"], answer["model"]) == ("queued", "sks fish", "pocket-video")
    job = queue.get(answer["id"])
    expected = {"settings": {"training": {"max_train_steps": 5}}, "previews": ["sks fish dives"], "subject": "sks fish"}
    assert job.options == expected
    assert len(list(queue.files.inputs(job.id).iterdir())) == 3
    refused(client.get(f"/v1/customisations/{job.id}/content"), 404)
    assert "`adapter` names" in refused(client.post("/v1/videos", json={**PROMPT, "adapter": job.id}), 400)
    claimed = queue.claim("worker")
    assert claimed is not None
    (queue.files.make_part(claimed) / "adapter.safetensors").write_bytes(b"weights")
    queue.complete(claimed, queue.files.part(claimed), {"subject": "sks fish"})
    done = client.get(f"/v1/customisations/{job.id}").json()
    assert (done["status"], done["adapter"]) == ("completed", job.id)
    assert client.get(f"/v1/customisations/{job.id}/content").content == b"weights"
    video = create(client, model="pocket-video", adapter=job.id)["id"]
    assert Path(queue.get(video).options["adapter"]).read_bytes() == b"weights"
    remix = client.post(f"/v1/videos/{video}/remix", json=PROMPT).json()["id"]
    assert queue.get(remix).options["adapter"] == queue.get(video).options["adapter"]
    assert [each["id"] for each in client.get("/v1/customisations").json()["data"]] == [job.id]
    assert {each["id"] for each in client.get("/v1/videos").json()["data"]} == {video, remix}
    refused(client.get(f"/v1/videos/{job.id}"), 404)
    assert client.post(f"/v1/customisations/{job.id}/cancel").json()["status"] == "completed"
    assert client.delete(f"/v1/customisations/{job.id}").json()["deleted"]
    refused(client.get(f"/v1/customisations/{job.id}"), 404)


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        ({"subject": "sks fish"}, [], "`images` are 1 to 50 files"),
        ({}, IMAGES, "give a `subject`"),
        ({"subject": "sks fish", "style": "ink"}, IMAGES, "give a `subject`"),
        ({"subject": "sks fish", "model": "/etc"}, IMAGES, "there is no model '/etc' here"),
        ({"subject": "sks fish", "settings": "{"}, IMAGES, "`settings`"),
        ({"subject": "sks fish", "motion_module": "/etc"}, IMAGES, "`motion_module` is"),
        ({"subject": "sks fish", "natural_videos": "/etc"}, IMAGES, "`natural_videos`: Extra inputs"),
    ],
)
def test_customisations_that_cannot_be_are_refused(
    client: TestClient, queue: JobQueue, data: dict[str, str], files: list[Any], message: str
) -> None:
    assert message in refused(client.post("/v1/customisations", data=data, files=files), 400)
    assert not list((queue.folder / "inputs").iterdir())


def test_a_completed_video_is_edited_by_its_id(client: TestClient, queue: JobQueue) -> None:
    source, edit = create(client)["id"], {"prompt": "make it snow"}
    assert "is queued" in refused(client.post("/v1/videos/edits", json={**edit, "video": {"id": source}}), 409)
    complete(queue)
    found = client.post("/v1/videos/edits", json={**edit, "video": {"id": source}}).json()
    assert (found["command"], found["model"], found["remixed_from_video_id"]) == ("edit", "pocket-edit", source)
    assert Path(queue.get(found["id"]).options["video"]).read_bytes() == b"video"
    refused(client.post("/v1/videos/edits", json={**edit, "video": {"id": f"video_{'0' * 32}"}}), 404)
    for reference in ({}, {"id": 1}, {"id": source, "path": "/etc"}, None):
        refused(client.post("/v1/videos/edits", json={**edit, "video": reference}), 400)


def test_messages_of_short_jobs_name_files_as_the_client_does(
    client: TestClient, queue: JobQueue, worker: Callable[[dict[str, Any]], None]
) -> None:
    worker({"accepted": True, "warnings": []})
    answer = client.post("/v1/check", data=PROMPT, files={"image": ("fish.png", b"image", "image/png")}).json()
    job = queue.get(answer["id"])
    assert with_names(job.options["options"]["image"], job) == "fish.png"
    image = ("images", ("a fish.png", b"image", "image/png"))
    sent = {"data": {"style": "ink"}, "files": [image], "headers": {"Idempotency-Key": "key"}}
    first, second = (client.post("/v1/customisations", **sent).json()["id"] for _ in range(2))
    assert first == second
    assert [*queue.get(first).metadata["names"].values()] == ["a fish.png"]
    assert [each.name for each in (queue.folder / "inputs").iterdir() if "customise" in each.name] == [first]
