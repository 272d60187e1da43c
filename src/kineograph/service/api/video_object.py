"""A job as the video object of the contract, with our own keys beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from kineograph.service.jobs import Job, JobState


class VideoError(BaseModel):
    """The reason why a video failed."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video that was requested.

    size, seconds, num_frames, fps: what was made, or what will be; null where it follows from an input that a worker
    has not read yet. seed: null until the video is completed, unless it was given.
    """

    id: str
    object: Literal["video"] = "video"
    model: str
    status: JobState
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    size: str | None
    seconds: str | None
    remixed_from_video_id: str | None
    error: VideoError | None
    command: str
    num_frames: int | None
    fps: float | None
    seed: int | None
    priority: int
    paused: bool
    starred: bool
    cancel_requested: bool


def describe_video(job: Job) -> VideoObject:
    """Return a job as a video object."""
    made: Mapping[str, Any] = {**job.metadata, "seed": job.options.get("seed"), **(job.result or {})}
    width, height, frames, fps = (made.get(name) for name in ("width", "height", "num_frames", "fps"))
    failed = job.error_code is not None
    return VideoObject(
        id=job.id,
        model=made.get("model", job.model),
        status=job.state,
        progress=int(job.progress),
        created_at=int(job.created_at),
        completed_at=int(job.finished_at) if job.state == "completed" and job.finished_at is not None else None,
        expires_at=None if job.expires_at is None else int(job.expires_at),
        prompt=str(job.options.get("prompt", "")),
        size=f"{width}x{height}" if width and height else None,
        seconds=f"{frames / fps:g}" if frames and fps else None,
        remixed_from_video_id=job.source_id,
        error=VideoError(code=job.error_code or "", message=job.error_message or "") if failed else None,
        command=job.command,
        num_frames=frames,
        fps=fps,
        seed=made["seed"],
        priority=job.priority,
        paused=job.paused,
        starred=job.starred,
        cancel_requested=job.cancel_requested,
    )
