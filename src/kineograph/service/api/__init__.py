"""The REST service: FastAPI routes over the queue of jobs.

`videos.py` has the video contract that other servers share, `own_routes.py` and `events.py` what is ours beside it,
`access.py` who may do what. Nothing here imports torch: workers, which are processes of their own, generate the videos.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from kineograph.service import page
from kineograph.service.api import (
    access,
    customisations,
    events,
    logs,
    metrics,
    own_routes,
    short_routes,
    videos,
    webhooks,
)
from kineograph.service.api.context import Service
from kineograph.service.api.responses import ErrorEnvelope, install_handlers


def create_app(service: Service) -> FastAPI:
    """Return the application that serves the jobs of a queue."""
    app = FastAPI(
        title="Kineograph",
        version=version("kineograph"),
        docs_url=None,
        redoc_url=None,
        lifespan=webhooks.send_webhooks,
        responses={"4XX": {"model": ErrorEnvelope}, "5XX": {"model": ErrorEnvelope}},
    )
    app.state.service = service
    app.openapi = partial(describe_api, app)  # type: ignore[method-assign]
    install_handlers(app)
    for each in (videos, own_routes, events, short_routes, customisations, webhooks, metrics, page):
        app.include_router(each.router)
    access.install(app)
    app.state.metrics = metrics.Metrics.of(service.queue)
    app.add_middleware(
        logs.RequestLog, observe=app.state.metrics.observe_request, log_prompts=service.settings.log_prompts
    )  # outermost, since it is added last
    return app


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI schema, with the fields of requests for videos that follow from the declared options."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        service: Service = app.state.service
        schema["components"]["schemas"]["VideoRequest"] = service.fields.request_schema()
        schema["components"]["schemas"]["VideoForm"] = service.fields.form_schema()
        if service.settings.token_file is not None:
            access.describe_access(schema)
        app.openapi_schema = schema
    return app.openapi_schema
