"""Bodies of requests, JSON or forms, and the files in them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import mimetypes
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from fastapi import Depends
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from kineograph.errors import InputError, in_one_line, parse_json, shown
from kineograph.service.api.responses import ApiError

MAX_FILES, MAX_FIELDS, MAX_TEXT = 100, 500, 1 << 20  # of a form; MAX_TEXT: bytes of a field's text
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
FIELD = re.compile(r"(\w{1,100})(?:\[(\w{0,100})\])?")  # name, name[] or name[key]
NAME_LENGTH = 100  # characters of the name of a stored file
DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*);base64,")  # the head of a data URL

FieldsT = TypeVar("FieldsT", bound=BaseModel)


@runtime_checkable
class Readable(Protocol):
    """A binary file that is open for reading."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, or all."""


class Upload(NamedTuple):
    """A file of a form. key: of the field's mapping, as in control[canny]; name: as the client calls the file."""

    field: str
    key: str
    name: str
    type: str
    file: Readable


class Body(NamedTuple):
    """Content of a request. is_form: the values are texts, or lists and mappings of texts."""

    values: dict[str, Any]
    uploads: Sequence[Upload]
    is_form: bool


class StoredFile(NamedTuple):
    """A file of a request that was written to the job's folder."""

    path: Path
    sha256: str


async def read_body(request: Request) -> AsyncIterator[Body]:
    """Yield the content of a request, whose uploads are closed after it: a dependency of routes.

    Raises InputError and ApiError for what cannot be read.
    """
    try:
        yield await _read(request)
    finally:
        await request.close()


InBody = Annotated[Body, Depends(read_body)]


def form_schema(properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the part of an OpenAPI schema that says which fields a route's form has."""
    schema = {"type": "object", "properties": {**properties}, "required": [*required], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def validate_fields(kind: type[FieldsT], values: Mapping[str, Any]) -> FieldsT:
    """Return the fields of a request, checked. Raises InputError for the first one that is unknown or invalid."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])[:NAME_LENGTH] if first["loc"] else "body"
        raise InputError(f"`{name}`: {in_one_line(first['msg'])}, not {shown(first['input'])}") from None


async def _read(request: Request) -> Body:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind in FORMS:
        return _sort_fields(await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT))
    if kind != "application/json":
        expected = f"application/json, {' or '.join(FORMS)}"
        raise ApiError(415, "unsupported_media_type", f"the body's type is {expected}, not {shown(kind)}")
    values = parse_json(await request.body() or b"{}", "the body")
    if not isinstance(values, dict):
        raise InputError(f"the body is an object with the fields of the request, not {shown(values)}")
    return Body(values, (), is_form=False)


def _sort_fields(form: FormData) -> Body:
    values, uploads = dict[str, Any](), list[Upload]()
    for name, value in form.multi_items():
        found = FIELD.fullmatch(name)
        if found is None:
            raise InputError(f"a field of a form is NAME, NAME[] or NAME[KEY], not {shown(name)}")
        field, key = found[1], found[2]
        if isinstance(value, UploadFile):
            if value.filename or value.size:  # a form in a browser sends an empty one for no file
                kind = (value.content_type or "").partition(";")[0]
                uploads.append(Upload(field, key or "", value.filename or field, kind, value.file))
        elif key:
            _add_item(values, field, key, value)
        elif key == "" or field in values:
            before = values.get(field, [])
            values[field] = [*(before if isinstance(before, list) else [before]), value]
        else:
            values[field] = value
    return Body(values, uploads, is_form=True)


def _add_item(values: dict[str, Any], field: str, key: str, value: str) -> None:
    items = values.setdefault(field, {})
    if not isinstance(items, dict) or key in items:
        raise InputError(f"`{field}` is given twice: {field}[{key}] beside another")
    items[key] = value


def store_file(file: Readable, folder: Path, name: str, kind: str, limit: int) -> StoredFile:
    """Write a file into a job's folder. name, kind: as the client calls it; limit: in bytes."""
    folder.mkdir(exist_ok=True)
    number = sum(1 for _ in folder.iterdir())
    last = re.split(r"[/\\]", name)[-1]
    if not Path(last).suffix:
        last += mimetypes.guess_extension(kind) or ""
    path = folder / f"{number}_{re.sub(r'[^A-Za-z0-9.-]', '_', last)[-NAME_LENGTH:]}"
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        while block := file.read(1 << 20):
            size += len(block)
            if size > limit:
                raise ApiError(413, "too_large", f"the file {shown(last)} has more than the {limit:,} bytes allowed")
            digest.update(block)
            target.write(block)
    if not size:
        raise InputError(f"the file {shown(last)} is empty: send its content")
    return StoredFile(path, digest.hexdigest())


def is_data_url(text: str) -> bool:
    """Return True for a URL that holds its content."""
    return text[:5].lower() == "data:"


def decode_data_url(url: str) -> tuple[str, bytes]:
    """Return the type and the content of a data URL in base64."""
    head = DATA.match(url)
    if head is None:
        raise InputError(f"a data URL is data:TYPE;base64,CONTENT, not {shown(url)}")
    try:
        return (head[1] or "").lower(), base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the content of the data URL {shown(url)} is not base64: {error}") from error
