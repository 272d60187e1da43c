"""Write docs/rest.md: every route of the REST service, from its OpenAPI schema.

python tools/rest_page.py            writes the page
python tools/rest_page.py --check    exits with 1 if the page is not what would be written
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kineograph.service.api import create_app
from kineograph.service.api.access import is_public
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.queue import JobQueue

PAGE = Path(__file__).parents[1] / "docs" / "rest.md"
INTRODUCTION = """# REST API

Every route of `kineograph serve`, written by `python tools/rest_page.py` from the schema that a server has at
`/openapi.json`. A server's own page, `/`, shows it with forms to try it. [service.md](service.md) is the guide.

Requests are in JSON, or forms (`multipart/form-data`) where they have files. Where the server has tokens, a request
sends one as `Authorization: Bearer TOKEN`; OpenAI's clients call it the API key. An error is answered as
`{"error": {"message", "type", "param", "code"}}`:

* 400: the request cannot be used; `param` is the field
* 401: it has no token
* 403: it comes from a page of another site, or is for a name that is not the server's
* 404: there is no such thing, or it is another owner's
* 409: the state of the video does not allow it, or the `Idempotency-Key` came with another request before
* 413: it is too large
* 429: there were too many, or the queue is full; `Retry-After` says when to try again
* 503: the queue cannot be used at the moment
* 507: the disk of the service is full
"""
ERRORS = {"4XX", "5XX"}
Schema = Mapping[str, Any]


def rest_page(schema: Schema) -> str:
    """Return the page in Markdown."""
    by_tag = defaultdict[str, list[str]](list)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            by_tag[operation["tags"][0]].append(_operation(method.upper(), path, operation))
    parts = [INTRODUCTION]
    for tag, operations in by_tag.items():
        parts += [f"## {tag.capitalize()}", *operations]
    parts.append("## Objects")
    objects = schema["components"]["schemas"]
    parts += [_object(name, objects[name], objects) for name in sorted(objects) if objects[name].get("properties")]
    return "\n\n".join(each.strip() for each in parts) + "\n"


def _operation(method: str, path: str, operation: Schema) -> str:
    lines = [f"### {method} {path}", _text(operation["description"])]
    if is_public(path):
        lines.append("It needs no token.")
    if rows := [
        _row(f"`{each['name']}`", each["in"], each["schema"], each) for each in operation.get("parameters", ())
    ]:
        lines.append(_table("parameter", "in", rows))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        inline = content["schema"].get("properties")
        fields = ", ".join(f"`{name}`" for name in inline) if inline else _type(content["schema"])
        lines.append(f"Body, `{kind}`: {fields}.")
    answers = [
        f"{status}: {', '.join(_content(kind, each) for kind, each in answer.get('content', {}).items()) or 'nothing'}"
        for status, answer in operation["responses"].items()
        if status not in ERRORS
    ]
    lines.append(f"Answers: {'; '.join(answers)}.")
    return "\n\n".join(lines)


def _content(kind: str, content: Schema) -> str:
    return _type(content["schema"]) if kind == "application/json" else f"`{kind}`"


def _object(name: str, schema: Schema, schemas: Mapping[str, Schema]) -> str:
    required = set(schema.get("required", ()))
    others = schemas.get(schema.get("x-extends", ""), {}).get("properties", {})  # whose fields are not repeated
    rows = [
        _row(f"`{field}`", "required" if field in required else "", each, each)
        for field, each in schema["properties"].items()
        if each != others.get(field)
    ]
    description = _text(schema.get("description", ""))
    return f"### {name}\n\n{description}\n\n{_table('field', '', rows)}"


def _table(name: str, where: str, rows: list[str]) -> str:
    return "\n".join([f"| {name} | {where} | type | |", "|---|---|---|---|", *rows])


def _row(name: str, where: str, schema: Schema, described: Schema) -> str:
    description = _text(described.get("description", ""))
    default = schema.get("default")
    if default not in (None, [], {}) and "const" not in schema and "default" not in description.lower():
        description = f"{description} Default: `{json.dumps(default)}`.".strip()
    return f"| {name} | {where} | {_type(schema)} | {description} |"


def _type(schema: Schema) -> str:
    """Return the type that a schema describes, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[several]))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "value")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if schema.get("format") == "binary":
        return "file"
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return " ".join([kind, *(f"{sign} {schema[name]:g}" for name, sign in limits.items() if name in schema)])


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def read_schema() -> Schema:
    """Return the schema of a server with the built-in models."""
    with TemporaryDirectory() as folder:
        queue = JobQueue.open(folder)
        schema: Schema = create_app(Service(queue, ServeSettings())).openapi()
        queue.close()
    return schema


if __name__ == "__main__":
    text = rest_page(read_schema())
    if "--check" in sys.argv:
        sys.exit(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
