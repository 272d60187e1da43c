"""Errors of the REST service as the envelope {"error": {message, type, param, code}}."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kineograph.errors import InputError, in_one_line
from kineograph.service.jobs import IdempotencyError, QueueFullError, UnknownJobError

INVALID, RATE_LIMIT, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
BUSY_SECONDS = 5  # after which to try again when the queue's file cannot be used
NAMED = re.compile(r"`(\w+)`")
CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
}


class ErrorDetails(BaseModel):
    """An error. param: the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """The body of every answer with an error."""

    error: ErrorDetails


class ApiError(Exception):
    """An error to answer with. code: one word for programs; param: the field that it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        type: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.type = status, code, message, param, type
        self.headers = headers


def error_response(error: ApiError) -> JSONResponse:
    """Return the answer of an error."""
    details = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return JSONResponse({"error": details}, error.status, error.headers)


def install_handlers(app: FastAPI) -> None:
    """Answer every error of the routes, and those of FastAPI, with the envelope."""
    handlers: dict[type[Exception], Any] = {
        ApiError: lambda error: error,
        InputError: explain_input_error,
        RequestValidationError: _of_validation,
        UnknownJobError: lambda error: ApiError(404, "not_found", str(error), "video_id"),
        IdempotencyError: lambda error: ApiError(409, "idempotency_key_reused", str(error), "Idempotency-Key"),
        QueueFullError: _of_full_queue,
        sqlite3.OperationalError: _of_queue_file,
        OSError: _of_files,
        ClientDisconnect: lambda error: ApiError(400, "disconnected", "the client left before the body's end"),
        HTTPException: _of_http,
        Exception: _of_program,
    }
    for kind, explain in handlers.items():
        app.add_exception_handler(kind, _handler(explain))


def _handler(explain: Any) -> Any:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(explain(error))

    return handle


def explain_input_error(error: InputError) -> ApiError:
    """Return the answer to input that cannot be used, with the field that its message names."""
    found = NAMED.search(str(error))
    return ApiError(400, "invalid_request", str(error), found and found[1])


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    place, *names = [str(each) for each in first["loc"]]
    name = ".".join(names) or place
    return ApiError(400, "invalid_request", in_one_line(f"`{name}`: {first['msg']}"), name)


def _of_full_queue(error: QueueFullError) -> ApiError:
    return ApiError(429, "queue_full", str(error), None, RATE_LIMIT, {"Retry-After": str(error.retry_after)})


def _of_queue_file(error: sqlite3.OperationalError) -> ApiError:
    message = f"the queue cannot be used now ({error}): try again"
    return ApiError(503, "queue_unavailable", message, None, SERVER, {"Retry-After": str(BUSY_SECONDS)})


def _of_files(error: OSError) -> ApiError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error  # of the program
    message = "the disk of the server is full: delete videos that are not needed, or ask the operator for room"
    return ApiError(507, "disk_full", message, None, SERVER)


def _of_http(error: HTTPException) -> ApiError:
    kind = SERVER if error.status_code >= 500 else RATE_LIMIT if error.status_code == 429 else INVALID
    code = CODES.get(error.status_code, "invalid_request")
    return ApiError(error.status_code, code, str(error.detail), None, kind, error.headers)


def _of_program(error: Exception) -> ApiError:
    message = f"an error of the program, {type(error).__name__}: the server's log has its traceback"
    return ApiError(500, "internal_error", message, None, SERVER)
