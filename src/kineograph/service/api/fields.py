"""Fields of a request for a video: those of the contract, and every declared option.

A field that names a file names one that came with the request, or one in the folder that the operator opened; never a
path of the server. A form may have the file itself in the field.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import mimetypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kineograph.errors import MAX_FRAMES, InputError, parse_json, shown
from kineograph.service.api.bodies import Body, StoredFile, decode_data_url, is_data_url, store_file
from kineograph.service.api.responses import ApiError
from kineograph.service.declaration import OF_OPERATOR, SECOND, Declaration, ModelFacts
from kineograph.service.jobs import JobRequest, to_json

MAX_PROMPT, MAX_SIDE = 20_000, 4096  # characters, pixels
VIDEO_FPS = 8.0  # of a model with a motion module
SIZE = re.compile(r"([0-9]{1,4})x([0-9]{1,4})")
SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
COMMANDS = ("generate", "animate", "edit")
UPLOADS = "files"  # the field of uploads that other fields name

REFERENCE = {
    "type": "object",
    "properties": {"image_url": {"type": "string"}, "file_id": {"type": "string"}},
    "additionalProperties": {"type": "string"},
}
# The fields of the contract and our own beside the options: JSON schemas, each with its values in words (`expected`).
CONTRACT: Mapping[str, Mapping[str, Any]] = {
    "prompt": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_PROMPT,
        "description": "Text that describes the video, or what to change in one.",
        "expected": f"a text of 1 to {MAX_PROMPT:,} characters",
    },
    "model": {
        "type": "string",
        "description": "Name of a model, of those at /v1/models.",
        "expected": "the name of a model",
    },
    "seconds": {
        "anyOf": [{"type": "string", "pattern": f"^{SECONDS.pattern}$"}, {"type": "number", "exclusiveMinimum": 0}],
        "description": "Duration. The number of frames is this times the frames per second, rounded.",
        "expected": "a number of seconds as a text, such as '4'",
    },
    "size": {
        "type": "string",
        "pattern": f"^{SIZE.pattern}$",
        "description": "Width and height in pixels, as in 512x512.",
        "expected": "WIDTHxHEIGHT in pixels, such as 512x512",
    },
    "input_reference": {
        "anyOf": [{"type": "string"}, REFERENCE],
        "description": "An image to start from, or a video to edit: a file, its name, or a data URL.",
        "expected": "a file, the name of one, or {image_url: a data URL}",
        "files": True,
    },
    "command": {
        "enum": [*COMMANDS],
        "type": "string",
        "description": "What is done; by default it follows from whether an image or a video is given.",
        "expected": " or ".join(COMMANDS),
    },
    "video_model": {
        "type": "string",
        "description": "Second model, which samples together with the first (VideoElevator).",
        "expected": "the name of a model",
    },
}


@dataclass(frozen=True)
class Fields:
    """The fields that a request may have, checked by one pydantic model that follows from the declaration."""

    declaration: Declaration
    schemas: Mapping[str, Mapping[str, Any]]
    model: type[BaseModel]

    @classmethod
    def of(cls, declaration: Declaration) -> Fields:
        """Return the fields that follow from a declaration."""
        schemas = {**CONTRACT, **declaration.options}
        types: dict[str, Any] = {name: (_value_type(each) | None, None) for name, each in schemas.items()}
        return cls(declaration, schemas, create_model("VideoRequest", __config__=ConfigDict(extra="forbid"), **types))

    def check(self, values: Mapping[str, Any], *, is_form: bool) -> dict[str, Any]:
        """Return the values that are not null. is_form: texts of numbers and flags are read.

        Raises InputError for an unknown field, with a similar name if there is one, and for an invalid value.
        """
        for name in values:
            if name.removeprefix(SECOND) in OF_OPERATOR - {*self.schemas}:
                raise InputError(f"`{name}` is no field of a request, since the operator decides it: leave it out")
            if name not in self.schemas:
                near = difflib.get_close_matches(name[:100], self.schemas, n=1)
                raise InputError(f"there is no field `{name[:100]}`{f': did you mean {near[0]!r}?' if near else ''}")
        given = {name: _from_text(name, each, self.schemas[name]) if is_form else each for name, each in values.items()}
        try:
            valid = self.model.model_validate(given, strict=not is_form).model_dump(exclude_unset=True)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            schema = self.schemas[name]
            hint = f": {schema['hint']}" if schema.get("hint") else ""
            raise InputError(f"`{name}` is {schema['expected']}, not {shown(given[name])}{hint}") from None
        return {name: value for name, value in valid.items() if value is not None}

    def form_schema(self) -> dict[str, Any]:
        """Return the schema of a form, whose fields may be files, for the API's documentation."""
        schema = self.request_schema()
        file = {"type": "string", "format": "binary"}
        for name, each in self.schemas.items():
            if name == "input_reference" or (each.get("files") and not {"array", "object"} & _kinds(each)):
                schema["properties"][name] = file | {"description": each["description"]}
        uploads = {"type": "array", "items": file, "description": "Files that other fields name."}
        return schema | {
            "title": "VideoForm",
            "description": "The fields of VideoRequest, of which these are files.",
            "x-extends": "VideoRequest",
            "properties": {**schema["properties"], UPLOADS: uploads},
        }

    def request_schema(self) -> dict[str, Any]:
        """Return the JSON schema of a request, for the API's documentation."""
        properties = {name: {**each} for name, each in self.schemas.items()}
        for each in properties.values():
            for own in ("readers", "recorded", "files", "shown_default", "expected", "hint", "group"):
                each.pop(own, None)
        properties["model"]["enum"] = properties["video_model"]["enum"] = [*self.declaration.models]
        return {
            "title": "VideoRequest",
            "type": "object",
            "properties": properties,
            "required": ["prompt"],
            "additionalProperties": False,
        }


