"""Routes of videos beside the shared contract: cancel, remix, extend, change, restore."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from kineograph.errors import InputError, shown
from kineograph.service.api.bodies import Body, InBody, Upload, form_schema
from kineograph.service.api.context import Service
from kineograph.service.api.fields import UPLOADS
from kineograph.service.api.responses import ApiError
from kineograph.service.api.video_object import VideoObject
from kineograph.service.api.videos import (
    FILES,
    VIDEO_REQUEST,
    IdempotencyKey,
    InService,
    Owner,
    VideoId,
    answer,
    submit_video,
)
from kineograph.service.jobs import MAX_PRIORITY, VIDEO_COMMANDS, Job, UnknownJobError, seed_of, with_names

# fields of a request that replace those of the video that it changes, and those that they stand for
REPLACED: Mapping[str, Sequence[str]] = {
    "size": ("width", "height"),
    "seconds": ("num_frames", "fps"),
    "input_reference": ("image", "video"),
}
MAX_CLIPS = 1024

router = APIRouter(tags=["videos"])


class VideoChanges(BaseModel):
    """Properties of a video to change."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Annotated[int | None, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = None
    paused: bool | None = None
    starred: bool | None = None


class Extension(BaseModel):
    """How a video is extended. clips: number of further clips; or seconds, their duration, rounded up to clips."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str | None, Field(min_length=1, max_length=20_000)] = None
    clips: Annotated[int | None, Field(ge=1, le=MAX_CLIPS)] = None
    seconds: Annotated[float | None, Field(gt=0, le=4096)] = None


# bodies of OpenAI's clients, which name a completed video as video[id]
REFERENCE = {
    "type": "object",
    "properties": {"id": {"type": "string"}},
    "required": ["id"],
    "additionalProperties": False,
}
EDIT_FORM = form_schema(
    {
        "prompt": {"type": "string", "minLength": 1},
        "video": {"anyOf": [{"type": "string", "format": "binary"}, REFERENCE]},
        "model": {"type": "string"},
    },
    ["prompt", "video"],
)


@router.post("/v1/videos/{video_id}/cancel")
def cancel_video(video_id: VideoId, response: Response, service: InService, owner: Owner) -> VideoObject:
    """Cancel a video: a queued one at once, a running one after its sampling step. A finished one stays as it is."""
    service.find_job(video_id, owner)
    return answer(service, response, service.queue.cancel(video_id, owner))


@router.patch("/v1/videos/{video_id}")
def change_video(
    video_id: VideoId, changes: VideoChanges, response: Response, service: InService, owner: Owner
) -> VideoObject:
    """Change a video's priority, pause or resume it, or keep it from expiring by a star."""
    service.find_job(video_id, owner)
    given = changes.model_dump(exclude_none=True)
    return answer(service, response, service.queue.change(video_id, owner, **given))


@router.post("/v1/videos/{video_id}/restore")
def restore_video(video_id: VideoId, response: Response, service: InService, owner: Owner) -> VideoObject:
    """Bring a deleted video back, as long as it has not expired."""
    if service.queue.get(video_id, owner).command not in VIDEO_COMMANDS:
        raise UnknownJobError(f"there is no video {shown(video_id)}")
    return answer(service, response, service.queue.restore(video_id, owner))


@router.post("/v1/videos/{video_id}/remix", openapi_extra=VIDEO_REQUEST)
def remix_video(
    video_id: VideoId,
    body: InBody,
    response: Response,
    service: InService,
    owner: Owner,
    key: IdempotencyKey = None,
) -> VideoObject:
    """Request a video again with another prompt or other fields; the others, also the seed, stay as they were."""
    return answer(service, response, _submit_changed(service, owner, video_id, body, key))


@router.post("/v1/videos/{video_id}/extend")
def extend_video(
    video_id: VideoId,
    extension: Extension,
    response: Response,
    service: InService,
    owner: Owner,
    key: IdempotencyKey = None,
) -> VideoObject:
    """Request a longer video that begins with a completed one, by further clips that continue it (VidRD)."""
    source = service.find_job(video_id, owner)
    values = _extended(source, extension)
    return answer(service, response, _submit_changed(service, owner, video_id, Body(values, (), is_form=False), key))


