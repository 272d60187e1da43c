"""Webhooks: addresses that an owner registers, to which the ends of jobs are sent.

Messages are signed by the scheme of https://www.standardwebhooks.com. They follow from the queue's events: a cursor in
its file says which have become messages, and a message stays there until it was received, so a restart loses none. A
message may come twice, with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import random
import secrets
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import httpx
from fastapi import APIRouter, FastAPI, Path
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from kineograph.errors import InputError, shown
from kineograph.service.api.responses import ApiError
from kineograph.service.api.videos import InService, Owner
from kineograph.service.jobs import MAX_TEXT, SHORT_COMMANDS, Job
from kineograph.service.queue import JobQueue

log = logging.getLogger(__name__)

MAX_WEBHOOKS, MAX_URL, MAX_HOST = 10, 2000, 254  # of an owner; characters
SECRET_BYTES = 32
POLL_SECONDS = 1.0  # between two looks for jobs that have ended
RETRY_SECONDS = 5.0  # after the queue could not be used
SEND_SECONDS = 15.0  # for one try
AT_ONCE = 20  # messages that are sent at once
# Seconds between the tries of a message: three days in all.
DELAYS = (5, 60, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
GONE = 410  # the status of a receiver that wants no more messages
CURSOR = "webhooks"
PORTS = {"https": 443, "http": 80}
# Addresses of IPv6 that lead to any address of IPv4, private ones too
MAPPING_NETWORKS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))

router = APIRouter(tags=["webhooks"])


# --- routes


class NewWebhook(BaseModel, extra="forbid"):
    """An address to which the ends of jobs are to be sent."""

    url: str = Field(max_length=MAX_URL, description="Address at a host that the operator allows.")


class Webhook(BaseModel):
    """An address to which the ends of an owner's jobs are sent."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    created_at: int


class WebhookWithSecret(Webhook):
    """A webhook that was just registered. secret: what its messages are signed with, which is shown once."""

    secret: str


class WebhookList(BaseModel):
    """The webhooks of an owner."""

    object: Literal["list"] = "list"
    data: list[Webhook]


class DeletedWebhook(BaseModel):
    """The confirmation that a webhook was deleted."""

    id: str
    object: Literal["webhook.deleted"] = "webhook.deleted"
    deleted: bool = True


@router.post("/v1/webhooks")
def create_webhook(new: NewWebhook, service: InService, owner: Owner) -> WebhookWithSecret:
    """Register an address to which the end of each job is sent: video.completed, video.failed, video.cancelled, ..."""
    try:
        parse_target(new.url, service.settings.webhook_hosts)
    except InputError as error:
        raise ApiError(400, "url_not_allowed", str(error), "url") from error
    queue = service.queue
    webhook_id = f"webhook_{secrets.token_hex(16)}"
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"
    now, last = queue.clock.time(), queue.last_event()
    with queue.database.transaction() as connection:
        (number,) = connection.execute("SELECT count(*) FROM webhooks WHERE owner = ?", (owner,)).fetchone()
        if number >= MAX_WEBHOOKS:
            raise ApiError(400, "too_many_webhooks", f"an owner has at most {MAX_WEBHOOKS} webhooks: delete one", "url")
        values = (webhook_id, owner, new.url, secret, now, last)
        connection.execute("INSERT INTO webhooks VALUES (?, ?, ?, ?, ?, ?)", values)
    return WebhookWithSecret(id=webhook_id, url=new.url, created_at=int(now), secret=secret)


@router.get("/v1/webhooks")
def list_webhooks(service: InService, owner: Owner) -> WebhookList:
    """Return the webhooks that are registered."""
    query = "SELECT id, url, created_at FROM webhooks WHERE owner = ? ORDER BY created_at, id"
    with service.queue.database.connection() as connection:
        rows = connection.execute(query, (owner,)).fetchall()
    return WebhookList(data=[Webhook(id=each, url=url, created_at=int(at)) for each, url, at in rows])


@router.delete("/v1/webhooks/{webhook_id}")
def delete_webhook(
    webhook_id: Annotated[str, Path(description="Id of a webhook.", max_length=MAX_TEXT)],
    service: InService,
    owner: Owner,
) -> DeletedWebhook:
    """Delete a webhook, and the messages that it has not received."""
    with service.queue.database.transaction() as connection:
        deleted = connection.execute("DELETE FROM webhooks WHERE id = ? AND owner = ?", (webhook_id, owner)).rowcount
    if not deleted:
        raise ApiError(404, "not_found", f"there is no webhook {shown(webhook_id)}", "webhook_id")
    return DeletedWebhook(id=webhook_id)


