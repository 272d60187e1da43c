"""Requests that schemathesis makes from the OpenAPI schema: no error of the server, no answer outside the schema."""

from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from moved_clock import MovedClock
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from served import complete

from kineograph.service.api import create_app, short_routes
from kineograph.service.api.context import ADAPTER_FILE, Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import JobRequest, QueueLimits, UnknownJobError
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # of schemathesis itself
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
)
OPTIONS: dict[str, dict[str, Any]] = {"customise": {"subject": "sks fish"}}
COMMANDS = {"video_id": "generate", "customisation_id": "customise", "task_id": "preview"}


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", QueueLimits(queued=10**6, queued_per_owner=10**6), MovedClock())


@pytest.fixture
def ids(queue: JobQueue) -> dict[str, Iterator[str]]:
    """Ids of jobs in each state, by the name that paths have for them."""
    found = {}
    for name, command in COMMANDS.items():
        request = JobRequest(command, "pocket", OPTIONS.get(command, {"prompt": "a fish"}))
        own = []
        for _ in range(3):
            own.append(queue.submit("ann", request).id)
            complete(queue, kind="canny", frame=0, image="")
        (queue.files.results(own[0]) / ADAPTER_FILE).write_bytes(b"an adapter")
        own.append(queue.submit("ann", request).id)
        queue.cancel(own[-1])
        own.append(queue.submit("ann", request).id)
        job = queue.claim("worker")
        assert job is not None
        queue.fail(job, "invalid_request", "it cannot be")
        own.append(queue.submit("ann", request).id)
        assert queue.claim("worker") is not None
        found[name] = own
    for own in found.values():
        own.append(queue.submit("ann", JobRequest("generate", "pocket", {"prompt": "a fish"})).id)
    return {name: cycle(own) for name, own in found.items()} | {"model": cycle(["pocket", "pocket-video"])}


def has_ended(queue: JobQueue, job_id: str) -> bool:
    try:
        return queue.get(job_id).finished
    except UnknownJobError:
        return True


def send(queue: JobQueue, ids: dict[str, Iterator[str]], folder: Path, examples: settings) -> Counter[int]:
    """Send so many requests for each operation of the schema; return the number of answers by status."""
    serve_settings = ServeSettings(
        token_file=folder / "tokens", requests_at_once=10**6, webhook_hosts=("*",), metrics_owners=("ann",)
    )
    headers = {"Authorization": f"Bearer {add_token(folder / 'tokens', 'ann')}", "Host": "localhost"}
    app = create_app(Service(queue, serve_settings))
    queue.announce("worker", "cpu")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app=app, headers=headers)
    statuses = Counter[int]()
    operations = [each.ok() for each in schema.get_all_operations()]
    for operation in sorted(operations, key=lambda each: each.method == "delete"):  # last
        kinds = [GenerationMode.POSITIVE] * (1 + bool(operation.body)) + [GenerationMode.NEGATIVE]
        strategy = one_of(*(operation.as_strategy(generation_mode=each) for each in kinds))

        @settings(examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
        @given(case=strategy)
        def request(case: schemathesis.Case) -> None:
            for name in ids.keys() & (case.path_parameters or {}).keys():
                if statuses.total() % 4:  # else one that is not there
                    case.path_parameters[name] = next(ids[name])
            if case.path.endswith("/events") and not has_ended(queue, case.path_parameters["video_id"]):
                return  # the stream would not end either
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=CHECKS, headers=headers)
            statuses[answer.status_code] += 1

        request()
    return statuses


@pytest.mark.slow
def test_hundreds_of_requests(
    queue: JobQueue, ids: dict[str, Iterator[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_routes, "WAIT_SECONDS", 0.0)
    statuses = send(queue, ids, tmp_path, settings(max_examples=10, derandomize=True))
    print(statuses)
    assert statuses.total() > 250 and statuses[200] > 50


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_requests(
    queue: JobQueue, ids: dict[str, Iterator[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_routes, "WAIT_SECONDS", 0.0)
    statuses = send(queue, ids, tmp_path, settings(max_examples=350))
    print(statuses)
    assert statuses.total() >= 10_000
