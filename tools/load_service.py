"""Load on the service: many clients that poll or follow events while a video is generated, and 1,000 jobs in turn.

    python tools/load_service.py --clients 100 --seconds 120 --jobs 1000 --json load.json

In the first part a server with its own worker generates a video, without clients and with them: each asks for its state
every 2 seconds, or follows its events. In the second part a server without a worker takes jobs, which this program
completes in the queue. The server's time on a CPU and memory are those of Linux's /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from kineograph.service.jobs import Job
from kineograph.service.queue import JobQueue

VIDEO = {"prompt": "a red fish", "model": "pocket", "num_inference_steps": 999, "engine": "torch"}
LONG = {**VIDEO, "model": "pocket-video", "num_frames": 64}  # of equal steps, and longer than the measurement
POLL_SECONDS = 2.0
FACTS = {"width": 128, "height": 128, "num_frames": 8, "fps": 4.0, "seed": 7}
LIMITS = ("requests_per_second=100000", "requests_at_once=100000", "queued_per_owner=100000", "queued=100000")
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run the server; its address, and the number of its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = [word for each in LIMITS for word in ("--set", each)]
    command = [sys.executable, "-m", "kineograph", "serve", str(folder), "--port", str(port), *limits, *options]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            if process.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def cpu_seconds(process: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(process: int) -> float:
    """Return the megabytes of memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def poll(client: httpx.AsyncClient, path: str, until: float, found: list[tuple[float, int]]) -> None:
    """Ask for a video's state every 2 seconds; append the milliseconds and the status of each answer."""
    await asyncio.sleep(random.uniform(0, POLL_SECONDS))
    while time.monotonic() < until:
        started = time.monotonic()
        answer = await client.get(path)
        found.append((1000 * (time.monotonic() - started), answer.status_code))
        await asyncio.sleep(POLL_SECONDS)


async def follow(client: httpx.AsyncClient, path: str, until: float, found: list[int]) -> None:
    """Follow a video's events; append the number of those that came."""
    count = 0
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
            async with client.stream("GET", f"{path}/events", timeout=None) as answer:
                async for line in answer.aiter_lines():
                    count += line.startswith("id:")
    except TimeoutError:
        found.append(count)


async def load_clients(url: str, path: str, clients: int, seconds: float) -> tuple[list[tuple[float, int]], list[int]]:
    """Poll by one half of the clients, and follow by the other."""
    answers, events = list[tuple[float, int]](), list[int]()
    limits, until = httpx.Limits(max_connections=2 * clients), time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client, asyncio.TaskGroup() as tasks:
        for number in range(clients):
            task = poll(client, path, until, answers) if number % 2 else follow(client, path, until, events)
            tasks.create_task(task)
    return answers, events


def steps_per_second(queue: JobQueue, job: Job, seconds: float) -> float:
    """Return the speed of a running job, in per cent of its steps a second, over so many seconds."""
    before, started = queue.get(job.id).progress, time.monotonic()
    time.sleep(seconds)
    return (queue.get(job.id).progress - before) / (time.monotonic() - started)


def measure_clients(folder: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Return figures of clients while a video is generated."""
    with server(folder, "--device", "cpu") as (url, process):
        queue = JobQueue.open(folder)
        job = queue.get(httpx.post(f"{url}/v1/videos", json=LONG).json()["id"])
        while queue.get(job.id).progress < 1:
            time.sleep(0.2)
        alone = steps_per_second(queue, job, seconds)
        before, progress, started = cpu_seconds(process), queue.get(job.id).progress, time.monotonic()
        answers, events = asyncio.run(load_clients(url, f"/v1/videos/{job.id}", clients, seconds))
        spent = cpu_seconds(process) - before
        beside = (queue.get(job.id).progress - progress) / (time.monotonic() - started)
        state = queue.get(job.id).state
        httpx.post(f"{url}/v1/videos/{job.id}/cancel")
        queue.close()
    if state != "in_progress":
        raise SystemExit(f"the video was {state} before the clients were: measure for fewer seconds")
    milliseconds = sorted(each for each, _ in answers)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests of states": len(answers),
        "answers by status": {str(status): count for status, count in Counter(each for _, each in answers).items()},
        "milliseconds of a state, median": round(median(milliseconds), 1),
        "milliseconds of a state, p99": round(milliseconds[int(0.99 * (len(milliseconds) - 1))], 1),
        "streams": len(events),
        "events of a stream": round(sum(events) / max(1, len(events)), 1),
        "CPU milliseconds of the server a request and event": round(
            1000 * spent / max(1, len(answers) + sum(events)), 2
        ),
        "CPU of the server in per cent of a core": round(100 * spent / seconds, 1),
        "sampling without clients, per cent a second": round(alone, 3),
        "sampling with clients, per cent a second": round(beside, 3),
    }


def measure_jobs(folder: Path, jobs: int) -> dict[str, Any]:
    """Return the server's time and memory for jobs that are requested, asked for, completed and downloaded in turn."""
    found, statuses, requests = dict[str, float](), Counter[int](), 0
    with server(folder, "--no-worker") as (url, process), httpx.Client(base_url=url) as client:
        queue, before = JobQueue.open(folder), cpu_seconds(process)
        for number in range(1, jobs + 1):
            answers = [client.post("/v1/videos", json=VIDEO)]
            path = f"/v1/videos/{answers[0].json()['id']}"
            answers += [client.get(path) for _ in range(3)]
            complete_next(queue)
            gets: Sequence[str] = (path, f"{path}/events", f"{path}/content", "/v1/videos")
            answers += [client.get(each) for each in gets]
            statuses.update(each.status_code for each in answers)
            requests += len(answers)
            if number % max(1, jobs // 10) == 0:
                found[str(number)] = round(memory(process), 1)
        spent = cpu_seconds(process) - before
        queue.close()
    return {
        "jobs": jobs,
        "requests": requests,
        "answers by status": {str(status): count for status, count in statuses.items()},
        "CPU milliseconds of the server a request": round(1000 * spent / requests, 2),
        "megabytes of the server after so many jobs": found,
    }


def complete_next(queue: JobQueue) -> None:
    """Complete the next job of a queue without a model."""
    job = queue.claim("load")
    if job is None:
        raise SystemExit("the server's job is not in the queue")
    part = queue.files.make_part(job)
    (part / "video.mp4").write_bytes(bytes(10_000))
    queue.heartbeat(job, 50)
    queue.complete(job, part, FACTS)


def main() -> None:
    """Print the figures as JSON, and fail where an answer is an error of the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = dict[str, Any]()
    for name, measure, values in (
        ("clients", measure_clients, (given.clients, given.seconds)),
        ("jobs", measure_jobs, (given.jobs,)),
    ):
        if values[0]:
            with tempfile.TemporaryDirectory() as folder:
                figures[name] = measure(Path(folder), *values)
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    if any(int(status) >= 500 for part in figures.values() for status in part["answers by status"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
