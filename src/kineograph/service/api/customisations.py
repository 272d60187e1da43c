"""Routes of customisations: a few images of a subject or a style become a small adapter file (Still-Moving).

They are jobs of the same queue. A request for a video names a completed one by its id, as its `adapter`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json

from kineograph.errors import InputError, shown
from kineograph.media.files import remove_path
from kineograph.service.api.bodies import Body, InBody, store_file, validate_fields
from kineograph.service.api.context import CUSTOMISE, Service
from kineograph.service.api.responses import ApiError
from kineograph.service.api.video_object import VideoError
from kineograph.service.api.videos import MAX_LISTED, POLL_HEADER, DeletedVideo, IdempotencyKey, InService, Owner
from kineograph.service.jobs import MAX_TEXT, Job, JobRequest, JobState, new_job_id, to_json

DEFAULT_MODEL = "pocket-video"
MAX_IMAGES, MAX_WORDS, MAX_PROMPT = 50, 200, 1000  # characters of a subject, and of a prompt

router = APIRouter(tags=["customisations"])
CustomisationId = Annotated[str, Path(description="Id of a customisation.", max_length=MAX_TEXT)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value  # one field of a form


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]


class CustomisationRequest(BaseModel):
    """Fields of a request, beside its images.

    subject: a rare word and the class, such as "sks dog"; or style. previews: prompts. settings: numbers of
    docs/customising.md, nested or as in {"training.max_train_steps": 200}. motion_module: the built-in temporal layers
    of an image model.
    """

    model_config = ConfigDict(extra="forbid")

    subject: Words | None = None
    style: Words | None = None
    model: str = DEFAULT_MODEL
    previews: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]], BeforeValidator(_as_list)
    ] = []
    settings: dict[str, Any] | Json[dict[str, Any]] = {}
    motion_module: str | None = None


FORM = CustomisationRequest.model_json_schema()
FORM["properties"]["images"] = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}


class Customisation(BaseModel):
    """A customisation. subject: the subject or style that prompts have to name. adapter: for requests for videos."""

    id: str
    object: Literal["customisation"] = "customisation"
    model: str
    subject: str
    status: JobState
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    adapter: str | None


class CustomisationList(BaseModel):
    """A page of customisations."""

    object: Literal["list"] = "list"
    data: list[Customisation]
    has_more: bool


@router.post("/v1/customisations", openapi_extra=BODY)
def create_customisation(
    body: InBody, response: Response, service: InService, owner: Owner, key: IdempotencyKey = None
) -> Customisation:
    """Teach a video model a subject from three to ten images, or a style from one or more."""
    return _answer(service, response, _submit(service, owner, body, key))


@router.get("/v1/customisations")
def list_customisations(
    service: InService,
    owner: Owner,
    after: Annotated[str | None, Query(description="Id of the last customisation of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
) -> CustomisationList:
    """Return a page of customisations, the newest first."""
    found = service.queue.list_jobs(owner, after=after, limit=limit + 1, commands=CUSTOMISE)
    return CustomisationList(data=[_describe(each) for each in found[:limit]], has_more=len(found) > limit)


@router.get("/v1/customisations/{customisation_id}")
def get_customisation(
    customisation_id: CustomisationId, response: Response, service: InService, owner: Owner
) -> Customisation:
    """Return a customisation, with its state."""
    return _answer(service, response, service.find_job(customisation_id, owner, CUSTOMISE))


@router.post("/v1/customisations/{customisation_id}/cancel")
def cancel_customisation(
    customisation_id: CustomisationId, response: Response, service: InService, owner: Owner
) -> Customisation:
    """Cancel a customisation: a queued one at once, a running one after its step."""
    service.find_job(customisation_id, owner, CUSTOMISE)
    return _answer(service, response, service.queue.cancel(customisation_id, owner))


@router.delete("/v1/customisations/{customisation_id}")
def delete_customisation(customisation_id: CustomisationId, service: InService, owner: Owner) -> DeletedVideo:
    """Delete a customisation, whose job is cancelled if it is not finished."""
    service.find_job(customisation_id, owner, CUSTOMISE)
    service.queue.delete(customisation_id, owner)
    return DeletedVideo(id=customisation_id)


@router.get(
    "/v1/customisations/{customisation_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_adapter(customisation_id: CustomisationId, service: InService, owner: Owner) -> FileResponse:
    """Return the adapter file of a completed customisation."""
    service.find_job(customisation_id, owner, CUSTOMISE)
    path = service.find_adapter(customisation_id, owner)
    if path is None:
        raise ApiError(404, "not_ready", f"{customisation_id} has no adapter yet: ask again later", "customisation_id")
    return FileResponse(path, media_type="application/octet-stream", filename=f"{customisation_id}.safetensors")


def _submit(service: Service, owner: str, body: Body, key: str | None) -> Job:
    fields = _read_fields(service, body)
    uploads = service.queue.files.inputs(new_job_id(*CUSTOMISE)).resolve()
    options = fields.model_dump(exclude_none=True, exclude={"model"})
    try:
        stored = [
            store_file(each.file, uploads, each.name, each.type, service.settings.max_upload_bytes)
            for each in body.uploads
        ]
        sent = {"options": options, "model": fields.model, "images": [each.sha256 for each in stored]}
        names = {str(file.path): each.name for file, each in zip(stored, body.uploads, strict=True)}
        request = JobRequest(
            *CUSTOMISE,
            service.models[fields.model].source,
            options,
            {"model": fields.model, "names": names},
            idempotency_key=key,
            sent_sha256=hashlib.sha256(to_json(sent).encode()).hexdigest(),
            job_id=uploads.name,
        )
        job = service.queue.submit(owner, request)
    except BaseException:
        remove_path(uploads)
        raise
    if job.id != uploads.name:
        remove_path(uploads)
    return job


def _read_fields(service: Service, body: Body) -> CustomisationRequest:
    fields = validate_fields(CustomisationRequest, body.values)
    if not 1 <= len(body.uploads) <= MAX_IMAGES or any(each.field != "images" for each in body.uploads):
        raise InputError(f"`images` are 1 to {MAX_IMAGES} files, in this field of a form: send them so")
    if (fields.subject is None) == (fields.style is None):
        raise InputError("give a `subject`, such as 'sks dog', or a `style`, one of them")
    if fields.model not in service.models:
        known = ", ".join(service.models)
        raise ApiError(400, "model_not_found", f"there is no model {shown(fields.model)} here: {known}", "model")
    if fields.motion_module not in (None, *service.declaration.built_in["motion_module"]):
        raise InputError(f"`motion_module` is {' or '.join(service.declaration.built_in['motion_module'])}")
    return fields


def _answer(service: Service, response: Response, job: Job) -> Customisation:
    if not job.finished:
        response.headers[POLL_HEADER] = f"{1000 * service.settings.poll_seconds:.0f}"
    return _describe(job)


def _describe(job: Job) -> Customisation:
    completed = job.state == "completed" and job.finished_at is not None
    failed = job.error_code is not None
    return Customisation(
        id=job.id,
        model=job.metadata.get("model", job.model),
        subject=job.options.get("subject") or job.options["style"],
        status=job.state,
        progress=int(job.progress),
        created_at=int(job.created_at),
        completed_at=int(job.finished_at or 0) if completed else None,
        expires_at=None if job.expires_at is None else int(job.expires_at),
        error=VideoError(code=job.error_code or "", message=job.error_message or "") if failed else None,
        adapter=job.id if completed else None,
    )
