"""Access to the REST service: tokens, cookies, hosts, origins, and limits of size and rate."""

import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI
from moved_clock import MovedClock
from served import served
from starlette.testclient import TestClient

from kineograph.errors import InputError
from kineograph.service.api import create_app
from kineograph.service.api.access import COOKIE_NAME
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import TokenFile, add_token, load_cookie_key, make_cookie, read_cookie

URL = "http://localhost:8000"


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "service", clock=MovedClock())


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def client_of(queue: JobQueue, settings: ServeSettings, **headers: str) -> TestClient:
    return TestClient(create_app(Service(queue, settings)), base_url=URL, headers=headers)


# --- the file of tokens


def test_a_token_is_found_by_its_secret_alone(token_file: Path) -> None:
    ann, bob = add_token(token_file, "ann"), add_token(token_file, "bob: the second")
    tokens = TokenFile.open(token_file)
    for token, owner in ((ann, "ann"), (bob, "bob: the second")):
        token_id = tokens.find(token)
        assert token_id is not None and tokens.owner(token_id) == owner
    head, _, _ = ann.rpartition("_")
    for wrong in ("", "kg_", f"{head}_{bob[-43:]}", ann + "x", ann.upper(), f"kg_{'0' * 16}_{ann[-43:]}"):
        assert tokens.find(wrong) is None, wrong


def test_the_file_has_no_token_and_is_its_users_alone(token_file: Path) -> None:
    secret = add_token(token_file, "ann")[-43:]
    assert secret not in token_file.read_text()
    assert token_file.stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_removed_counts_at_once(token_file: Path) -> None:
    ann, bob = add_token(token_file, "ann"), add_token(token_file, "bob")
    tokens = TokenFile.open(token_file)
    token_file.write_text("# left alone\n" + token_file.read_text().splitlines()[1])  # no newline at its end
    assert tokens.find(ann) is None and tokens.find(bob) is not None
    eve = add_token(token_file, "eve")
    assert tokens.find(eve) is not None and tokens.find(bob) is not None
    token_file.unlink()
    assert tokens.find(bob) is None


