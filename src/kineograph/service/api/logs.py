"""Logs of the REST service, a line for each request, and the headers that every answer has.

A line has the request's owner, route, status, milliseconds, and the id of its job: no prompts unless the operator asks
for them, and nothing else that a client wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kineograph.service.api.access import PUBLIC_PATHS
from kineograph.service.jobs import JOB_ID, Job

log = logging.getLogger("kineograph.service.requests")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Called with a request's method, the template of its route, its status, and the seconds until the answer began.
Observe = Callable[[str, str, int, float], None]

SUBMITTED: ContextVar[list[Job]] = ContextVar("SUBMITTED")  # the jobs that the request at hand submitted


def log_submitted(job: Job) -> None:
    """Add a job to the log of the request that submitted it."""
    SUBMITTED.get([]).append(job)


@dataclass(frozen=True)
class RequestLog:
    """The outermost layer of the application: it logs and counts requests, and adds the headers of every answer."""

    app: ASGIApp
    observe: Observe
    log_prompts: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, seconds = perf_counter(), 500, None
        submitted: list[Job] = []
        SUBMITTED.set(submitted)

        async def send_with_headers(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], perf_counter() - begun
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            # starlette answers outside of this layer, where its answer would lack the headers and the record
            explain = scope["app"].exception_handlers[Exception]
            if seconds is None:
                await (await explain(Request(scope), error))(scope, receive, send_with_headers)
            raise
        finally:
            whole = perf_counter() - begun
            route = getattr(scope.get("route"), "path", "-")
            method = scope["method"] if scope["method"] in METHODS else "-"
            self.observe(method, route, status, whole if seconds is None else seconds)
            values = {"method": method, "route": route, "status": status, "milliseconds": round(1000 * whole, 1)}
            self._log(values | _describe(scope, submitted))

    def _log(self, values: dict[str, Any]) -> None:
        if not self.log_prompts:
            values.pop("prompt", None)
        text = " ".join(f"{name}={each!r}" if name == "prompt" else f"{name}={each}" for name, each in values.items())
        frequent = values["route"] in PUBLIC_PATHS or (values["method"] == "GET" and values["status"] == HTTPStatus.OK)
        log.log(logging.DEBUG if frequent else logging.INFO, text, extra={"values": values})


def _describe(scope: Scope, submitted: Sequence[Job]) -> dict[str, Any]:
    """Return a request's owner, the id of its job, and the prompt of one that it submitted, as far as there are."""
    owner = getattr(HTTPConnection(scope).state, "owner", None)
    ids = [each.id for each in submitted] + [*filter(JOB_ID.fullmatch, scope.get("path_params", {}).values())]
    prompts = [each.options["prompt"] for each in submitted if "prompt" in each.options]
    values = {"owner": owner, "job": ids[0] if ids else None, "prompt": prompts[0] if prompts else None}
    return {name: each for name, each in values.items() if each is not None}
