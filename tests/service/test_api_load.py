"""100 clients at once while a job runs, and the server's memory over 1,000 jobs."""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from served import serving

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
CLIENTS, POLLS, POLL_SECONDS, JOBS = 100, 15, 2.0, 1000
LONG = {"prompt": "a fish", "num_inference_steps": 900}
UNLIMITED = [
    part
    for name in ("requests_at_once", "requests_per_second", "queued", "queued_per_owner")
    for part in ("--set", f"{name}=100000")
]


class Connection(NamedTuple):
    """A connection that stays open, without the costs of a client's library."""

    port: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, method: str, path: str, values: object = None) -> None:
        body = b"" if values is None else json.dumps(values).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def request(self, method: str, path: str, values: object = None) -> dict[str, Any]:
        await self.send(method, path, values)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        body = await self.reader.readexactly(int(length[1]))
        assert head.startswith(b"HTTP/1.1 200 "), body
        return json.loads(body)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(port, reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def seconds_of(process: int) -> float:
    """Return the CPU time of a process so far."""
    values = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def megabytes_of(process: int) -> float:
    """Return the memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def poll(port: int, path: str, delay: float, times: list[float]) -> None:
    """Ask for a video's state again and again, and note how long each answer took."""
    async with connected(port) as connection:
        await asyncio.sleep(delay)
        for _ in range(POLLS):
            started = time.perf_counter()
            await connection.request("GET", path)
            times.append(time.perf_counter() - started)
            await asyncio.sleep(POLL_SECONDS)


async def stream(port: int, path: str) -> None:
    """Read a video's events until they end."""
    async with connected(port) as connection:
        await connection.send("GET", f"{path}/events")
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        while await connection.reader.read(1 << 16):
            pass


async def poll_and_stream(port: int, process: int) -> tuple[list[float], float]:
    """Return the sorted seconds of answers about a running job, and the server's CPU time meanwhile."""
    async with connected(port) as connection:
        path = f"/v1/videos/{(await connection.request('POST', '/v1/videos', LONG))['id']}"
        while not (await connection.request("GET", path))["progress"]:
            await asyncio.sleep(0.2)
        times = list[float]()
        streams = [asyncio.create_task(stream(port, path)) for _ in range(CLIENTS // 2)]
        await asyncio.sleep(POLL_SECONDS)  # until all are connected
        before = seconds_of(process)
        delays = [2 * POLL_SECONDS * number / CLIENTS for number in range(CLIENTS // 2)]
        await asyncio.gather(*(poll(port, path, each, times) for each in delays))
        spent = seconds_of(process) - before
        assert not any(each.done() for each in streams)
        for each in streams:
            each.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return sorted(times), spent


async def use(port: int, jobs: int) -> None:
    """Request videos, ask for each, and delete it."""
    async with connected(port) as connection:
        for _ in range(jobs):
            path = f"/v1/videos/{(await connection.request('POST', '/v1/videos', {'prompt': 'a fish'}))['id']}"
            await connection.request("GET", path)
            await connection.request("DELETE", path)


def test_a_hundred_clients_poll_and_stream_while_a_job_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "service", *UNLIMITED) as (process, url):
        times, spent = asyncio.run(poll_and_stream(int(url.rpartition(":")[2]), process.pid))
    median, late = times[len(times) // 2], times[int(0.99 * len(times))]
    print(f"status: median {1000 * median:.1f} ms, p99 {1000 * late:.1f} ms; server's CPU {spent:.2f} s")
    assert late < 0.05, "on a machine without other work"


def test_the_servers_memory_is_flat_over_a_thousand_jobs(tmp_path: Path) -> None:
    with serving(tmp_path / "service", "--no-worker", *UNLIMITED) as (process, url):
        port = int(url.rpartition(":")[2])
        asyncio.run(use(port, JOBS // 10))
        before, started = megabytes_of(process.pid), seconds_of(process.pid)
        asyncio.run(use(port, JOBS))
        after, spent = megabytes_of(process.pid), seconds_of(process.pid) - started
    print(f"memory: {before:.1f} MB before, {after:.1f} MB after; {1000 * spent / (3 * JOBS):.2f} ms of CPU a request")
    assert after - before < 5
