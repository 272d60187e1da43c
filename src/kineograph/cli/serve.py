"""`kineograph worker`: a process that generates the videos of the service's jobs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kineograph.cli import terminal
from kineograph.errors import InputError, expand_user

GIGABYTE = 1e9
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

ServiceFolder = Annotated[Path, typer.Argument(help="Folder of the service: its queue, uploads and results.")]


def worker(
    folder: ServiceFolder = Path("service"),
    device: Annotated[
        str | None,
        typer.Option(show_default="the fastest", help="Device: cuda, cuda:1, mps or cpu; a worker for each."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(show_default="the fastest on the device", help="Type of the weights: float32, bfloat16, float16."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            show_default="half of the device's memory",
            help="Gigabytes of weights that stay loaded between jobs; the least recently used model goes first.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(show_default="host, process and device", help="Name of this worker, unlike others'.")
    ] = None,
) -> None:
    """Generate the videos of the service's jobs on one device, until it is stopped.

    Ctrl-C and SIGTERM end the sampling step that is running; its job goes back to the queue.
    """
    if memory is not None and not memory >= 0:
        raise InputError(f"`memory` is a number of gigabytes from 0, not {memory}")
    from kineograph.service.jobs import check_name
    from kineograph.service.loaded_models import LoadedModels
    from kineograph.service.queue import JobQueue
    from kineograph.service.worker import run_worker

    logging.basicConfig(format=LOG_FORMAT, level=logging.WARNING)
    logging.getLogger("kineograph.service").setLevel(logging.INFO)
    terminal.hide_loading_bars()
    models = LoadedModels.on(device, dtype, None if memory is None else memory * GIGABYTE)
    name = name or f"{socket.gethostname()}:{os.getpid()}:{models.device}"
    check_name("name", name)
    queue = JobQueue.open(expand_user(folder))
    terminal.print_message(f"worker {name} takes jobs from {queue.folder}")
    with stop_after_step() as stop:
        run_worker(queue, models, name, stop)
    queue.close()


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second signal ends the program at once."""
    stop = threading.Event()

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()
        terminal.print_message("stopping after this step; again to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
