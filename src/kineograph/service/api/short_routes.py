"""Routes of what is done in seconds: the schema of options, checks of requests, inspections of files, control maps.

Workers do the work, in processes with limits. A route waits a little for its end; where that does not suffice, it
answers 202, and the client asks for the state again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from kineograph.errors import MAX_FRAMES, InputError, check_choice, check_integer, is_present
from kineograph.media.files import remove_path
from kineograph.service.api.bodies import Body, InBody, form_schema, store_file
from kineograph.service.api.context import Service
from kineograph.service.api.events import EventFeed, InFeed
from kineograph.service.api.fields import build_request
from kineograph.service.api.responses import INVALID, SERVER, ApiError, ErrorDetails, explain_input_error
from kineograph.service.api.videos import FILES, POLL_HEADER, VIDEO_REQUEST, InService, Owner
from kineograph.service.jobs import MAX_TEXT, SHORT_COMMANDS, Job, JobRequest, JobState, new_job_id

WAIT_SECONDS = 5.0  # for the end of a job, before 202
NO_MODEL = "none"  # the model of jobs that load none
KINDS = ("canny", "depth", "pose")
FILE: dict[str, Any] = {"type": "string", "format": "binary"}
ID: dict[str, Any] = {"type": "string", "description": "Id of a completed video, in place of a file."}
MAP_FIELDS: dict[str, Any] = {
    "kind": {"type": "string", "enum": [*KINDS], "default": KINDS[0]},
    "frame": {"type": "integer", "minimum": 0, "maximum": MAX_FRAMES, "default": 0},
}

router = APIRouter(tags=["checks and previews"])
TaskId = Annotated[str, PathParameter(description="Id of a check, an inspection or a preview.", max_length=MAX_TEXT)]


class Schema(BaseModel):
    """Every option of a request, in JSON Schema with its group and default in words, and the models."""

    options: dict[str, Any]
    models: dict[str, Any]
    built_in: dict[str, list[str]]


class Check(BaseModel):
    """What a request would make, or why it is refused.

    accepted: null until it is known. expected_seconds: by the latest videos of the model; null without any.
    expected_memory, device_memory: in bytes; null where only the model's weights tell.
    """

    accepted: bool
    error: ErrorDetails | None = None
    method: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    expected_seconds: float | None = None
    expected_memory: int | None = None
    device_memory: int | None = None
    warnings: list[str] = []


class Inspection(BaseModel):
    """Settings that a file carries, and the same as fields of a request.

    sources: models, files and repositories that they name; missing: those that are not there. problem: why the settings
    are no request; null otherwise.
    """

    num_frames: int
    width: int
    height: int
    fps: float
    settings: dict[str, Any]
    request: dict[str, Any] | None
    sources: list[str]
    missing: list[str]
    problem: str | None


class Preview(BaseModel):
    """A control map of one frame of a video. image: a .webp in base64."""

    kind: Literal["canny", "depth", "pose"]
    frame: int
    num_frames: int
    width: int
    height: int
    image: str


class Task(BaseModel):
    """A check, an inspection or a preview. id: null where no worker was needed; result: null until it is completed."""

    id: str | None
    object: Literal["check", "inspect", "preview"]
    status: JobState
    created_at: int | None = None
    error: ErrorDetails | None = None
    result: Annotated[Check | Inspection | Preview | None, Field(union_mode="left_to_right")] = None


TASK: dict[int | str, dict[str, Any]] = {202: {"model": Task, "description": "Not finished yet: ask for it again."}}


@router.get("/v1/schema")
def get_schema(service: InService, owner: Owner) -> Schema:
    """Return every option of a request and the models, from which a form can be built."""
    models = {
        name: {"description": each.description, "commands": [*each.commands]} for name, each in service.models.items()
    }
    built_in = {name: [*each] for name, each in service.declaration.built_in.items()}
    return Schema(options={**service.fields.schemas}, models=models, built_in=built_in)


@router.post("/v1/check", openapi_extra=VIDEO_REQUEST, responses=TASK)
async def post_check(body: InBody, response: Response, service: InService, owner: Owner, feed: InFeed) -> Task:
    """Return what a request for a video would make, in what time and memory, or why it would be refused."""
    try:
        job = await run_in_threadpool(_submit_check, service, owner, body)
    except InputError as error:
        return _refusal(explain_input_error(error))
    except ApiError as error:
        return _refusal(error)
    return await _answer_in_time(response, service, feed, job)


@router.post("/v1/inspect", openapi_extra=form_schema({"file": FILE, "video_id": ID}), responses=TASK)
async def post_inspection(body: InBody, response: Response, service: InService, owner: Owner, feed: InFeed) -> Task:
    """Return the settings that an uploaded image or video carries, and what of them is missing here."""
    job = await run_in_threadpool(_submit_for_file, service, owner, "inspect", body, {})
    return await _answer_in_time(response, service, feed, job)


@router.post("/v1/previews", openapi_extra=form_schema({"file": FILE, "video_id": ID, **MAP_FIELDS}), responses=TASK)
async def post_preview(body: InBody, response: Response, service: InService, owner: Owner, feed: InFeed) -> Task:
    """Return the control map of one frame of an uploaded video: edges, depth or poses."""
    values = dict(body.values)
    kind, frame = values.pop("kind", KINDS[0]), values.pop("frame", 0)
    if body.is_form and isinstance(frame, str) and frame.isdecimal() and len(frame) < 6:
        frame = int(frame)
    check_choice("`kind`", kind, KINDS)
    check_integer("`frame`", frame, 0, MAX_FRAMES)
    options = {"kind": kind, "frame": frame}
    job = await run_in_threadpool(_submit_for_file, service, owner, "preview", body._replace(values=values), options)
    return await _answer_in_time(response, service, feed, job)


@router.get("/v1/tasks/{task_id}", responses=TASK)
def get_task(task_id: TaskId, response: Response, service: InService, owner: Owner) -> Task:
    """Return a check, an inspection or a preview, with its result once it is there."""
    return _answer(response, service, service.find_job(task_id, owner, SHORT_COMMANDS))


def _submit_check(service: Service, owner: str, body: Body) -> Job:
    folders = service.input_folders(owner, new_job_id("check"))
    uploads = folders.uploads
    with _removed_unless_submitted(uploads):
        video = build_request(service.fields, body, folders)
        options = {"command": video.command, "model": video.model, "options": {**video.options}}
        request = JobRequest("check", video.model, options, video.metadata, job_id=uploads.name)
        return service.queue.submit(owner, request)


def _submit_for_file(service: Service, owner: str, command: str, body: Body, options: Mapping[str, Any]) -> Job:
    """Submit a job that reads one uploaded file, or the file of a completed video."""
    uploads = service.queue.files.inputs(new_job_id(command)).resolve()
    if unknown := body.values.keys() - {"video_id"}:
        raise InputError(f"there is no field `{min(unknown)[:100]}` here: the fields are `file` and `video_id`")
    video_id = body.values.get("video_id")
    if len(body.uploads) + (video_id is not None) != 1:
        raise ApiError(
            400, "invalid_request", "give one file, as `file`, or the `video_id` of a completed video", "file"
        )
    with _removed_unless_submitted(uploads):
        if video_id is None:
            (upload,) = body.uploads
            name, limit = upload.name, service.settings.max_upload_bytes
            file = str(store_file(upload.file, uploads, upload.name, upload.type, limit).path)
        else:
            video = service.find_job(str(video_id), owner)
            if video.state != "completed":
                message = f"{video.id} is {video.state} and has no content: wait until it is completed"
                raise ApiError(409, "video_not_ready", message, "video_id")
            name, file = video.id, str(service.queue.files.results(video.id).resolve() / FILES["video"][0])
        request = JobRequest(command, NO_MODEL, {**options, "file": file}, {"names": {file: name}}, job_id=uploads.name)
        return service.queue.submit(owner, request)


@contextmanager
def _removed_unless_submitted(uploads: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        remove_path(uploads)
        raise


async def _answer_in_time(response: Response, service: Service, feed: EventFeed, job: Job) -> Task:
    """Wait a while for the end of a job, and answer with its result, or 202. Raises ApiError for one that failed."""
    job = await feed.wait(job, WAIT_SECONDS)
    if job.error_code is not None:
        status, kind = (400, INVALID) if job.error_code == "invalid_request" else (500, SERVER)
        raise ApiError(status, job.error_code, job.error_message or "", None, kind)
    return _answer(response, service, job)


def _answer(response: Response, service: Service, job: Job) -> Task:
    task = Task(id=job.id, object=job.command, status=job.state, created_at=int(job.created_at))  # type: ignore[arg-type]
    if job.error_code is not None:
        task.error = ErrorDetails(message=job.error_message or "", type=INVALID, param=None, code=job.error_code)
    if not job.finished:
        response.status_code = 202
        response.headers["Location"] = f"/v1/tasks/{job.id}"
        response.headers[POLL_HEADER] = f"{1000 * service.settings.poll_seconds:.0f}"
    if job.result is not None:
        task.result = RESULTS[job.command](service, job.result)
    return task


def _refusal(error: ApiError) -> Task:
    """Return the result of a check that needed no worker."""
    return Task(id=None, object="check", status="completed", result=Check(accepted=False, error=_details(error)))


def _describe_check(service: Service, result: Mapping[str, Any]) -> Check:
    if result["accepted"]:
        return Check(**result)
    return Check(accepted=False, error=_details(explain_input_error(InputError(result["error"]))))


def _details(error: ApiError) -> ErrorDetails:
    return ErrorDetails(message=error.message, type=error.type, param=error.param, code=error.code)


def _describe_inspection(service: Service, result: Mapping[str, Any]) -> Inspection:
    known = {*service.models, *(each.source for each in service.models.values())}
    known |= {name for names in service.declaration.built_in.values() for name in names}
    folder = service.settings.opened_folder
    missing = [
        each
        for each in result["sources"]
        if each not in known and not (folder is not None and is_present(folder / Path(each).name))
    ]
    return Inspection(**result, missing=missing)


RESULTS: Mapping[str, Callable[[Service, Mapping[str, Any]], Check | Inspection | Preview]] = {
    "check": _describe_check,
    "inspect": _describe_inspection,
    "preview": lambda service, result: Preview(**result),
}