def _value_type(schema: Mapping[str, Any]) -> Any:
    """Return the type of the values that a JSON schema of `declaration.json` or `CONTRACT` describes."""
    if "enum" in schema or "const" in schema:
        return Literal[tuple(schema.get("enum", (schema.get("const"),)))]
    if "anyOf" in schema:
        return Union[tuple(_value_type(each) for each in schema["anyOf"])]  # noqa: UP007
    kind = schema["type"]
    if kind == "array":
        return list[_value_type(schema["items"])]  # type: ignore[misc]
    if kind == "object":
        return dict[str, _value_type(schema["additionalProperties"])]  # type: ignore[misc]
    limits = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
    found: dict[str, Any] = {name: schema[key] for name, key in limits.items() if key in schema}
    if kind == "string":
        lengths = {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"}
        return Annotated[str, Field(**{name: schema[key] for name, key in lengths.items() if key in schema})]
    if kind == "number":
        return Annotated[float, Field(allow_inf_nan=False, **found)]
    if kind == "integer":
        return Annotated[int, Field(**found)]
    return bool if kind == "boolean" else None


def _from_text(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    """Return what a text of a form stands for, where pydantic does not read it: JSON of lists and mappings, nothing."""
    kinds = _kinds(schema)
    if isinstance(value, str) and value[:1] in ("[", "{") and {"array", "object"} & kinds:
        return parse_json(value, f"`{name}`")
    if isinstance(value, str) and "array" in kinds and "string" not in kinds:
        return [value]
    return None if value == "" and "string" not in kinds else value


def _kinds(schema: Mapping[str, Any]) -> set[str | None]:
    return {each.get("type") for each in (schema, *schema.get("anyOf", ()))}


# --- the job that a request asks for


class InputFolders(NamedTuple):
    """Folders that fields name files in: the job's uploads, and the one that the operator opened.

    upload_bytes: most bytes of an upload. find_adapter: returns the file of the customisation of this id, if any.
    """

    uploads: Path
    opened: Path | None
    upload_bytes: int
    find_adapter: Callable[[str], Path | None] = lambda name: None


def build_request(
    fields: Fields, body: Body, folders: InputFolders, *, key: str | None = None, source_id: str | None = None
) -> JobRequest:
    """Return the job that a request asks for, after its files are written into the job's folder of uploads.

    key: an idempotency key. Raises InputError, and ApiError for a model, a file or a size that cannot be used.
    """
    values = fields.check(_with_uploads(fields, body), is_form=body.is_form)
    if not values.get("prompt", "").strip():
        raise InputError("`prompt` is empty: describe the video in a few words")
    _check_models(fields.declaration, values)
    sent, names = _store_files(fields, values, body, folders)
    _place_reference(values)
    command = values.pop("command", None) or (
        "edit" if "video" in values else "animate" if "image" in values else "generate"
    )
    for needed, name in (("animate", "image"), ("edit", "video")):
        if command == needed and name not in values:
            raise InputError(f"`{name}` is missing, which the command {command} needs: send the file as `{name}`")
    name = values.pop("model", None) or fields.declaration.default_model(command)
    facts = fields.declaration.models[name]
    moving = fields.declaration.models[values["video_model"]] if "video_model" in values else facts
    _set_size(values, facts)
    _set_frames(values, moving)
    if "video_model" in values:
        values["video_model"] = moving.source
    names |= {each.source: name for name, each in fields.declaration.models.items() if Path(each.source).parts[1:]}
    digest = hashlib.sha256(to_json({"values": body.values, "files": sent, "source": source_id}).encode()).hexdigest()
    return JobRequest(
        command,
        facts.source,
        values,
        {"model": name, "names": names, **_expected(values, facts, moving)},
        source_id=source_id,
        idempotency_key=key,
        sent_sha256=digest,
        job_id=folders.uploads.name,
    )


def _with_uploads(fields: Fields, body: Body) -> dict[str, Any]:
    """Return the values with the names of uploads in the fields that they came in."""
    values, names = {**body.values}, set[str]()
    for each in body.uploads:
        if each.name in names:
            raise InputError(f"two files are named {shown(each.name)}: give each a name of its own")
        names.add(each.name)
        schema = fields.schemas.get(each.field, {})
        if each.field == UPLOADS:
            continue
        if not schema.get("files"):
            raise InputError(f"`{each.field}` takes no file: send it as `{UPLOADS}`, and name it in another field")
        before = values.get(each.field, {})
        if each.key and isinstance(before, dict) and each.key not in before:
            values[each.field] = {**before, each.key: each.name}
        elif each.field not in values:
            values[each.field] = each.name
        elif "array" in _kinds(schema) and not each.key:
            values[each.field] = [*(before if isinstance(before, list) else [before]), each.name]
        else:
            what = f"`{each.field}`{each.key and f'[{each.key}]'}"
            raise InputError(f"{what} is one file, and there is another value: give one of them")
    return values


def _check_models(declaration: Declaration, values: Mapping[str, Any]) -> None:
    for field in ("model", "video_model"):
        if field in values and values[field] not in declaration.models:
            known = ", ".join(declaration.models)
            message = f"there is no model {shown(values[field])} here: `{field}` is one of {known}"
            raise ApiError(400, "model_not_found", message, field)


def _store_files(
    fields: Fields, values: dict[str, Any], body: Body, folders: InputFolders
) -> tuple[list[list[str]], dict[str, str]]:
    """Write the uploads, and replace names of files in the values by paths.

    Returns what tells equal uploads, and the names by path.
    """
    stored = {
        each.name: store_file(each.file, folders.uploads, each.name, each.type, folders.upload_bytes)
        for each in body.uploads
    }
    names = dict[str, str]()

    def find(field: str, name: str) -> str:
        if name in fields.declaration.built_in.get(field, ()):
            return name
        path = _find_file(field, name, stored, folders)
        names[str(path)] = path.name if is_data_url(name) else name
        return str(path)

    for field in [name for name in values if fields.schemas[name].get("files")]:
        values[field] = _map_texts(values[field], partial(find, field))
    return [[each.field, each.key, each.name, stored[each.name].sha256] for each in body.uploads], names


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, list):
        return [_map_texts(each, function) for each in value]
    return {key: _map_texts(each, function) for key, each in value.items()} if isinstance(value, dict) else value


def _find_file(field: str, name: str, stored: Mapping[str, StoredFile], folders: InputFolders) -> Path:
    """Return the path of the file that a field names."""
    if name in stored:
        return stored[name].path
    if is_data_url(name):
        kind, content = decode_data_url(name)
        return store_file(io.BytesIO(content), folders.uploads, "data", kind, folders.upload_bytes).path
    if "://" in name:
        message = f"`{field}` is a URL, {shown(name)}, and this server opens none: send the file, or a data URL"
        raise ApiError(400, "url_not_allowed", message, field)
    if path := _find_in_folder(name, folders.opened) or folders.find_adapter(name):
        return path
    where = "that comes with the request" if folders.opened is None else "of the request or of the opened folder"
    raise InputError(f"`{field}` names a file {where}, and {shown(name)} is none")


def _find_in_folder(name: str, folder: Path | None) -> Path | None:
    """Return the file or folder of this name in a folder; None if there is none, or it is outside."""
    if folder is None:
        return None
    folder = folder.resolve()
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder) and path != folder and path.exists() else None
    except (OSError, ValueError):  # a text that can be no path
        return None


