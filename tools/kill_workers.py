"""Kill the service's workers at random while they generate, and check that every job ends once, with the same frames.

    python tools/kill_workers.py --jobs 200 --kills 100 --json killed.json

Two workers (`kineograph worker`, the built-in model) run jobs of two clips. After a random time one is killed (SIGKILL)
and another one is started. At the end the jobs' frames are compared with those of undisturbed calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import kineograph as kg
from kineograph.service.jobs import JobRequest, QueueLimits
from kineograph.service.queue import JobQueue

OPTIONS: dict[str, Any] = {
    "prompt": "a red fish", "num_frames": 2, "num_inference_steps": 4, "clips": 2, "height": 32, "width": 32,
}  # fmt: skip
SEEDS = 5
OWNERS = "ann", "bob", "eve"
LIMITS = QueueLimits(queued_per_owner=1000, lease_seconds=3, failures=1000)
WORKERS = 2


def start_worker(folder: Path) -> subprocess.Popen[bytes]:
    """Start a worker, named host:process:device, whose messages are appended to a file."""
    command = [sys.executable, "-m", "kineograph", "worker", str(folder), "--device", "cpu", "--dtype", "float32"]
    with (folder / "workers.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_at_random(queue: JobQueue, kills: int, longest: float, chance: random.Random) -> int:
    """Run workers until no job is left, and kill a busy one every `longest` seconds or sooner; return how often."""
    workers = [start_worker(queue.folder) for _ in range(WORKERS)]
    killed = 0
    while (counts := queue.count_jobs())["queued"] + counts["in_progress"]:
        time.sleep(chance.uniform(0, longest))
        holding = {str(job.lease_owner).split(":")[1] for job in queue.list_jobs(states=["in_progress"])}
        busy = [number for number, each in enumerate(workers) if str(each.pid) in holding]
        if killed < kills and busy:
            number = chance.choice(busy)
            workers[number].kill()
            workers[number].wait()
            workers[number] = start_worker(queue.folder)
            killed += 1
    for each in workers:
        each.terminate()
    statuses = {each.wait(timeout=60) for each in workers}
    if statuses != {0}:
        raise SystemExit(f"workers ended with {statuses}: see {queue.folder / 'workers.log'}")
    return killed


def check(queue: JobQueue, jobs: int) -> dict[str, Any]:
    """Return figures about the jobs, which ended once each, and were generated right."""
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
        "lost": jobs - len(found),
        "completed twice": sum(count > 1 for count in ends.values()),
        "other frames": right.count(False),
        "attempts": sum(each.attempt for each in found),
        "attempts that ended with their worker": sum(each.failures for each in found),
        "files left over": len([*(queue.folder / "results").glob("*.part")])
        + len([*(queue.folder / "clips").iterdir()]),
    }


def main() -> None:
    """Print the figures as JSON, and fail where a job was lost, ended twice or has other frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue, chance = JobQueue.open(folder, LIMITS), random.Random(given.seed)
        for number in range(given.jobs):
            request = JobRequest("generate", "pocket", {**OPTIONS, "seed": number % SEEDS})
            queue.submit(OWNERS[number % len(OWNERS)], request)
        started = time.monotonic()
        killed = kill_at_random(queue, given.kills, given.longest, chance)
        seconds = round(time.monotonic() - started, 1)
        queue.clean()
        figures = {**check(queue, given.jobs), "kills": killed, "seconds": seconds}
        queue.close()
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    wrong = figures["lost"] + figures["completed twice"] + figures["other frames"] + figures["files left over"]
    if wrong or figures["completed"] != given.jobs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
