"""Requests that no client sends by mistake: each is refused in the envelope, and none is an error of the server."""

from pathlib import Path

import pytest
from moved_clock import MovedClock
from served import error_of
from starlette.testclient import TestClient

from kineograph.service.api import create_app, short_routes
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import JobRequest
from kineograph.service.queue import JobQueue

JSON = [
    rb'{"prompt": "\ud800"}', rb'{"prompt": "a", "\ud800": 1}', rb'{"prompt": "\u0000"}', b'{"prompt": "\xff"}',
    rb'{"prompt": "a", "model": "\udfff"}', rb'{"prompt": "a", "image": "\u0000"}', b"\xff", b"nul", b"[]", b'"a"',
    b'{"prompt": "a", "num_frames": ' + b"9" * 5000 + b"}", b'{"prompt": "a", "seed": 1e999}',
    b'{"prompt": "a", "seed": NaN}', b"[" * 100_000, b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    b'{"prompt": "a", "image": "' + b"a" * 5000 + b'"}', rb'{"prompt": "a", "size": "\u0663x32"}',
    rb'{"prompt": "a", "input_reference": "data:image/png;base64,\ud800"}', b'{"prompt": "a", "seconds": "1e308"}',
    rb'{"url": "https://\ud800.example/"}', b'{"url": "https://a.example:99999/"}', b'{"priority": 1e400}',
    b'{"url": "https://' + b"a." * 900 + b'example/"}', rb'{"\ud800": 1}', rb'{"clips": 1, "prompt": "\ud800"}',
]  # fmt: skip
HEAD = b"--x\r\nContent-Disposition: form-data; "
FORMS = [
    HEAD + b'name="prompt"\r\n\r\n\xff\xfe\r\n--x--\r\n', HEAD + b'name="\xff"\r\n\r\na\r\n--x--\r\n', b"--x", b"",
    HEAD + b'name="image"; filename="\xff/../../a.png"\r\n\r\na\r\n--x--\r\n', b"--x\r\n\r\na\r\n--x--\r\n",
    HEAD + b'name="file"; filename="%00.png"\r\nContent-Type: \xff\r\n\r\na\r\n--x--\r\n',
    HEAD + b'name="images"; filename="..."\r\n\r\na\r\n' + HEAD + b'name="subject"\r\n\r\n\xed\xa0\x80\r\n--x--\r\n',
    HEAD + b'name="_charset_"\r\n\r\nnothing\r\n' + HEAD + b'name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
]  # fmt: skip
FORM_TYPES = [
    "multipart/form-data; boundary=x", "multipart/form-data; boundary=x; charset=nothing", "multipart/form-data",
    "application/x-www-form-urlencoded; charset=nothing", "application/json; charset=nothing",
]  # fmt: skip
PATHS = [
    "/v1/videos?after=%ff", "/v1/videos?after=%00", "/v1/videos?limit=%ff", "/v1/videos/%ff", "/v1/videos/%00",
    "/v1/videos/%ed%a0%80/content", "/v1/models/%00", "/v1/videos/" + "a" * 5000, "/page/%00", "/page/%ff",
    "/v1/customisations?after=%00", "/v1/tasks/%ff", "/v1/videos/..%2f..%2fqueue.sqlite3/content",
]  # fmt: skip


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=MovedClock())


@pytest.fixture
def client(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(short_routes, "WAIT_SECONDS", 0.0)
    app = create_app(Service(queue, ServeSettings(webhook_hosts=("*",), requests_at_once=10**6)))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def routes_with_bodies(queue: JobQueue) -> list[tuple[str, str]]:
    video = f"/v1/videos/{queue.submit('local', JobRequest('generate', 'pocket', {'prompt': 'a'})).id}"
    posts = ("/v1/videos", "/v1/inspect", "/v1/previews", "/v1/customisations", "/v1/webhooks", f"{video}/remix")
    return [("PATCH", video), ("POST", f"{video}/extend"), *(("POST", path) for path in posts)]


@pytest.mark.slow
def test_bodies_in_json(queue: JobQueue, client: TestClient) -> None:
    for method, path in routes_with_bodies(queue):
        for body in JSON:
            answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, (method, path, body[:80], answer.text)
            error_of(answer)
    assert len(queue.list_jobs()) == 1


@pytest.mark.slow
def test_forms(queue: JobQueue, client: TestClient) -> None:
    for method, path in routes_with_bodies(queue):
        for body in FORMS:
            for content_type in FORM_TYPES:
                answer = client.request(method, path, content=body, headers={"Content-Type": content_type})
                assert answer.status_code < 500, (method, path, content_type, body[:80], answer.text)
    assert not [*queue.folder.parent.rglob("a.png")]


def test_paths(client: TestClient) -> None:
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code in (400, 404), (path[:80], answer.text)
        error_of(answer)
