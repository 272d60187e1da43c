"""Context of the routes: the queue, the settings, and the fields of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from starlette.requests import HTTPConnection

from kineograph.errors import shown
from kineograph.service.api.fields import Fields, InputFolders
from kineograph.service.api.settings import ServeSettings
from kineograph.service.declaration import Declaration, ModelFacts, read_declaration
from kineograph.service.jobs import VIDEO_COMMANDS, Job, UnknownJobError
from kineograph.service.queue import JobQueue

CUSTOMISE = ("customise",)  # the command of customisations
ADAPTER_FILE = "adapter.safetensors"  # a customisation's result


@dataclass(frozen=True)
class Service:
    """What a REST service works with. fields: of requests, by default with the built-in models."""

    queue: JobQueue
    settings: ServeSettings
    fields: Fields = field(default_factory=lambda: Fields.of(read_declaration()))

    @property
    def declaration(self) -> Declaration:
        """The options and models that requests may name."""
        return self.fields.declaration

    @property
    def models(self) -> Mapping[str, ModelFacts]:
        """The models that requests may name."""
        return self.declaration.models

    def find_job(self, job_id: str, owner: str, commands: Sequence[str] = VIDEO_COMMANDS) -> Job:
        """Return a job of this owner and of these commands. Raises UnknownJobError, also for a deleted one."""
        job = self.queue.get(job_id, owner)
        if job.deleted_at is not None or job.command not in commands:
            raise UnknownJobError(f"there is no job {shown(job_id)}")
        return job

    def find_adapter(self, name: str, owner: str) -> Path | None:
        """Return the file of a completed customisation of this owner; None if this is the id of none."""
        if not name.startswith(CUSTOMISE):
            return None
        job = self.find_job(name, owner, CUSTOMISE)
        file = self.queue.files.results(job.id).resolve() / ADAPTER_FILE
        return file if job.state == "completed" and file.is_file() else None

    def input_folders(self, owner: str, job_id: str) -> InputFolders:
        """Return where the fields of a request of this owner name files."""
        uploads, settings = self.queue.files.inputs(job_id).resolve(), self.settings
        find_adapter = partial(self.find_adapter, owner=owner)
        return InputFolders(uploads, settings.opened_folder, settings.max_upload_bytes, find_adapter)


async def get_service(connection: HTTPConnection) -> Service:  # not in a thread of its own
    """Return the service that a request is for: a dependency of routes."""
    service: Service = connection.app.state.service
    return service