# --- addresses


class Target(NamedTuple):
    """Where a webhook leads. is_named: the operator names the host, which may then be of a private network."""

    scheme: str
    host: str
    port: int
    is_named: bool


def parse_target(url: str, allowed: Collection[str]) -> Target:
    """Return where a URL leads. Raises InputError unless the operator allows it."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise InputError(f"`url` is an address such as https://example.com/hook, not {shown(url)} ({error})") from None
    if (
        not url.isascii()
        or "\\" in url
        or not url.isprintable()
        or " " in url
        or parts.scheme not in PORTS
        or not 0 < len(host) < MAX_HOST
    ):
        raise InputError(f"`url` is an address such as https://example.com/hook, not {shown(url)}")
    if parts.username is not None or parts.fragment:
        raise InputError("`url` has a user or a fragment: leave them out")
    shown_host = f"[{host}]" if ":" in host else host
    is_usual = port == PORTS[parts.scheme]
    names = {f"{shown_host}:{port}", *([shown_host] if is_usual else [])}
    is_named = not names.isdisjoint(allowed)
    domains = {"*", *(f"*.{host.split('.', number)[-1]}" for number in range(1, host.count(".") + 1))}
    patterns = domains if is_usual else {f"{each}:{port}" for each in domains}
    if not is_named and patterns.isdisjoint(allowed):
        named = f"{shown_host}:{port}" if not is_usual else shown_host
        raise InputError(f"the operator does not allow webhooks at {named} (setting `webhook_hosts`)")
    if not is_named and (parts.scheme == "http" or _parse_address(host) is not None):
        raise InputError("`url` begins with https:// and has a name of a host, unless the operator names that host")
    return Target(parts.scheme, host, port, is_named)


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public_address(text: str) -> bool:
    """Return True for an address of the internet; False for those of private networks, this machine, and groups."""
    address = _parse_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in each for each in MAPPING_NETWORKS):
            return False
        address = address.ipv4_mapped or address
    return address is not None and address.is_global and not address.is_multicast


async def resolve_host(target: Target) -> str:
    """Return an address of a host. Raises InputError for a private one, unless the operator names the host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    if not target.is_named and not all(map(is_public_address, addresses)):
        raise InputError(f"{target.host} is an address of a private network, which the operator has to name")
    return addresses[0]


# --- messages


class Delivery(NamedTuple):
    """A message for a webhook. attempt: number of the try that is due."""

    number: int
    webhook_id: str
    url: str
    secret: str
    message_id: str
    body: str
    attempt: int


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the signature of a message: HMAC-SHA256 of its id, time and content, in base64."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise InputError("a webhook's secret is whsec_ and base64") from error
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def describe_end(job: Job, message_id: str) -> str:
    """Return the content of the message that a job has ended."""
    subject = "customisation" if job.command == "customise" else "video"
    content = {
        "id": message_id,
        "object": "event",
        "type": f"{subject}.{job.state}",
        "created_at": int(job.finished_at or 0),
        "data": {"id": job.id},
    }
    return json.dumps(content, separators=(",", ":"))


