"""What an operator sees of the REST service: logs and metrics."""

import json
import logging
import re
from pathlib import Path

import pytest
from moved_clock import MovedClock
from starlette.testclient import TestClient

from kineograph.cli.serve import JsonFormatter
from kineograph.service.api import create_app
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import new_job_id
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token

PROMPT = "a secret fish"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def queue(tmp_path: Path, clock: MovedClock) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=clock)


def client_of(queue: JobQueue, settings: ServeSettings | None = None) -> TestClient:
    app = create_app(Service(queue, settings or ServeSettings()))
    return TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)


def values_of(caplog: pytest.LogCaptureFixture) -> list[dict]:
    return [each.values for each in caplog.records if each.name == "kineograph.service.requests"]  # type: ignore[attr-defined]


def test_a_request_is_logged_without_its_prompt(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kineograph.service")
    client = client_of(queue)
    video = client.post("/v1/videos", json={"prompt": PROMPT}).json()
    client.get(f"/v1/videos/{video['id']}?secret={PROMPT}")
    client.get(f"/v1/videos/{PROMPT}")
    client.get(f"/{PROMPT}")
    client.get("/health", headers={"Host": PROMPT})
    seen = values_of(caplog)
    assert [(each["method"], each["route"], each["status"]) for each in seen] == [
        ("POST", "/v1/videos", 200),
        ("GET", "/v1/videos/{video_id}", 200),
        ("GET", "/v1/videos/{video_id}", 404),
        ("GET", "-", 404),
        ("GET", "-", 403),
    ]
    assert [each.get("job") for each in seen] == [video["id"], video["id"], None, None, None]
    assert [each.get("owner") for each in seen] == ["local"] * 4 + [None]
    assert all(0 <= each["milliseconds"] < 10_000 for each in seen)
    assert "secret" not in caplog.text


def test_prompts_are_logged_where_the_operator_asks(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kineograph.service")
    client_of(queue, ServeSettings(log_prompts=True)).post("/v1/videos", json={"prompt": "one\ntwo"})
    assert [each["prompt"] for each in values_of(caplog)] == ["one\ntwo"]
    assert r"prompt='one\ntwo'" in caplog.text


def test_a_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("kineograph.service.test")
    log.warning("%s: attempt %d", job_id := new_job_id(), 1)
    assert json.loads(JsonFormatter().format(caplog.records[-1]))["job"] == job_id
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("it is %s", "broken", extra={"values": {"job": "video_1"}})
    line = JsonFormatter().format(caplog.records[-1])
    values = json.loads(line)
    assert "\n" not in line
    assert (values["level"], values["message"], values["job"]) == ("ERROR", "it is broken", "video_1")
    assert "ValueError: no" in values["traceback"] and re.match(r"20..-..-..T..:..:..\....\+00:00", values["time"])


def test_an_error_of_the_program_is_logged_and_counted(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kineograph.service")
    client = client_of(queue)

    @client.app.get("/broken")  # type: ignore[attr-defined]
    def broken() -> None:
        raise RuntimeError("of the program")

    answer = client.get("/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert values_of(caplog)[-1]["status"] == 500
    assert 'route="/broken",status="500"' in client.get("/metrics").text


def test_metrics_of_the_queue_and_of_requests(queue: JobQueue, clock: MovedClock) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client = client_of(queue)
    ids = [client.post("/v1/videos", json={"prompt": PROMPT}).json()["id"] for _ in range(3)]
    clock.wait(4)
    job = queue.claim("worker")
    assert job is not None
    clock.wait(40)
    queue.announce("worker", "cuda:0", ["pocket-video"])
    queue.complete(job, queue.files.make_part(job), {"seed": 1})
    client.patch(f"/v1/videos/{job.id}", json={"starred": True})  # counted once all the same
    client.get(f"/v1/videos/{ids[1]}")
    client.get(f"/v1/videos/{ids[2]}")
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        (each.name, *sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(answer.text)
        for each in family.samples
    }
    assert samples["kineograph_jobs", ("state", "queued")] == 2
    assert samples["kineograph_jobs", ("state", "completed")] == 1
    assert samples[("kineograph_workers",)] == samples["kineograph_workers_with_model", ("model", "pocket-video")] == 1
    labels = ("command", "generate"), ("state", "completed")
    assert samples["kineograph_job_seconds_sum", *labels] == 40
    assert samples["kineograph_job_wait_seconds_sum", labels[0]] == 4
    labels = ("method", "GET"), ("route", "/v1/videos/{video_id}"), ("status", "200")
    assert samples["kineograph_request_seconds_count", *labels] == 2
    assert 'kineograph_job_seconds_count{command="generate",state="completed"} 1.0' in client.get("/metrics").text


def test_metrics_are_for_owners_that_are_named(
    queue: JobQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ann, prometheus = (add_token(tmp_path / "tokens", owner) for owner in ("ann", "prometheus"))
    client = client_of(queue, ServeSettings(token_file=tmp_path / "tokens", metrics_owners=("prometheus",)))
    caplog.set_level(logging.DEBUG, "kineograph.service")
    for token, status in ((ann, 403), (prometheus, 200), ("none", 401)):
        assert client.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == status
    assert [each.get("owner") for each in values_of(caplog)] == ["ann", "prometheus", None]
