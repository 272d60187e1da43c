"""Attempts of jobs: what their commands work with, reports of progress, and the check whether they are to end."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kineograph.service.jobs import Job
from kineograph.service.loaded_models import LoadedModels
from kineograph.service.queue import JobQueue

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25  # least time between two records of the progress


class AttemptStoppedError(RuntimeError):
    """The attempt ends before the job does: the worker drains, or the job was cancelled or paused."""


@dataclass(frozen=True)
class Attempt:
    """An attempt of a job, with the queue and the models of its worker. stop: set when the worker is to end."""

    queue: JobQueue
    models: LoadedModels
    job: Job
    stop: threading.Event

    def check(self) -> None:
        """Raise AttemptStoppedError if the attempt is to end, and LostLeaseError if the job is no longer its own."""
        if self.stop.is_set():
            raise AttemptStoppedError
        try:
            current = self.queue.check_attempt(self.job)
        except sqlite3.OperationalError as error:  # locked, or a full disk: the next step tries again
            log.warning("%s: the job's state is not read: %s", self.job.id, error)
            return
        if current.cancel_requested or current.paused:
            raise AttemptStoppedError

    def add_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event, unless the queue's file cannot be used just then."""
        try:
            self.queue.add_event(self.job, kind, data)
        except sqlite3.OperationalError as error:
            log.warning("%s: an event is not recorded: %s", self.job.id, error)

    def make_part(self) -> Path:
        """Make the folder in which the attempt writes its files, and return it."""
        return self.queue.files.make_part(self.job)

    def watch_steps(self) -> Callable[[float], None]:
        """Return the function that is called after each step with the share that is done: see `check`.

        It records the progress, though not more often than every `PROGRESS_SECONDS`.
        """
        recorded, record_at = 0.0, 0.0

        def watch(share: float) -> None:
            nonlocal recorded, record_at
            self.check()
            percent = min(99.0, math.floor(100 * share))
            if percent > recorded and (now := time.monotonic()) >= record_at:
                try:
                    self.queue.heartbeat(self.job, percent)
                except sqlite3.OperationalError as error:
                    log.warning("%s: progress is not recorded: %s", self.job.id, error)
                recorded, record_at = percent, now + PROGRESS_SECONDS

        return watch
