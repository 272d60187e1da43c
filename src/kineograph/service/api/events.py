"""Server-sent events of videos: states, progress, previews and warnings, each with its number in the queue's table.

A client that reconnects sends the number of the last event that it got, `Last-Event-ID`, and misses nothing. One task
of the server asks the queue for new events and hands them to all streams.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from kineograph.service.api.videos import InService, Owner, VideoId
from kineograph.service.jobs import FINISHED, Event, Job
from kineograph.service.queue import JobQueue

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # between two looks for new events
RETRY_SECONDS = 2.0  # after the queue could not be read
PAGE = 1000  # events that are read at once
MAX_PENDING = 1000  # events that wait for a slow client; it reads them from the queue then
KEEP_ALIVE = 15  # seconds between two comments that keep a connection open
CLOSE_SECONDS = 2  # that a stream has to end when the server stops
MAX_NUMBER = 2**63 - 1

router = APIRouter()


@dataclass(frozen=True, eq=False)
class Subscription:
    """New events of a job, for one stream. wake: set when there are some; missed: holds True if there were too many."""

    wake: asyncio.Event
    pending: deque[Event] = field(default_factory=deque)
    missed: list[bool] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Hand over an event."""
        if len(self.pending) < MAX_PENDING:
            self.pending.append(event)
        else:
            self.missed[:] = [True]
        self.wake.set()


@dataclass(frozen=True, eq=False)
class EventFeed:
    """Subscriptions of all streams of a server, and the task that serves them while there are any."""

    queue: JobQueue
    subscriptions: dict[str, list[Subscription]] = field(default_factory=lambda: defaultdict(list))
    task: list[asyncio.Task[None]] = field(default_factory=list)

    @contextmanager
    def subscribe(self, job_id: str, wake: asyncio.Event) -> Iterator[Subscription]:
        """Yield a subscription to the events of a job that are added within the block."""
        subscription = Subscription(wake)
        self.subscriptions[job_id].append(subscription)
        if not self.task:
            self.task.append(asyncio.create_task(self._poll(self.queue.last_event())))
        try:
            yield subscription
        finally:
            self.subscriptions[job_id].remove(subscription)
            if not self.subscriptions[job_id]:
                del self.subscriptions[job_id]
            if not self.subscriptions and self.task:
                self.task.pop().cancel()

    async def _poll(self, last: int) -> None:
        while True:
            try:
                events = await run_in_threadpool(self.queue.events, after=last, limit=PAGE)
            except sqlite3.OperationalError as error:
                log.warning("events are not read now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for event in events:
                last = event.number
                for each in self.subscriptions.get(event.job_id, ()):
                    each.add(event)
            if len(events) < PAGE:
                await asyncio.sleep(POLL_SECONDS)

    async def stream(self, job_id: str, after: int, wake: asyncio.Event) -> AsyncIterator[Event]:
        """Yield the events of a job after the one of this number, until its final state.

        wake: set by others to end the stream where no event is waiting.
        """
        with self.subscribe(job_id, wake) as subscription:
            final = False
            while True:
                events = await run_in_threadpool(self.queue.events, after=after, job_id=job_id, limit=PAGE)
                whole = len(events) < PAGE
                while True:
                    for event in events:
                        if event.number > after:
                            after = event.number
                            final = final or is_final(event)
                            yield event
                    if final and whole:
                        return
                    if not whole or subscription.missed:
                        break
                    await wake.wait()
                    wake.clear()
                    events = [*subscription.pending]
                    subscription.pending.clear()
                    if not events:
                        return
                subscription.missed.clear()

    async def wait(self, job: Job, seconds: float) -> Job:
        """Return a job once it is finished, or as it is after so many seconds."""

        async def end() -> None:
            async for _ in self.stream(job.id, 0, asyncio.Event()):
                pass

        with suppress(TimeoutError):
            await asyncio.wait_for(end(), seconds)
        return await run_in_threadpool(self.queue.get, job.id)


def is_final(event: Event) -> bool:
    """Return True for the event of a state that does not change any more."""
    return event.kind == "state" and event.data.get("state") in FINISHED


async def get_feed(connection: HTTPConnection) -> EventFeed:  # not in a thread of its own
    """Return the feed of the server's events: a dependency of routes."""
    state = connection.app.state
    if not hasattr(state, "event_feed"):
        state.event_feed = EventFeed(connection.app.state.service.queue)
    feed: EventFeed = state.event_feed
    return feed


InFeed = Annotated[EventFeed, Depends(get_feed)]
LastEventId = Annotated[
    int,
    Header(alias="Last-Event-ID", ge=0, le=MAX_NUMBER, description="Number of the last event that the client has."),
]
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events: `state`, `engine`, `progress`, `preview`, `warning`, each with data in JSON.",
        "content": {
            "text/event-stream": {  # of each event
                "schema": {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
                }
            }
        },
    },
    204: {"description": "The video is finished, and the client has all events: it need not connect again."},
}


@router.get("/v1/videos/{video_id}/events", tags=["videos"], response_class=EventSourceResponse, responses=STREAM)
async def stream_events(
    video_id: VideoId, service: InService, owner: Owner, feed: InFeed, last_event_id: LastEventId = 0
) -> Response:
    """Stream the events of a video until its final state.

    The data of `state`: state, attempt, and the error of a failed video; of `progress`: per cent; of `preview`: a small
    image of the video so far, a .webp in base64; of `warning`: its message; of `engine`: what computes the networks.
    """
    job = await run_in_threadpool(service.find_job, video_id, owner)
    if job.finished and not await run_in_threadpool(service.queue.events, after=last_event_id, job_id=job.id, limit=1):
        return Response(status_code=204)
    wake: Any = asyncio.Event()  # set by the response, too, when the server stops
    messages = _as_messages(job.id, feed.stream(job.id, last_event_id, wake))
    return EventSourceResponse(messages, ping=KEEP_ALIVE, shutdown_event=wake, shutdown_grace_period=CLOSE_SECONDS)


async def _as_messages(job_id: str, events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    async for event in events:
        data = json.dumps({"video_id": job_id, "at": event.at, **event.data})
        yield ServerSentEvent(data, event=event.kind, id=str(event.number))
