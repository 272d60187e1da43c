"""The REST service: FastAPI routes over the queue of jobs.

`videos.py` has the video contract that other servers share, `own_routes.py` and `events.py` what is ours beside it,
`access.py` who may do what. Nothing here imports torch: workers, which are processes of their own, generate the videos.
"""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from kineograph.service.api import videos
from kineograph.service.api.context import Service
from kineograph.service.api.responses import ErrorEnvelope, install_handlers


def create_app(service: Service) -> FastAPI:
    """Return the application that serves the jobs of a queue."""
    app = FastAPI(
        title="Kineograph",
        version=version("kineograph"),
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}},
    )
    app.state.service = service
    install_handlers(app)
    app.include_router(videos.router)
    return app
