"""A REST service for tests: servers in a thread or a process, jobs that end without a worker, and errors."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from kineograph.service.jobs import Job
from kineograph.service.queue import JobQueue

MADE = {"width": 64, "height": 32, "num_frames": 6, "fps": 4.0, "seed": 5}
CONTENT = {"video.mp4": b"an mp4", "thumbnail.webp": b"a webp", "spritesheet.jpg": b"a jpeg"}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application in a thread; yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that a client that is quicker than the server waits
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yield the process and its URL."""
    command = [sys.executable, "-m", "kineograph", "serve", str(folder), "--port", "0", "--device", "cpu", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(lines))
        # a full pipe would stop the server
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield process, found[0]
        finally:
            process.kill()


def complete(queue: JobQueue, **facts: Any) -> Job:
    """Complete the next job as a worker does, with files that only their names tell."""
    job = queue.claim("worker")
    assert job is not None
    part = queue.files.make_part(job)
    for name, content in CONTENT.items():
        (part / name).write_bytes(content)
    return queue.complete(job, part, {**MADE, **facts})


def error_of(response: Any) -> dict[str, Any]:
    """Return the error of an answer, which is one in the envelope of the contract."""
    assert response.status_code >= 400, response.text
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