def _place_reference(values: dict[str, Any]) -> None:
    """Move the contract's reference to the field `video` or `image`."""
    reference = values.pop("input_reference", None)
    if isinstance(reference, dict):
        reference = reference.get("image_url")
        if reference is None:
            raise InputError("`input_reference` is a file, or {image_url: a data URL}: give one of them")
    if reference is None:
        return
    kind, _ = mimetypes.guess_type(reference)
    field = "video" if (kind or "").startswith("video/") else "image"
    if field in values:
        raise InputError(f"`input_reference` and `{field}` both give the {field}: leave one of them out")
    values[field] = reference


# --- size and length


def _set_size(values: dict[str, Any], facts: ModelFacts) -> None:
    """Replace `size` by `width` and `height`."""
    if (size := values.pop("size", None)) is not None:
        if "width" in values or "height" in values:
            raise InputError("`size` and `width` or `height` say the same: give one of them")
        values["width"], values["height"] = map(int, size.split("x"))
    sides = [values[name] for name in ("width", "height") if name in values]
    if any(side % facts.multiple or not 0 < side <= MAX_SIDE for side in sides):
        near = "x".join(str(max(1, round(min(side, MAX_SIDE) / facts.multiple)) * facts.multiple) for side in sides)
        raise InputError(
            f"`size` is of multiples of {facts.multiple} from {facts.multiple} to {MAX_SIDE}, not "
            f"{'x'.join(map(str, sides))}: {near} is near"
        )


