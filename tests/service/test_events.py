"""Streams of events: what a client gets, also one that reconnects, is slow, or reads beside many others."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kineograph.service.api import create_app, events
from kineograph.service.api.access import current_owner
from kineograph.service.api.context import Service
from kineograph.service.api.events import EventFeed
from kineograph.service.api.settings import ServeSettings
from kineograph.service.jobs import Event, Job, JobRequest
from kineograph.service.queue import JobQueue

FACTS = {"width": 128, "height": 128, "num_frames": 8, "fps": 4.0, "seed": 7}


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    return JobQueue.open(tmp_path / "service")


@pytest.fixture
def app(queue: JobQueue) -> FastAPI:
    app = create_app(Service(queue, ServeSettings()))
    app.dependency_overrides[current_owner] = lambda: "local"
    return app


def submit(queue: JobQueue) -> Job:
    return queue.submit("local", JobRequest("generate", "pocket", {"prompt": "a fish"}))


def claim(queue: JobQueue) -> Job:
    job = queue.claim("worker")
    assert job is not None
    return job


def complete(queue: JobQueue, job: Job) -> None:
    part = queue.files.make_part(job)
    (part / "video.mp4").write_bytes(b"video")
    queue.complete(job, part, FACTS)


def read(client: TestClient, job: Job, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    """Return the events of a finished job: number, kind and data."""
    answer = client.get(f"/v1/videos/{job.id}/events", headers={"Last-Event-ID": str(after)})
    assert answer.headers["content-type"].startswith("text/event-stream")
    messages = [dict(line.split(": ", 1) for line in block.splitlines()) for block in answer.text.split("\r\n\r\n")]
    return [(int(each["id"]), each["event"], json.loads(each["data"])) for each in messages if each]


def test_a_stream_has_all_events_and_ends_with_the_last_state(queue: JobQueue, app: FastAPI) -> None:
    submit(queue)
    job = claim(queue)
    queue.heartbeat(job, 50)
    queue.add_event(job, "preview", {"image": "UklG"})
    complete(queue, job)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        found = read(client, job)
        assert [kind for _, kind, _ in found] == ["state", "state", "progress", "preview", "state"]
        assert found[2][2]["progress"] == 50
        assert found[3][2]["image"] == "UklG"
        assert found[-1][2]["state"] == "completed"
        assert read(client, job, found[2][0]) == found[3:]
        finished = client.get(f"/v1/videos/{job.id}/events", headers={"Last-Event-ID": str(found[-1][0])})
        assert (finished.status_code, finished.content) == (204, b"")
        assert client.get(f"/v1/videos/{job.id}/events", headers={"Last-Event-ID": "x"}).status_code == 400


async def collect(stream: AsyncIterator[Event]) -> list[Event]:
    return [each async for each in stream]


async def no_events() -> None:
    await asyncio.sleep(0.03)


def test_streams_that_begin_at_any_time_miss_nothing(queue: JobQueue) -> None:
    async def run() -> tuple[list[list[Event]], EventFeed]:
        feed, streams, progress = EventFeed(queue), list[asyncio.Task[list[Event]]](), 0.0
        job, other = submit(queue), submit(queue)
        claimed = claim(queue)
        for _ in range(10):
            streams.append(asyncio.create_task(collect(feed.stream(job.id, 0, asyncio.Event()))))
            progress += 1
            queue.heartbeat(claimed, progress)
            await asyncio.sleep(0.003)
        queue.cancel(other.id)
        complete(queue, claimed)
        return [await each for each in streams], feed

    found, feed = asyncio.run(run())
    expected = queue.events(job_id=found[0][0].job_id)
    assert len(expected) == 13
    assert all(each == expected for each in found)
    assert (feed.subscriptions, feed.task) == ({}, [])


def test_one_query_serves_all_streams(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = list[Any]()
    read_events = JobQueue.events

    def counted(self: JobQueue, **options: Any) -> list[Event]:
        queries.append(options.get("job_id"))
        return read_events(self, **options)

    monkeypatch.setattr(JobQueue, "events", counted)

    async def run() -> None:
        feed, job = EventFeed(queue), submit(queue)
        streams = [asyncio.create_task(collect(feed.stream(job.id, 0, asyncio.Event()))) for _ in range(50)]
        while queries.count(job.id) < 50:
            await asyncio.sleep(0.001)
        queries.clear()
        for _ in range(5):
            await no_events()
        queue.cancel(job.id)
        for each in streams:
            assert (await each)[-1].data["state"] == "cancelled"

    asyncio.run(run())
    assert job_queries(queries) == 0
    assert len(queries) < 30


def job_queries(queries: list[Any]) -> int:
    return sum(each is not None for each in queries)


def test_a_slow_client_misses_nothing(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 3)
    monkeypatch.setattr(events, "PAGE", 4)

    async def run() -> list[Event]:
        feed = EventFeed(queue)
        job, found = submit(queue), list[Event]()
        claimed, progress = claim(queue), 0.0
        async for each in feed.stream(job.id, 0, asyncio.Event()):
            found.append(each)
            await asyncio.sleep(0.01)
            for _ in range(5 if progress < 15 else 0):
                progress += 1
                queue.heartbeat(claimed, progress)
            if progress == 15:
                progress += 1
                complete(queue, claimed)
        return found

    found = asyncio.run(run())
    assert found == queue.events(job_id=found[0].job_id)


def test_a_stream_ends_with_the_server(queue: JobQueue) -> None:
    async def run() -> list[Event]:
        wake, job = asyncio.Event(), submit(queue)
        stream = asyncio.create_task(collect(EventFeed(queue).stream(job.id, 0, wake)))
        await no_events()
        wake.set()
        return await stream

    assert [each.kind for each in asyncio.run(run())] == ["state"]


def test_the_end_of_a_job_is_awaited_for_a_while(queue: JobQueue) -> None:
    async def run() -> tuple[Job, Job]:
        feed, job = EventFeed(queue), submit(queue)
        before = await feed.wait(job, 0.05)
        queue.cancel(job.id)
        return before, await feed.wait(job, 5)

    before, after = asyncio.run(run())
    assert (before.state, after.state) == ("queued", "cancelled")


# --- with a server


@pytest.fixture
def server(app: FastAPI) -> Iterator[str]:
    """Run the application on a port of its own; the address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_client_follows_a_running_job_and_reconnects(queue: JobQueue, server: str) -> None:
    submit(queue)
    job = claim(queue)
    url, last = f"{server}/v1/videos/{job.id}/events", 0
    for number in range(1, 4):  # a client that gets a few events, and connects again
        with httpx.stream("GET", url, headers={"Last-Event-ID": str(last)}, timeout=10) as answer:
            queue.heartbeat(job, float(number))
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    last = int(line.removeprefix("id: "))
                if line.startswith("data: ") and json.loads(line.removeprefix("data: ")).get("progress") == number:
                    break
    complete(queue, job)
    text = httpx.get(url, headers={"Last-Event-ID": str(last)}, timeout=10).text
    assert text.count("event: ") == 1
    assert '"state": "completed"' in text


@pytest.mark.slow
def test_the_openai_client_remixes_and_edits(queue: JobQueue, server: str) -> None:
    openai = pytest.importorskip("openai")
    job = submit(queue)
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    with pytest.warns(DeprecationWarning, match="Sora"):
        remix = client.videos.remix(job.id, prompt="a blue fish")
    assert remix.remixed_from_video_id == job.id
    assert queue.get(remix.id).options["prompt"] == "a blue fish"
    complete(queue, claim(queue))
    with pytest.warns(DeprecationWarning, match="Sora"):
        edit = client.videos.edit(prompt="make it snow", video=("sea.mp4", b"video", "video/mp4"))
    found = queue.get(edit.id)
    assert (found.command, found.options["prompt"]) == ("edit", "make it snow")
    assert Path(found.options["video"]).read_bytes() == b"video"
