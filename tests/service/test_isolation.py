"""Owners see nothing of one another, by any route of the schema; and what answers without a token is listed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from moved_clock import MovedClock
from served import complete, error_of
from starlette.testclient import TestClient

from kineograph.service.api import create_app, short_routes
from kineograph.service.api.access import is_public
from kineograph.service.api.context import ADAPTER_FILE, Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import JobRequest
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token

SHARED = {"model"}  # what parts of paths name that belongs to no owner
BODIES: dict[str, dict[str, Any]] = {
    "PATCH /v1/videos/{video_id}": {"json": {"starred": True}},
    "POST /v1/videos/{video_id}/remix": {"json": {"prompt": "a blue fish"}},
    "POST /v1/videos/{video_id}/extend": {"json": {"clips": 1}},
}


class Operation(NamedTuple):
    method: str
    path: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=MovedClock())


@pytest.fixture
def app(queue: JobQueue, tmp_path: Path) -> FastAPI:
    add_token(tmp_path / "tokens", "nobody")
    settings = ServeSettings(token_file=tmp_path / "tokens", webhook_hosts=("example.com",))
    return create_app(Service(queue, settings))


@pytest.fixture
def clients(app: FastAPI, tmp_path: Path) -> tuple[TestClient, TestClient]:
    """Clients of two owners."""
    tokens = [add_token(tmp_path / "tokens", owner) for owner in ("ann", "bob")]
    ann, bob = (
        TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {each}"}) for each in tokens
    )
    return ann, bob


def operations(app: FastAPI) -> list[Operation]:
    return [
        Operation(
            method.upper(), path, tuple(each["name"] for each in one.get("parameters", ()) if each["in"] == "path")
        )
        for path, methods in app.openapi()["paths"].items()
        for method, one in methods.items()
    ]


def all_paths(routes: Iterable[Any]) -> Iterator[str]:
    for each in routes:
        if hasattr(each, "path"):
            yield each.path
        else:  # an included router
            yield from all_paths(each.original_router.routes)


def completed(queue: JobQueue, owner: str, command: str) -> str:
    options = {"subject": "sks fish"} if command == "customise" else {"prompt": "a fish"}
    job = queue.submit(owner, JobRequest(command, "pocket", options, priority=2))  # the next one to be claimed
    complete(queue, kind="canny", frame=0, image="")  # as a preview's result
    (queue.files.results(job.id) / ADAPTER_FILE).write_bytes(b"an adapter")
    return job.id


def make_ids(queue: JobQueue, client: TestClient, parameter: str) -> dict[str, str]:
    """Return what an owner has whose ids a part of a path may be, by its state."""
    if parameter == "webhook_id":
        return {"registered": client.post("/v1/webhooks", json={"url": "https://example.com/"}).json()["id"]}
    command = {"video_id": "generate", "task_id": "preview", "customisation_id": "customise"}[parameter]
    ids = {each: completed(queue, "ann", command) for each in ("completed", "deleted")}
    queue.delete(ids["deleted"])
    options = {"subject": "sks fish"} if command == "customise" else {"prompt": "a fish"}
    for state, priority in (("in_progress", 1), ("queued", 0)):
        ids[state] = queue.submit("ann", JobRequest(command, "pocket", options, priority=priority)).id
    assert (job := queue.claim("worker")) is not None and job.id == ids["in_progress"]
    return ids


def test_no_route_with_an_id_shows_or_changes_what_another_owner_has(
    app: FastAPI, queue: JobQueue, clients: tuple[TestClient, TestClient]
) -> None:
    ann, bob = clients
    named = [each for each in operations(app) if {*each.parameters} - SHARED]
    parameters = {name for each in named for name in each.parameters}
    ids = {name: make_ids(queue, ann, name) for name in parameters}
    before = [queue.get(each) for name in parameters - {"webhook_id"} for each in ids[name].values()]
    last = queue.last_event()
    for each in named:
        (name,) = each.parameters
        unknown = f"{next(iter(ids[name].values()))[:-8]}00000000"
        expected = None
        for found in (unknown, *ids[name].values()):
            answer = bob.request(each.method, each.path.replace(f"{{{name}}}", found), **BODIES.get(str(each), {}))
            assert answer.status_code == 404, (str(each), answer.text)
            expected = expected or answer.text
            assert answer.text == expected.replace(unknown, found), str(each)  # as for an id that was never there
    assert [queue.get(each.id) for each in before] == before and queue.last_event() == last
    assert len(ann.get("/v1/webhooks").json()["data"]) == 1


def test_the_owner_has_all_of_these_routes(
    app: FastAPI, queue: JobQueue, clients: tuple[TestClient, TestClient]
) -> None:
    """The same requests are not refused for another reason than their sender."""
    ann, _ = clients
    by_parameter = {
        name: make_ids(queue, ann, name) for name in ("video_id", "task_id", "customisation_id", "webhook_id")
    }
    named = [each for each in operations(app) if {*each.parameters} - SHARED]
    for each in sorted(named, key=lambda each: each.method == "DELETE"):  # last
        (name,) = each.parameters
        ids = by_parameter[name]
        found = next(ids[state] for state in ("completed", "registered") if state in ids)
        found = ids["deleted"] if each.path.endswith("/restore") else found
        answer = ann.request(each.method, each.path.replace(f"{{{name}}}", found), **BODIES.get(str(each), {}))
        assert answer.status_code == 200, (str(each), answer.text)


def test_lists_have_what_is_the_owners_own(queue: JobQueue, clients: tuple[TestClient, TestClient]) -> None:
    ann, bob = clients
    ids = {
        path: completed(queue, "ann", command)
        for path, command in (("videos", "generate"), ("customisations", "customise"))
    }
    for path, own in ids.items():
        assert [each["id"] for each in ann.get(f"/v1/{path}").json()["data"]] == [own]
        assert bob.get(f"/v1/{path}").json()["data"] == []
        assert error_of(bob.get(f"/v1/{path}?after={own}"))["code"] == "not_found"


def test_no_field_of_a_request_names_what_another_owner_has(
    queue: JobQueue, clients: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_routes, "WAIT_SECONDS", 0.0)
    ann, bob = clients
    video, adapter = completed(queue, "ann", "generate"), completed(queue, "ann", "customise")
    for path in ("/v1/inspect", "/v1/previews"):
        answers = [each.post(path, data={"video_id": video}).status_code for each in (ann, bob)]
        assert answers == [202, 404], path
    request = {"prompt": "sks fish", "model": "pocket-video", "adapter": adapter}
    assert [each.post("/v1/videos", json=request).status_code for each in (ann, bob)] == [200, 404]
    stolen = queue.files.inputs(video), queue.files.results(video) / "video.mp4"
    for name in (*map(str, stolen), f"../../results/{video}/video.mp4", f"results/{video}/video.mp4"):
        answer = bob.post("/v1/videos", json={"prompt": "a fish", "video": name})
        assert error_of(answer)["code"] == "invalid_request", name
    key = {"Idempotency-Key": "the same"}
    made = [each.post("/v1/videos", json={"prompt": "a fish"}, headers=key).json()["id"] for each in (ann, bob)]
    assert made[0] != made[1] and queue.get(made[1]).owner == "bob"


def test_only_what_is_listed_answers_without_a_token(app: FastAPI) -> None:
    client = TestClient(app, base_url="http://localhost")
    paths = {*all_paths(app.routes)}
    assert paths > {each.path for each in operations(app)}
    open_paths = {
        path
        for path in paths
        for method in ("GET", "POST", "OPTIONS")
        if client.request(method, path).status_code != 401
    }
    assert open_paths == {"/", "/health", "/ready", "/page/{name}"} == {each for each in paths if is_public(each)}
    for path in (
        "/openapi.json",
        "/docs",
        "/health/",
        "/page/../v1/videos",
        "/page/%2e%2e/v1/videos",
        "/page/nothing",
    ):
        answer = client.get(path)
        assert answer.status_code in (401, 404), path
        assert error_of(answer)["code"] in ("unauthorized", "not_found")


def test_what_answers_without_a_token_says_nothing_of_jobs(app: FastAPI, queue: JobQueue) -> None:
    completed(queue, "ann", "generate")
    client = TestClient(app, base_url="http://localhost")
    for path in ("/", "/health", "/ready"):
        text = client.get(path).text
        assert not [each for each in ("ann", "fish", "video_") if each in text], path
