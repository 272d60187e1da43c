"""Functions that run in a process of their own, with limits of time and memory: they read what users upload.

The process is forked from a server process that has imported what they need, so it starts in milliseconds. It is told
JSON values and answers with JSON: nothing that it makes of a file can do more than that.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import MAX_FRAMES, InputError, is_out_of_memory

PRELOADED = ["kineograph.service.short_jobs", "torch._subclasses.fake_tensor"]
WAIT_SECONDS = 0.25  # between two looks at whether the job was cancelled
MAX_ANSWER = 32 << 20  # bytes
NICE = 5


MEDIA = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".mkv", ".mov", ".mp4", ".png", ".tif", ".tiff", ".webm", ".webp")
MAX_PIXELS, MAX_SECONDS = 4096 * 4096, 600  # of an uploaded image or frame, and of an uploaded video


class Limits(NamedTuple):
    """Limits of a process. bytes: of memory beyond what is imported; None for no limit."""

    seconds: float
    bytes: int | None


UPLOAD_LIMITS = Limits(60, 2 << 30)


def run_limited(
    function: Callable[..., Any], arguments: Mapping[str, Any], limits: Limits, check: Callable[[], None]
) -> Any:
    """Return what a function returns in a process of its own: JSON values, as are its arguments.

    check: called meanwhile; its exception ends the process. Raises the function's InputError, and InputError where a
    limit is reached or the process dies.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, dict(arguments), limits), daemon=True)
    process.start()
    sender.close()
    try:
        return _wait(receiver, process, limits, check)
    finally:
        process.kill()
        process.join()
        receiver.close()


def _wait(receiver: Connection, process: Any, limits: Limits, check: Callable[[], None]) -> Any:
    end: float | None = None
    while not receiver.poll(WAIT_SECONDS):
        check()
        end = end or time.monotonic() + limits.seconds  # after the server process was started
        if time.monotonic() > end:
            raise InputError(f"this took more than {limits.seconds:g} seconds: give a smaller or shorter file")
    try:
        answer = json.loads(receiver.recv_bytes(MAX_ANSWER))
    except EOFError:
        process.join()
        check()  # where everything is stopped at once, this was not the file's fault
        if process.exitcode > 0:
            raise RuntimeError("a process with limits ended by an error, whose traceback is in the log") from None
        name = signal.Signals(-process.exitcode).name if process.exitcode else "nothing"
        raise InputError(f"the process that read the file ended with {name}: it is damaged, or too large") from None
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["value"]


def _answer(sender: Connection, function: Callable[..., Any], arguments: dict[str, Any], limits: Limits) -> None:
    import torch

    torch.set_num_threads(1)
    _limit_process(limits)
    try:
        answer = {"value": function(**arguments)}
    except InputError as error:
        answer = {"error": str(error)}
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        answer = {"error": "this takes too much memory: give a smaller or shorter file"}
    sender.send_bytes(json.dumps(answer).encode())


def _limit_process(limits: Limits) -> None:
    if os.name != "posix":
        return
    import resource

    for number in (signal.SIGINT, signal.SIGTERM):  # they stop the worker, which ends this process
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    seconds = int(limits.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    if limits.bytes is not None and status.is_file():  # elsewhere what is there already is not known
        sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
        held = 1024 * int(sizes["VmData"].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (held + limits.bytes, held + limits.bytes))


def check_uploads(files: Sequence[str]) -> None:
    """Raise InputError for an uploaded image or video that cannot be read, or is too large or too long."""
    from kineograph.media.footage import open_footage

    for file in map(Path, files):
        if file.suffix.lower() not in MEDIA:
            continue
        footage = open_footage(file)
        if footage.width * footage.height > MAX_PIXELS or len(footage) > MAX_FRAMES:
            raise InputError(
                f"{file} has {len(footage)} frames of {footage.width} x {footage.height}: an upload has at most "
                f"{MAX_FRAMES} frames of {MAX_PIXELS:,} pixels; make it smaller or shorter"
            )
        if len(footage) / footage.fps > MAX_SECONDS:
            raise InputError(f"{file} is longer than {MAX_SECONDS} seconds: cut it, and upload the part to use")
