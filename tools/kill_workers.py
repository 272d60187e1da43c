"""Kill the service's workers and its server at random, and check that every job ends once, with the same frames.

    python tools/kill_workers.py --jobs 200 --kills 100 --json killed.json

Clients of three owners request videos of two clips over HTTP, as many as the kills allow, and again where the server
does not answer. Two workers (`kineograph worker`, the built-in model) generate them. After a random time a busy worker
or, every fourth time, the server (`kineograph serve`) is killed (SIGKILL) and started again. At the end all frames
are compared with those of undisturbed calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import kineograph as kg
from kineograph.service.jobs import QueueLimits
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token

OPTIONS: dict[str, Any] = {
    "prompt": "a red fish", "num_frames": 2, "num_inference_steps": 4, "clips": 2, "height": 32, "width": 32,
    "engine": "torch",
}  # fmt: skip
SEEDS = 5
OWNERS = "ann", "bob", "eve"
LIMITS = QueueLimits(queued_per_owner=1000, lease_seconds=3, failures=1000)
WORKERS, THREADS = 2, 1
RETRY_SECONDS = 0.2
AHEAD = 10  # jobs that are requested ahead of their share of the kills, so that workers are busy
SERVER_SHARE = 0.25  # of the kills


class Service:
    """The server and the workers of a folder, whose messages are appended to files there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens = folder, {owner: add_token(folder / "tokens", owner) for owner in OWNERS}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = self.start_server()
        self.workers = [self.start_worker() for _ in range(WORKERS)]

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start the server."""
        options = ["--no-worker", "--port", str(self.port), "--token-file", str(self.folder / "tokens")]
        return self._start("server.log", "serve", str(self.folder), *options)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker, named host:process:device."""
        return self._start("workers.log", "worker", str(self.folder), "--device", "cpu", "--dtype", "float32")

    def _start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            command = [sys.executable, "-m", "kineograph", *arguments]
            return subprocess.Popen(command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})

    def request(self, owner: str, number: int) -> str:
        """Request a video until the server answers, and return the id of its job."""
        body = json.dumps({**OPTIONS, "seed": number % SEEDS}).encode()
        headers = {
            "Authorization": f"Bearer {self.tokens[owner]}",
            "Content-Type": "application/json",
            "Idempotency-Key": f"video {number}",
        }
        url = f"http://127.0.0.1:{self.port}/v1/videos"
        while True:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
                    return str(json.load(answer)["id"])
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503):
                    raise SystemExit(f"the server answered {error.code}: {error.read().decode()}") from error
                time.sleep(int(error.headers.get("Retry-After", 1)))
            except (OSError, ValueError):  # killed, perhaps between two bytes of its answer
                time.sleep(RETRY_SECONDS)

    def kill_server(self) -> None:
        """Kill the server, and start it again."""
        self.server.kill()
        self.server.wait()
        self.server = self.start_server()

    def kill_worker(self, number: int) -> None:
        """Kill a worker, and start another one."""
        self.workers[number].kill()
        self.workers[number].wait()
        self.workers[number] = self.start_worker()

    def stop(self) -> None:
        """Stop all processes. Exits where one ends with an error.

        One that was started a moment ago is still importing, and ends by the signal.
        """
        processes = [*self.workers, self.server]
        for each in processes:
            each.terminate()
        statuses = {each.wait(timeout=60) for each in processes}
        if not statuses <= {0, -signal.SIGTERM}:
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            raise SystemExit(f"processes ended with {statuses}:\n{logs}")


def kill_at_random(queue: JobQueue, given: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Request videos and kill something every `longest` seconds or sooner, until all are finished.

    Returns the number of kills of each kind, and the ids of the jobs that the server answered with.
    """
    service, chance, killed, ids = Service(queue.folder), random.Random(given.seed), Counter[str](), list[str]()

    def request_all() -> None:
        for number in range(given.jobs):
            while killed.total() * given.jobs < (number - AHEAD) * given.kills:
                time.sleep(RETRY_SECONDS)
            ids.append(service.request(OWNERS[number % len(OWNERS)], number))

    client = threading.Thread(target=request_all, daemon=True)
    client.start()
    while client.is_alive() or (counts := queue.count_jobs())["queued"] + counts["in_progress"]:
        time.sleep(chance.uniform(0, given.longest))
        holding = {str(job.lease_owner).split(":")[1] for job in queue.list_jobs(states=["in_progress"])}
        busy = [number for number, each in enumerate(service.workers) if str(each.pid) in holding]
        if killed.total() < given.kills and chance.random() < SERVER_SHARE:
            service.kill_server()
            killed["server"] += 1
        elif killed.total() < given.kills and busy:
            service.kill_worker(chance.choice(busy))
            killed["worker"] += 1
    service.stop()
    return killed, ids


def check(queue: JobQueue, ids: list[str], jobs: int) -> dict[str, Any]:
    """Return figures about the jobs, which ended once each, and were generated right."""
    torch.set_num_threads(THREADS)  # with another number sums are rounded differently
    model = kg.load("pocket", device="cpu", dtype="float32")
    expected = [kg.generate(model, **OPTIONS, seed=seed, progress=False).digest for seed in range(SEEDS)]
    found = queue.list_jobs(limit=10_000)
    ends = Counter(each.job_id for each in queue.events(limit=10**6) if each.data.get("state") == "completed")
    right = [
        each.result is not None and each.result["frames_sha256"] == expected[each.result["seed"]] for each in found
    ]
    return {
        "jobs": jobs,
        "completed": queue.count_jobs()["completed"],
        "lost": jobs - len({*ids} & {each.id for each in found}),
        "not requested": len({each.id for each in found} - {*ids}),
        "completed twice": sum(count > 1 for count in ends.values()),
        "other frames": right.count(False),
        "attempts": sum(each.attempt for each in found),
        "attempts that ended with their worker": sum(each.failures for each in found),
        "files left over": len([*(queue.folder / "results").glob("*.part")]),
    }


def main() -> None:
    """Print the figures as JSON, and fail where a job was lost, ended twice or has other frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=7.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue = JobQueue.open(folder, LIMITS)
        started = time.monotonic()
        killed, ids = kill_at_random(queue, given)
        seconds = round(time.monotonic() - started, 1)
        queue.clean()
        kills = {f"kills of a {name}": killed[name] for name in ("worker", "server")}
        figures = {**check(queue, ids, given.jobs), **kills, "seconds": seconds}
        queue.close()
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    names = ("lost", "not requested", "completed twice", "other frames", "files left over")
    if sum(figures[name] for name in names) or figures["completed"] != given.jobs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