def _set_frames(values: dict[str, Any], facts: ModelFacts) -> None:
    """Replace `seconds` by the number of frames and their rate. facts: of the model that moves."""
    if (text := values.pop("seconds", None)) is None:
        return
    if "num_frames" in values:
        raise InputError("`seconds` and `num_frames` say the same: give one of them")
    fps = values.setdefault("fps", VIDEO_FPS if "motion_module" in values else facts.fps)
    clips = values.get("clips", 1)
    frames = max(1, round(min(float(text) * fps / clips, 2 * MAX_FRAMES)))
    if frames * clips > MAX_FRAMES:
        raise InputError(f"`seconds` is at most {MAX_FRAMES / fps:g} at {fps:g} frames per second, not {text}")
    values["num_frames"] = frames


def _expected(values: Mapping[str, Any], facts: ModelFacts, moving: ModelFacts) -> dict[str, Any]:
    """Return the size, length and rate of the video, as far as they are known before its inputs are read."""
    follows_video = "video" in values or values.get("control")
    of_model: dict[str, Any] = {
        "width": facts.width,
        "height": facts.height,
        "num_frames": moving.num_frames,
        "fps": moving.fps,
    }
    if follows_video or "motion_module" in values:
        of_model |= {"num_frames": None, "fps": None}
    if follows_video:
        of_model |= {"width": None, "height": None}
    known = of_model | {name: values[name] for name in of_model if name in values}
    if values.get("refine_size"):
        known |= {"width": None, "height": None}
    if known["num_frames"] is not None:
        known["num_frames"] *= values.get("clips", 1)
    return known