@dataclass(frozen=True, eq=False)
class WebhookSender:
    """What sends the messages of a queue. read_until: number of the last event that was read."""

    queue: JobQueue
    allowed: Collection[str]
    client: httpx.AsyncClient
    read_until: list[int] = field(default_factory=lambda: [-1])

    async def run(self) -> None:
        """Send messages until the task is cancelled."""
        while True:
            try:
                sent = await self.send_due()
            except sqlite3.OperationalError as error:
                log.warning("webhooks are not sent now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not sent:
                await asyncio.sleep(POLL_SECONDS)

    async def send_due(self) -> int:
        """Make messages of the jobs that have ended, and try those that are due once; return their number."""
        await run_in_threadpool(self.add_messages)
        due = await run_in_threadpool(self._claim_due)
        await asyncio.gather(*map(self._send, due))
        return len(due)

    def add_messages(self) -> None:
        """Make messages of the jobs that have ended since the last time."""
        (seen,), last = self.read_until, self.queue.last_event()
        if seen == last:
            return
        if seen < 0:
            seen = self._read_cursor()
        finished = [pair for pair in self.queue.finished_jobs(seen, last) if pair[1].command not in SHORT_COMMANDS]
        if finished:
            self._insert(finished, last)
        self.read_until[:] = [last]

    def _read_cursor(self) -> int:
        with self.queue.database.connection() as connection:
            row = connection.execute("SELECT number FROM cursors WHERE name = ?", (CURSOR,)).fetchone()
        return 0 if row is None else int(row[0])

    def _insert(self, finished: Collection[tuple[int, Job]], last: int) -> None:
        now = self.queue.clock.time()
        with self.queue.database.transaction() as connection:
            before = self._read_cursor()  # another server of this queue may have made messages meanwhile
            for number, job in finished:
                if number <= before:
                    continue
                query = "SELECT id FROM webhooks WHERE owner = ? AND first_event < ?"
                for (webhook_id,) in connection.execute(query, (job.owner, number)).fetchall():
                    message_id = f"evt_{secrets.token_hex(16)}"
                    connection.execute(
                        "INSERT INTO deliveries (webhook_id, message_id, body, next_at) VALUES (?, ?, ?, ?)",
                        (webhook_id, message_id, describe_end(job, message_id), now),
                    )
            connection.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (CURSOR, last))

    def _claim_due(self) -> list[Delivery]:
        """Return messages that are due; each is due again after a while, also if this process ends."""
        now = self.queue.clock.time()
        query = (
            "SELECT deliveries.number, webhook_id, url, secret, message_id, body, attempt + 1 FROM deliveries "
            "JOIN webhooks ON webhooks.id = webhook_id WHERE next_at <= ? ORDER BY next_at, number LIMIT ?"
        )
        with self.queue.database.connection() as connection:  # without any, nothing is written
            if connection.execute("SELECT 1 FROM deliveries WHERE next_at <= ? LIMIT 1", (now,)).fetchone() is None:
                return []
        with self.queue.database.transaction() as connection:
            due = [Delivery(*row) for row in connection.execute(query, (now, AT_ONCE)).fetchall()]
            for each in due:
                connection.execute(
                    "UPDATE deliveries SET attempt = ?, next_at = ? WHERE number = ?",
                    (each.attempt, now + _delay(each.attempt), each.number),
                )
        return due

    async def _send(self, delivery: Delivery) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                status = await self._post(delivery)
            problem = None if 200 <= status < 300 else f"status {status}"
        except InputError as error:
            status, problem = 0, str(error)
        except (httpx.HTTPError, OSError, UnicodeError) as error:
            status, problem = 0, type(error).__name__
        is_last = problem is not None and delivery.attempt > len(DELAYS)
        if problem is not None:
            what = "given up" if is_last else "tried again later"
            log.warning("%s: try %d of a message: %s, %s", delivery.webhook_id, delivery.attempt, problem, what)
        if status == GONE:
            await run_in_threadpool(self._remove, "webhooks", "id", delivery.webhook_id)
        elif problem is None or is_last:
            await run_in_threadpool(self._remove, "deliveries", "number", delivery.number)

    async def _post(self, delivery: Delivery) -> int:
        """Send a message to the address that was checked, whatever the name leads to meanwhile; return the status."""
        target = parse_target(delivery.url, self.allowed)
        address = await resolve_host(target)
        timestamp = int(self.queue.clock.time())
        headers = {
            "Host": urlsplit(delivery.url).netloc,
            "Content-Type": "application/json",
            "User-Agent": f"kineograph/{version('kineograph')}",
            "webhook-id": delivery.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(delivery.secret, delivery.message_id, timestamp, delivery.body),
        }
        url = httpx.URL(delivery.url).copy_with(host=address, port=target.port)
        extensions = {"sni_hostname": target.host}
        async with self.client.stream(
            "POST", url, content=delivery.body, headers=headers, extensions=extensions
        ) as got:
            return got.status_code  # no redirect is followed, and no content read

    def _remove(self, table: str, key: str, value: Any) -> None:
        with self.queue.database.transaction() as connection:
            connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (value,))


def _delay(attempt: int) -> float:
    """Return the seconds until a message is tried again: up to a tenth more, so that not all come at once."""
    return DELAYS[min(attempt, len(DELAYS)) - 1] * random.uniform(1, 1.1)


@asynccontextmanager
async def send_webhooks(app: FastAPI) -> AsyncIterator[None]:
    """Send webhooks while an application runs, if the operator allows any host."""
    service = app.state.service
    if not service.settings.webhook_hosts:
        yield
        return
    # the system's certificates; no proxy of the environment, which would resolve names again
    async with httpx.AsyncClient(verify=ssl.create_default_context(), timeout=SEND_SECONDS, trust_env=False) as client:
        task = asyncio.create_task(WebhookSender(service.queue, service.settings.webhook_hosts, client).run())
        task.add_done_callback(_log_error)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _log_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("webhooks are not sent any more, by an error of the program", exc_info=error)
