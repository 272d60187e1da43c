"""Webhooks: addresses that may be registered, and the messages that come to them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
import standardwebhooks
from moved_clock import MovedClock
from served import complete, error_of
from starlette.testclient import TestClient

from kineograph.errors import InputError
from kineograph.service.api import create_app, webhooks
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.api.webhooks import DELAYS, Target, WebhookSender, is_public_address, parse_target, resolve_host
from kineograph.service.jobs import JobRequest
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def receiver(*statuses: int) -> Iterator[tuple[str, list[Received]]]:
    """Yield the URL of a server that answers with these statuses, then with 200, and what it received."""
    received, answers = list[Received](), [*statuses]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(wall=time.time())


@pytest.fixture
def queue(tmp_path: Path, clock: MovedClock) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=clock)


def client_of(queue: JobQueue, hosts: tuple[str, ...], **settings: Any) -> TestClient:
    app = create_app(Service(queue, ServeSettings(webhook_hosts=hosts, **settings)))
    return TestClient(app, base_url="http://localhost:8000")


def send_due(queue: JobQueue, url: str) -> int:
    """Send what is due, as a server does that was just started."""

    async def send() -> int:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return await WebhookSender(queue, {url.removeprefix("http://")}, client).send_due()

    return anyio.run(send)


def register(queue: JobQueue, url: str) -> str:
    """Register a webhook; return its secret."""
    answer = client_of(queue, (url.removeprefix("http://"),)).post("/v1/webhooks", json={"url": f"{url}/hook?a=b"})
    assert answer.status_code == 200, answer.text
    secret: str = answer.json()["secret"]
    return secret


def end_job(queue: JobQueue, owner: str = "local", command: str = "generate") -> str:
    job = queue.submit(owner, JobRequest(command, "pocket", {"prompt": "a secret fish"}))
    complete(queue)
    return job.id


def test_a_message_is_signed_by_the_standard(queue: JobQueue) -> None:
    end_job(queue)  # before the webhook
    with receiver() as (url, received):
        secret = register(queue, url)
        job_id = end_job(queue)
        queue.change(job_id, starred=True)  # no further end
        end_job(queue, "eve")
        end_job(queue, command="check")
        assert send_due(queue, url) == 1
        assert send_due(queue, url) == 0
    (message,) = received
    content = standardwebhooks.Webhook(secret).verify(message.body, message.headers)
    assert content["type"] == "video.completed" and content["data"] == {"id": job_id}
    assert content["id"] == message.headers["webhook-id"]
    assert message.path == "/hook?a=b" and message.headers["host"] == url.removeprefix("http://")
    assert b"fish" not in message.body
    for changed in (message.body + b" ", message.body.replace(b"completed", b"cancelled")):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(secret).verify(changed, message.headers)


def test_failures_and_cancellations_are_sent_too(queue: JobQueue) -> None:
    with receiver() as (url, received):
        register(queue, url)
        queue.cancel(queue.submit("local", JobRequest("generate", "pocket", {})).id)
        queue.submit("local", JobRequest("customise", "pocket", {}))
        job = queue.claim("worker")
        assert job is not None
        queue.fail(job, "out_of_memory", "no")
        assert send_due(queue, url) == 2
    types = {b'"type":"video.cancelled"', b'"type":"customisation.failed"'}
    assert {each for each in types for message in received if each in message.body} == types


def test_a_message_comes_again_until_it_is_received(queue: JobQueue, clock: MovedClock) -> None:
    with receiver(500, 302) as (url, received):
        register(queue, url)
        end_job(queue)
        assert send_due(queue, url) == 1
        assert send_due(queue, url) == 0  # not at once
        for delay in DELAYS[:2]:
            clock.wait(delay * 1.1)
            assert send_due(queue, url) == 1
        clock.wait(DELAYS[2] * 1.1)
        assert send_due(queue, url) == 0
    assert len(received) == 3 and len({each.headers["webhook-id"] for each in received}) == 1
    assert len({each.headers["webhook-timestamp"] for each in received}) == 3
    assert {each.path for each in received} == {"/hook?a=b"}  # the redirect is not followed


def test_a_message_is_given_up_in_the_end(queue: JobQueue, clock: MovedClock) -> None:
    url = "http://localhost:9"  # where nothing listens
    register(queue, url)
    end_job(queue)
    for delay in (*DELAYS, 0):
        assert send_due(queue, url) == 1
        clock.wait(delay * 1.1)
    clock.wait(10 * DELAYS[-1])
    assert send_due(queue, url) == 0


def test_a_receiver_that_is_gone_is_not_called_again(queue: JobQueue) -> None:
    with receiver(410) as (url, received):
        register(queue, url)
        end_job(queue)
        send_due(queue, url)
        end_job(queue)
        assert send_due(queue, url) == 0
    assert len(received) == 1 and not client_of(queue, ()).get("/v1/webhooks").json()["data"]


def test_a_server_that_was_killed_loses_no_message(queue: JobQueue, clock: MovedClock) -> None:
    with receiver() as (url, received):
        register(queue, url)
        end_job(queue)
        sender = WebhookSender(queue, (), httpx.AsyncClient(verify=False))
        sender.add_messages()
        assert len(sender._claim_due()) == 1  # and the process ends before it sends
        end_job(queue)
        assert send_due(queue, url) == 1
        clock.wait(DELAYS[0] * 1.1)
        assert send_due(queue, url) == 1
    assert len({each.headers["webhook-id"] for each in received}) == 2


def test_the_server_sends_while_it_runs(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.01)
    with receiver() as (url, received), client_of(queue, (url.removeprefix("http://"),)) as client:
        client.post("/v1/webhooks", json={"url": url})
        end_job(queue)
        end = time.monotonic() + 10
        while not received and time.monotonic() < end:
            time.sleep(0.01)
    assert len(received) == 1


def test_webhooks_are_listed_and_deleted_by_their_owner(queue: JobQueue, tmp_path: Path) -> None:
    tokens = [{"Authorization": f"Bearer {add_token(tmp_path / 'tokens', owner)}"} for owner in ("ann", "bob")]
    client = client_of(queue, ("*",), token_file=tmp_path / "tokens")
    ann, bob = (partial(client.request, headers=each) for each in tokens)
    made = ann("POST", "/v1/webhooks", json={"url": "https://example.com/hook"}).json()
    assert ann("GET", "/v1/webhooks").json()["data"] == [{k: made[k] for k in ("id", "object", "url", "created_at")}]
    assert bob("GET", "/v1/webhooks").json()["data"] == []
    assert bob("DELETE", f"/v1/webhooks/{made['id']}").status_code == 404
    assert ann("DELETE", f"/v1/webhooks/{made['id']}").json()["deleted"]
    assert ann("DELETE", f"/v1/webhooks/{made['id']}").status_code == 404
    for _ in range(webhooks.MAX_WEBHOOKS):
        assert ann("POST", "/v1/webhooks", json={"url": "https://example.com/hook"}).status_code == 200
    assert (
        error_of(ann("POST", "/v1/webhooks", json={"url": "https://example.com/hook"}))["code"] == "too_many_webhooks"
    )


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com/hook", ()),
        ("https://example.com/hook", ("hooks.example.com", "*.example.com")),
        ("https://example.com.evil.example/", ("example.com", "*.example.com")),
        ("https://example.com:8443/hook", ("example.com", "*")),
        ("http://example.com/hook", ("*",)),
        ("https://127.0.0.1/", ("*",)),
        ("https://[::1]/", ("*",)),
        ("https://ann:secret@example.com/", ("example.com",)),
        ("https://example.com/#part", ("example.com",)),
        ("https://example.com\\@evil.example/", ("*",)),
        ("https://example.com:0x50/", ("*",)),
        ("file:///etc/passwd", ("*",)),
        ("https://", ("*",)),
        ("https://ex ample.com/", ("*",)),
        ("https://example.com/\r\nHost: x", ("*",)),
    ],
)
def test_an_address_that_the_operator_does_not_allow_is_refused(url: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="url|operator does not allow"):
        parse_target(url, allowed)


@pytest.mark.parametrize(
    ("url", "allowed", "is_named"),
    [
        ("https://Example.com/hook", "example.com", True),
        ("https://a.b.example.com/", "*.example.com", False),
        ("https://example.com/", "*", False),
        ("http://10.0.0.7/", "10.0.0.7", True),
        ("https://[fd00::7]:8443/", "[fd00::7]:8443", True),
        ("https://example.com:8443/", "example.com:8443", True),
        ("https://a.example.com:8443/", "*.example.com:8443", False),
    ],
)
def test_an_address_that_the_operator_allows(url: str, allowed: str, *, is_named: bool) -> None:
    ServeSettings(webhook_hosts=(allowed,))
    assert parse_target(url, {allowed}).is_named == is_named


def test_private_addresses_are_told_from_public_ones() -> None:
    private = (
        "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 0.0.0.0 100.64.0.1 224.0.0.1 255.255.255.255 ::1 :: "
        "fe80::1%eth0 fd00::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: ff02::1 localhost"
    )
    assert not [each for each in private.split() if is_public_address(each)]
    assert all(map(is_public_address, ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34")))


def test_a_name_that_leads_to_a_private_address_is_refused() -> None:
    """A name of the internet may lead anywhere; its address is checked, and it is the one that is called."""
    target = Target("https", "localhost", 443, is_named=False)
    with pytest.raises(InputError, match="private network"):
        anyio.run(resolve_host, target)
    assert anyio.run(resolve_host, target._replace(is_named=True)) in ("127.0.0.1", "::1")
