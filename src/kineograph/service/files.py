"""Files of jobs, in the folder of their queue.

results/ID/                files of a completed job
results/ID.ATTEMPT.part/   those that an attempt is writing
clips/ID/                  finished clips of a job, from which it goes on, and the jobs that extend its video
inputs/ID/                 uploads that a job reads
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kineograph.errors import shown
from kineograph.media.files import remove_path
from kineograph.service.jobs import JOB_ID, Job, UnknownJobError

FOLDERS = RESULTS, CLIPS, INPUTS = "results", "clips", "inputs"
UPLOAD_SECONDS = 86400.0  # uploads may be there so long before their job


@dataclass(frozen=True)
class JobFiles:
    """The folders of jobs' files below one folder."""

    folder: Path

    def make_folders(self) -> None:
        """Make the folders that are missing."""
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def results(self, job_id: str) -> Path:
        """Return the folder of a completed job's files."""
        return self._path(RESULTS, job_id)

    def clips(self, job_id: str) -> Path:
        """Return the folder of a job's finished clips, or checkpoints, common to its attempts."""
        return self._path(CLIPS, job_id)

    def inputs(self, job_id: str) -> Path:
        """Return the folder of a job's uploads, which is removed with the job."""
        return self._path(INPUTS, job_id)

    def part(self, job: Job) -> Path:
        """Return the folder in which an attempt writes its files."""
        return self.folder / RESULTS / f"{job.id}.{job.attempt}.part"

    def make_part(self, job: Job) -> Path:
        """Make the folder in which an attempt writes its files, and return it."""
        part = self.part(job)
        remove_path(part)
        part.mkdir()
        return part

    def publish(self, job_id: str, part: Path) -> None:
        """Rename an attempt's folder to that of the job's results."""
        final = self.results(job_id)
        remove_path(final)  # of an attempt that was killed between the rename and its commit
        part.rename(final)
        _flush_folder(final.parent)

    def copy_clips(self, source_id: str, job_id: str) -> None:
        """Give a job the finished clips of another one, without copying: a clip's file is replaced, never changed."""
        source, target = self.clips(source_id), self.clips(job_id)
        for file in source.rglob("*.safetensors"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)

    def remove_leftovers(self, states: Mapping[str, tuple[str, int]]) -> None:
        """Remove files of jobs that are gone, and of attempts that have ended. states: state and attempt by id."""
        for name in FOLDERS:
            for path in (self.folder / name).iterdir():
                if _is_leftover(path, states):
                    remove_path(path)

    def _path(self, name: str, job_id: str) -> Path:
        if not JOB_ID.fullmatch(job_id):  # it becomes a file name
            raise UnknownJobError(f"there is no job {shown(job_id)}")
        return self.folder / name / job_id


def _is_leftover(path: Path, states: Mapping[str, tuple[str, int]]) -> bool:
    job_id, _, ending = path.name.partition(".")
    if not JOB_ID.fullmatch(job_id):
        return False
    state, attempt = states.get(job_id, (None, 0))
    if path.parent.name == INPUTS:
        return state is None and abs(time.time() - path.stat().st_mtime) > UPLOAD_SECONDS
    if path.parent.name == CLIPS:
        return state not in ("queued", "in_progress", "completed")
    if ending:
        return (state, ending) != ("in_progress", f"{attempt}.part")
    return state != "completed"


def folder_size(folder: Path) -> int:
    """Return the bytes of the files in a folder and in those below it; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def flush(folder: Path) -> int:
    """Write a folder's files to the disk; return their size in bytes."""
    size = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        size += path.stat().st_size
    _flush_folder(folder)
    return size


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
