"""Routes of the video contract that OpenAI's API and other servers share: /v1/videos, /v1/models, /health, /ready."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel

from kineograph.media.files import remove_path
from kineograph.service.api.access import current_owner
from kineograph.service.api.bodies import Body, InBody
from kineograph.service.api.context import Service, get_service
from kineograph.service.api.fields import build_request
from kineograph.service.api.logs import log_submitted
from kineograph.service.api.responses import ApiError
from kineograph.service.api.video_object import VideoObject, describe_video
from kineograph.service.declaration import ModelFacts
from kineograph.service.jobs import MAX_TEXT, VIDEO_COMMANDS, Job, UnknownJobError, new_job_id

MAX_LISTED = 100
POLL_HEADER = "openai-poll-after-ms"
MADE = 1767225600  # `created` of the models: the contract has it, and a model here has no such time
FILES = {  # variant -> file of a completed job, and its type
    "video": ("video.mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("spritesheet.jpg", "image/jpeg"),
}

InService = Annotated[Service, Depends(get_service)]
Owner = Annotated[str, Depends(current_owner)]
VideoId = Annotated[str, Path(description="Id of a video.", max_length=MAX_TEXT)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A text of your choice: a request that is sent again with it is not carried out twice.",
        min_length=1,
        max_length=MAX_TEXT,
    ),
]
# The body of a request for a video, which `read_body` reads; `describe_api` adds its schemas to the components.
VIDEO_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/VideoRequest"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/VideoForm"}},
        },
    }
}

router = APIRouter()


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """The confirmation that a video was deleted."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class ModelObject(BaseModel):
    """A model: beside the contract's keys, the size, length and rate of its videos by default, and its commands."""

    id: str
    object: Literal["model"] = "model"
    created: int = MADE
    owned_by: str = "kineograph"
    description: str
    size: str
    num_frames: int
    fps: float
    commands: list[str]


class ModelList(BaseModel):
    """The models that requests may name."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """State of the service. workers: number of those that live."""

    status: Literal["ok", "no_workers"]
    workers: int


@router.post("/v1/videos", openapi_extra=VIDEO_REQUEST, tags=["videos"])
def create_video(
    body: InBody, response: Response, service: InService, owner: Owner, key: IdempotencyKey = None
) -> VideoObject:
    """Request a video. A form may have files; every option of generate, animate and edit is a field."""
    return answer(service, response, submit_video(service, owner, body, key=key))


def submit_video(
    service: Service, owner: str, body: Body, *, key: str | None = None, source_id: str | None = None
) -> Job:
    """Write a request's files, and submit its job; or return the one that came with this idempotency key before."""
    job_id = new_job_id()
    folders = service.input_folders(owner, job_id)
    try:
        job = service.queue.submit(owner, build_request(service.fields, body, folders, key=key, source_id=source_id))
    except BaseException:
        remove_path(folders.uploads)
        raise
    log_submitted(job)
    if job.id != job_id:
        remove_path(folders.uploads)
    return job


def answer(service: Service, response: Response, job: Job) -> VideoObject:
    """Return a job's video object, and say when to ask for it again."""
    if not job.finished:
        response.headers[POLL_HEADER] = f"{1000 * service.settings.poll_seconds:.0f}"
    return describe_video(job)


@router.get("/v1/videos", tags=["videos"])
def list_videos(
    service: InService,
    owner: Owner,
    after: Annotated[str | None, Query(description="Id of the last video of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """Return a page of videos in the order of their requests."""
    try:
        found = service.queue.list_jobs(owner, after=after, limit=limit + 1, order=order, commands=VIDEO_COMMANDS)
    except UnknownJobError as error:
        raise ApiError(404, "not_found", f"`after`: {error}", "after") from error
    page = found[:limit]
    return VideoList(
        data=[describe_video(each) for each in page],
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/videos/{video_id}", tags=["videos"])
def get_video(video_id: VideoId, response: Response, service: InService, owner: Owner) -> VideoObject:
    """Return a video, with its state."""
    return answer(service, response, service.find_job(video_id, owner))


@router.delete("/v1/videos/{video_id}", tags=["videos"])
def delete_video(video_id: VideoId, service: InService, owner: Owner) -> DeletedVideo:
    """Delete a video, whose job is cancelled if it is not finished; it can be brought back until it expires."""
    service.find_job(video_id, owner)
    service.queue.delete(video_id, owner)
    return DeletedVideo(id=video_id)


@router.get(
    "/v1/videos/{video_id}/content",
    tags=["videos"],
    response_class=FileResponse,
    responses={
        200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for _, kind in FILES.values()}}
    },
)
def get_content(
    video_id: VideoId,
    service: InService,
    owner: Owner,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> FileResponse:
    """Return a completed video, its first frame as a small image, or some of its frames in one image."""
    job = service.find_job(video_id, owner)
    if job.state != "completed":
        later = f": it is at {job.progress:.0f} %, ask again later" if not job.finished else ""
        raise ApiError(404, "video_not_ready", f"{job.id} is {job.state} and has no content{later}", "video_id")
    name, kind = FILES[variant]
    path = service.queue.files.results(job.id) / name
    if not path.is_file():
        raise ApiError(404, "not_found", f"{job.id} has no {variant}", "variant")
    return FileResponse(path, media_type=kind, filename=f"{job.id}{path.suffix}")


@router.get("/v1/models", tags=["models"])
def list_models(service: InService, owner: Owner) -> ModelList:
    """Return the models that requests may name."""
    return ModelList(data=[_describe_model(name, each) for name, each in service.models.items()])


@router.get("/v1/models/{model}", tags=["models"])
def get_model(model: str, service: InService, owner: Owner) -> ModelObject:
    """Return a model."""
    if model not in service.models:
        raise ApiError(404, "model_not_found", f"there is no model {model[:100]!r} here: see /v1/models", "model")
    return _describe_model(model, service.models[model])


def _describe_model(name: str, facts: ModelFacts) -> ModelObject:
    return ModelObject(
        id=name,
        description=facts.description,
        size=f"{facts.width}x{facts.height}",
        num_frames=facts.num_frames,
        fps=facts.fps,
        commands=[*facts.commands],
    )


@router.get("/health", tags=["server"])
def health() -> Health:
    """Return that the server runs."""
    return Health()


@router.get("/ready", tags=["server"], response_model=Readiness, responses={503: {"model": Readiness}})
def ready(service: InService) -> JSONResponse:
    """Return whether the queue can be used and a worker lives."""
    workers = len(service.queue.list_workers())
    state = Readiness(status="ok" if workers else "no_workers", workers=workers)
    return JSONResponse(state.model_dump(), 200 if workers else 503)