def test_a_file_without_tokens_is_refused(token_file: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        TokenFile.open(token_file)
    token_file.write_text("# nothing\n")
    with pytest.raises(InputError, match="has no token"):
        TokenFile.open(token_file)
    token_file.write_text("ann:my-secret-password\n")
    with pytest.raises(InputError, match="line 1 is not OWNER:ID:HASH") as refused:
        TokenFile.open(token_file)
    assert "password" not in str(refused.value)
    with pytest.raises(InputError, match="owner"):
        add_token(token_file, "#ann")


def test_a_server_for_other_machines_needs_tokens() -> None:
    with pytest.raises(InputError, match="needs tokens: make one by `kineograph serve --new-token OWNER"):
        ServeSettings(host="0.0.0.0")


def test_a_cookie_is_signed_and_expires(tmp_path: Path) -> None:
    key = load_cookie_key(tmp_path / "cookie.key")
    assert load_cookie_key(tmp_path / "cookie.key") == key
    cookie = make_cookie(key, "0123456789abcdef", 1000)
    assert read_cookie(key, cookie, 999) == "0123456789abcdef"
    assert read_cookie(key, cookie, 1000) is None
    assert read_cookie(bytes(32), cookie, 999) is None
    assert read_cookie(key, cookie.replace(".1000.", ".9999."), 999) is None
    assert read_cookie(key, "", 999) is None


# --- requests


def test_a_request_needs_a_token(queue: JobQueue, token_file: Path) -> None:
    token = add_token(token_file, "ann")
    client = client_of(queue, ServeSettings(token_file=token_file))
    for headers in ({}, {"Authorization": "Bearer none"}, {"Authorization": token}, {"Cookie": f"{COOKIE_NAME}=x"}):
        answer = client.get("/v1/videos", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/no/such/path").status_code == 401
    assert client.get("/v1/videos", headers={"Authorization": f"bearer {token}"}).status_code == 200
    video = client.post("/v1/videos", json={"prompt": "a fish"}, headers={"Authorization": f"Bearer {token}"}).json()
    assert queue.get(video["id"]).owner == "ann"


def test_a_browser_logs_in_and_out(queue: JobQueue, token_file: Path) -> None:
    token = add_token(token_file, "ann")
    settings = ServeSettings(token_file=token_file, login_hours=2)
    client = client_of(queue, settings)
    answer = client.post("/login", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200 and answer.json()["owner"] == "ann"
    cookie = answer.headers["set-cookie"]
    assert all(each in cookie for each in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=7200"))
    assert "Secure" not in cookie and token[-43:] not in cookie
    assert client.get("/v1/videos").status_code == 200
    assert client.post("/login").status_code == 400  # a cookie does not renew itself
    restarted = client_of(queue, settings)
    restarted.cookies = client.cookies
    assert restarted.get("/v1/videos").status_code == 200
    assert client.post("/logout").status_code == 200
    assert client.get("/v1/videos").status_code == 401
    queue.clock.wait(2 * 3600)  # type: ignore[attr-defined]
    assert restarted.get("/v1/videos", headers={"Cookie": cookie.partition(";")[0]}).status_code == 401


def test_a_cookie_ends_with_its_token(queue: JobQueue, token_file: Path) -> None:
    ann = add_token(token_file, "ann")
    client = client_of(queue, ServeSettings(token_file=token_file))
    client.post("/login", headers={"Authorization": f"Bearer {ann}"})
    assert client.get("/v1/models").status_code == 200
    token_file.write_text("")
    add_token(token_file, "bob")
    assert client.get("/v1/models").status_code == 401


def test_a_cookie_goes_over_https_alone_where_the_login_did(queue: JobQueue, token_file: Path) -> None:
    token = add_token(token_file, "ann")
    app = create_app(Service(queue, ServeSettings(token_file=token_file)))
    client = TestClient(app, base_url="https://localhost")
    assert "Secure" in client.post("/login", headers={"Authorization": f"Bearer {token}"}).headers["set-cookie"]


def test_the_host_is_a_name_of_this_server(queue: JobQueue) -> None:
    client = client_of(queue, ServeSettings(allowed_hosts=("Videos.example",)))
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST.", "10.0.0.7:80", "videos.example"):
        assert client.get("/health", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "", "localhost:8000@evil.example", "127.0.0.1.nip.io:8000"):
        answer = client.get("/health", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed"), host


def test_pages_of_other_sites_change_nothing(queue: JobQueue) -> None:
    client = client_of(queue, ServeSettings())
    contents = {"json": {"prompt": "a fish"}}, {"data": {"prompt": "a fish"}}
    for own in ({}, {"Origin": URL}, {"Sec-Fetch-Site": "same-origin"}):
        assert [client.post("/v1/videos", headers=own, **each).status_code for each in contents] == [200, 200], own
    before = len(queue.list_jobs())
    origins = [{"Origin": each} for each in ("https://evil.example", "http://localhost:3000", "null")]
    for other in (*origins, {"Sec-Fetch-Site": "cross-site"}):
        assert [client.post("/v1/videos", headers=other, **each).status_code for each in contents] == [403, 403], other
        assert client.get("/v1/videos", headers=other).status_code == 200  # which they cannot read
        preflight = client.options("/v1/videos", headers={**other, "Access-Control-Request-Method": "POST"})
        assert not [name for name in preflight.headers if name.startswith("access-control")]
    assert len(queue.list_jobs()) == before


def test_every_answer_has_the_security_headers(queue: JobQueue, token_file: Path) -> None:
    token = add_token(token_file, "ann")
    client = client_of(queue, ServeSettings(token_file=token_file))
    answers = [
        client.get("/"),
        client.get("/v1/videos"),
        client.get("/v1/videos", headers={"Authorization": f"Bearer {token}"}),
        client.get("/health", headers={"Host": "evil.example"}),
        client.get("/nothing", headers={"Authorization": f"Bearer {token}"}),
    ]
    assert [each.status_code for each in answers] == [200, 401, 200, 403, 404]
    for each in answers:
        policy = each.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["referrer-policy"] == "no-referrer"
        assert each.headers["cross-origin-resource-policy"] == "same-origin"


# --- limits


def test_a_body_that_is_too_large_is_refused_by_its_announcement(queue: JobQueue) -> None:
    client = client_of(queue, ServeSettings(max_json_bytes=100, max_body_bytes=2000))
    answer = client.post("/v1/videos", json={"prompt": "a fish" * 100})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert answer.headers["connection"] == "close"
    form = {"prompt": (None, "a fish" * 100)}  # a form may have more, as it is not held in memory
    assert client.post("/v1/videos", files=form).status_code == 200
    assert client.post("/v1/videos", files={**form, "image": b"-" * 2000}).status_code == 413


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_that_is_too_large_is_refused_while_it_comes(queue: JobQueue, content_type: str) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        while sent < 1000:
            sent += 1
            yield b"-" * 100

    async def send() -> httpx.Response:
        app = create_app(Service(queue, ServeSettings(max_body_bytes=1000, max_json_bytes=1000)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL) as client:
            return await client.post("/v1/videos", content=body(), headers={"Content-Type": content_type})

    answer = anyio.run(send)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert sent <= 12
    assert not queue.list_jobs()


def test_an_owner_has_a_rate_of_requests(queue: JobQueue, token_file: Path) -> None:
    ann, bob = (
        client_of(queue, ServeSettings(), Authorization=f"Bearer {add_token(token_file, owner)}")
        for owner in ("ann", "bob")
    )
    settings = ServeSettings(token_file=token_file, requests_per_second=0.5, requests_at_once=3)
    app = create_app(Service(queue, settings))
    ann, bob = (TestClient(app, base_url=URL, headers=each.headers) for each in (ann, bob))
    assert [ann.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = ann.get("/v1/models")
    assert refused.headers["retry-after"] == "2" and refused.json()["error"]["type"] == "rate_limit_error"
    assert bob.get("/v1/models").status_code == 200
    queue.clock.wait(2)  # type: ignore[attr-defined]
    assert [ann.get("/v1/models").status_code for _ in range(2)] == [200, 429]
    assert ann.get("/health").status_code == 200


def test_settings_that_cannot_be(token_file: Path) -> None:
    for name, value in {"requests_per_second": 0, "login_hours": float("nan"), "webhook_hosts": ("http://x",)}.items():
        with pytest.raises(InputError, match=name):
            replace(ServeSettings(), **{name: value})


def test_nothing_answers_without_the_checks() -> None:
    """A route of an application without them fails, since no owner is set."""
    from fastapi import Depends

    from kineograph.service.api.access import current_owner

    app = FastAPI()
    app.get("/owner")(lambda owner=Depends(current_owner): owner)  # noqa: B008
    with pytest.raises(AttributeError):
        TestClient(app).get("/owner")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_the_server_stops_reading_a_body_that_is_too_large(queue: JobQueue, content_type: str) -> None:
    app = create_app(Service(queue, ServeSettings(max_body_bytes=10**6)))
    with served(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as connection:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}"
        connection.sendall(f"{head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        sent = 0
        with suppress(OSError):  # the connection was closed: a reset, or a broken pipe
            while sent < 100 * 10**6:
                connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
    assert sent < 50 * 10**6
