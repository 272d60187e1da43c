"""Routes of the video contract that OpenAI's API and other servers share: /v1/videos, /v1/models, /health, /ready."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()


@router.get("/health")
def health() -> dict[str, str]:
    """Return that the server runs."""
    return {"status": "ok"}