@router.post("/v1/videos/edits", openapi_extra=EDIT_FORM)
def create_edit(
    body: InBody, response: Response, service: InService, owner: Owner, key: IdempotencyKey = None
) -> VideoObject:
    """Edit an uploaded video, or a completed one of the service, as OpenAI's clients request it."""
    values = {**body.values, "command": "edit"}
    if not isinstance(values.get("video"), dict):
        return answer(service, response, submit_video(service, owner, body._replace(values=values), key=key))
    reference = values.pop("video")
    if not isinstance(reference.get("id"), str) or len(reference) > 1:
        raise InputError("`video` is a file, or the id of a completed video, {id: VIDEO_ID}")
    source = service.find_job(reference["id"], owner)
    if source.state != "completed":
        raise ApiError(409, "video_not_ready", f"{source.id} is {source.state}: wait until it is completed", "video")
    name, kind = FILES["video"]
    with (service.queue.files.results(source.id) / name).open("rb") as file:
        edit = Body(values, [*body.uploads, Upload("video", "", f"{source.id}.mp4", kind, file)], body.is_form)
        return answer(service, response, submit_video(service, owner, edit, key=key, source_id=source.id))


def _submit_changed(service: Service, owner: str, video_id: str, body: Body, key: str | None) -> Job:
    """Submit a job with the fields of another one, of which those of the body are replaced."""
    source = service.find_job(video_id, owner)
    given = {*body.values, *(each.field for each in body.uploads)}
    replaced = given | {name for field in given & REPLACED.keys() for name in REPLACED[field]}
    fields = {name: each for name, each in source_fields(service, source).items() if name not in replaced}
    with ExitStack() as opened:
        folder, new = service.queue.files.inputs(source.id).resolve(), {each.name for each in body.uploads}
        files = {with_names(str(file), source): file for file in (folder.iterdir() if folder.is_dir() else ())}
        uploads = [
            Upload(UPLOADS, "", name, "", opened.enter_context(file.open("rb")))
            for name, file in files.items()
            if name not in new
        ]
        changed = Body({**fields, **body.values}, [*uploads, *body.uploads], body.is_form)
        return submit_video(service, owner, changed, key=key, source_id=source.id)


def source_fields(service: Service, job: Job) -> dict[str, Any]:
    """Return the fields of a request for the same video: names in place of the server's paths, and its seed."""
    fields = with_names(job.options, job)
    names = {each.source: name for name, each in service.models.items()}
    if "video_model" in fields:
        fields["video_model"] = names.get(fields["video_model"], fields["video_model"])
    model = job.metadata.get("model", names.get(job.model, job.model))
    return {"seed": (job.result or {}).get("seed", seed_of(job.id)), **fields, "model": model, "command": job.command}


def _extended(source: Job, extension: Extension) -> dict[str, Any]:
    """Return the fields that make a completed video longer. Raises ApiError where that cannot be."""
    if source.result is None:
        raise ApiError(
            409, "video_not_ready", f"{source.id} is {source.state}: a completed video is extended", "video_id"
        )
    options = source.options
    if source.command == "edit" or options.get("control") or options.get("video"):
        message = f"{source.id} follows the frames of an input video: request it again with more of them"
        raise ApiError(400, "not_extendable", message, "video_id")
    if options.get("prompt_at"):
        message = f"{source.id} has prompts at frames (`prompt_at`): request it again with more frames"
        raise ApiError(400, "not_extendable", message, "video_id")
    if (extension.clips is None) == (extension.seconds is None):
        raise ApiError(400, "invalid_request", "give `clips` or `seconds`, one of them", "clips")
    before = int(options.get("clips", 1))
    frames = source.result["num_frames"] // before
    more = extension.clips or math.ceil(round((extension.seconds or 0) * source.result["fps"] / frames, 6))
    if before + more > MAX_CLIPS:
        raise ApiError(400, "invalid_request", f"a video has at most {MAX_CLIPS} clips, not {before + more}", "clips")
    same = {name: source.result[name] for name in ("fps", "engine") if name in source.result}
    fields: dict[str, Any] = {**same, "clips": before + more, "num_frames": frames}
    if extension.prompt is not None:
        then = options.get("then") or [options["prompt"]]  # of the clips after the first; the last one of all further
        fields["then"] = [*(then[min(clip, len(then)) - 1] for clip in range(1, before)), extension.prompt]
    return fields
