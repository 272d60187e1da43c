"""Access to the REST service: who a request is from, where it may come from, how large it is, and how many there are.

Everything is checked before a route is chosen, so a route that is added later is closed until it is listed here.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kineograph.errors import shown
from kineograph.service.api.responses import RATE_LIMIT, ApiError, error_response
from kineograph.service.api.settings import LOOPBACK, ServeSettings
from kineograph.service.tokens import TokenFile, load_cookie_key, read_cookie

COOKIE_NAME = "kineograph_session"
LOCAL_OWNER = "local"  # of every request where no tokens are set
# Paths that answer without a token: the page of documentation and its files, and what tells that the server runs.
PUBLIC_PATHS = ("/", "/health", "/ready")
PUBLIC_FOLDER = "/page/"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]+)?")


async def current_owner(connection: HTTPConnection) -> str:  # not in a thread of its own
    """Return the owner of a request: a dependency of routes."""
    owner: str = connection.state.owner
    return owner


def is_public(path: str) -> bool:
    """Return True for a path that answers without a token."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


@dataclass(frozen=True)
class Access:
    """The tokens of a service, None where none are set, and what is counted of each owner's requests.

    clock: seconds since 1970. buckets: the requests that each owner has left, and when that was.
    """

    settings: ServeSettings
    tokens: TokenFile | None
    cookie_key: bytes
    clock: Callable[[], float]
    timer: Callable[[], float]
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def identify(self, connection: HTTPConnection) -> None:
        """Set the owner of a request, and the id of the token that it carries. Raises ApiError for one without."""
        connection.state.token_id = None
        if self.tokens is None:
            connection.state.owner = LOCAL_OWNER
            return
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            token_id = connection.state.token_id = self.tokens.find(token.strip())
        else:
            token_id = read_cookie(self.cookie_key, connection.cookies.get(COOKIE_NAME, ""), self.clock())
        owner = None if token_id is None else self.tokens.owner(token_id)
        if owner is None:
            message = "a token is needed that this server knows: send it as `Authorization: Bearer TOKEN`"
            raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        connection.state.owner = owner

    def count(self, owner: str) -> None:
        """Count a request of an owner. Raises ApiError if there were too many."""
        rate, most = self.settings.requests_per_second, self.settings.requests_at_once
        now = self.timer()
        left, at = self.buckets.get(owner, (float(most), now))
        left = min(most, left + (now - at) * rate)
        self.buckets[owner] = (max(0.0, left - 1), now)
        if left < 1:
            seconds = math.ceil((1 - left) / rate)
            message = f"more than {rate:g} requests per second: try again in {seconds} s"
            raise ApiError(429, "rate_limit_exceeded", message, None, RATE_LIMIT, {"Retry-After": str(seconds)})


@dataclass(frozen=True)
class Guard:
    """A layer around the application that refuses requests before they reach a route."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        settings = self.access.settings
        try:
            check_host(connection, settings)
            check_origin(connection)
            if not is_public(scope["path"]):
                self.access.identify(connection)
                self.access.count(connection.state.owner)
            limit = body_limit(connection, settings)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, limit_body(receive, limit), send)


def check_host(connection: HTTPConnection, settings: ServeSettings) -> None:
    """Raise ApiError unless the request is for a name of this server, or an address.

    A page of another site whose name an attacker has made to lead here (DNS rebinding) sends that name.
    """
    values = connection.headers.getlist("host")
    found = HOST.fullmatch(values[0]) if len(values) == 1 else None
    name = found[1].lower().strip("[]").removesuffix(".") if found else ""
    if name in (*LOOPBACK, settings.host.lower(), *map(str.lower, settings.allowed_hosts)) or _is_address(name):
        return
    message = f"this server is not called {shown(name)}: its operator adds a name to the setting `allowed_hosts`"
    raise ApiError(403, "host_not_allowed", message)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_origin(connection: HTTPConnection) -> None:
    """Raise ApiError for a request of another site's page that may change something. Programs send no origin."""
    if connection.scope.get("method") in SAFE_METHODS:
        return
    origin = connection.headers.get("origin")
    if origin is None:
        allowed = connection.headers.get("sec-fetch-site") in (None, "same-origin", "none")
    else:
        allowed = origin.partition("://")[2].lower() == connection.headers.get("host", "").lower()
    if not allowed:
        raise ApiError(403, "origin_not_allowed", "requests from pages of other sites are refused")


def body_limit(connection: HTTPConnection, settings: ServeSettings) -> int:
    """Return the most bytes of a request's body. Raises ApiError for one that announces more.

    Forms with files are written to the disk while they come; any other body is held in memory.
    """
    is_form = connection.headers.get("content-type", "").lower().startswith("multipart/form-data")
    limit = settings.max_body_bytes if is_form else min(settings.max_json_bytes, settings.max_body_bytes)
    announced = connection.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise ApiError(413, "too_large", _too_large(limit), headers={"Connection": "close"})
    return limit


def limit_body(receive: Receive, limit: int) -> Receive:
    """Return `receive` with an error once a body has more bytes than the limit."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body") or b"")
        if received > limit:
            # FastAPI hands on this class alone where it reads a body
            raise HTTPException(413, _too_large(limit), {"Connection": "close"})
        return message

    return receive_limited


def _too_large(limit: int) -> str:
    return f"the request's body has more than the {limit:,} bytes allowed: send smaller files"


def install(app: FastAPI) -> Access:
    """Put the checks around the application of a service. Raises InputError for tokens that cannot be used."""
    service = app.state.service
    settings: ServeSettings = service.settings
    tokens = key = None
    if settings.token_file is not None:
        tokens = TokenFile.open(settings.token_file)
        key = load_cookie_key(service.queue.folder / "cookie.key")
    access = Access(settings, tokens, key or b"", service.queue.clock.time, service.queue.clock.monotonic)
    app.state.access = access
    app.add_middleware(Guard, access=access)
    return access


def describe_access(schema: dict[str, Any]) -> None:
    """Add to the OpenAPI schema of a server with tokens which of its routes need one, and how it is sent."""
    schema.setdefault("components", {})["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "A token of `kineograph serve --new-token`."},
        "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE_NAME, "description": "The cookie of `/login`."},
    }
    schema["security"] = [{"token": []}, {"cookie": []}]
    for path, methods in schema["paths"].items():
        if is_public(path):
            for each in methods.values():
                each["security"] = []
