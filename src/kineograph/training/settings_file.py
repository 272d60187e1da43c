"""Settings from a YAML file, with overrides; errors name the file, the field, the value and what was expected.

Ours, not pydantic-settings or OmegaConf: those replace `apply_override`, fifteen lines, and none of the error messages.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kineograph.errors import MAX_DEPTH, SHOWN_LENGTH, InputError, check_plain_value, in_one_line, shown, shown_path

SettingsT = TypeVar("SettingsT", bound=BaseModel)
MAX_BYTES, MAX_VALUES = 1 << 20, 20_000  # of a file of settings; values with those that aliases repeat
NUMBER = re.compile(r"[-+\d_:]+")
MAX_LISTED = 10  # errors in a message
TEXT_TAG = "tag:yaml.org,2002:str"


def load_settings(path: Path, model: type[SettingsT], overrides: Iterable[str] = ()) -> SettingsT:
    """Return the settings in a YAML file, with overrides such as "training.learning_rate=1e-4".

    Raises InputError for a file that is missing or not YAML, and for every field that is unknown, missing or invalid.
    """
    return _validate(model, read_yaml(path), overrides, f"{path}: ")


def override_settings(settings: SettingsT, overrides: Iterable[str]) -> SettingsT:
    """Return the settings with overrides such as "training.learning_rate=1e-4".

    Raises InputError for every field that is unknown or invalid.
    """
    return _validate(type(settings), settings.model_dump(), overrides, "")


def _validate(model: type[SettingsT], content: Any, overrides: Iterable[str], prefix: str) -> SettingsT:
    for text in overrides:
        content = apply_override(content, text)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        messages = [_message(model, each) for each in error.errors()]
        more = f"; and {len(messages) - MAX_LISTED} more" if len(messages) > MAX_LISTED else ""
        raise InputError(f"{prefix}{'; '.join(messages[:MAX_LISTED])}{more}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, within the limits of `parse_yaml`.

    Raises InputError for a file that is missing, too large, or holds something else.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown_path(path)} cannot be read: {in_one_line(error)}; expected a YAML file of settings"
        ) from error
    if len(text) > MAX_BYTES:
        raise InputError(f"{path} is larger than 1 MB: expected a YAML file of settings")
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict | None):
        raise InputError(f"{path} holds a {type(content).__name__}; expected settings, one 'name: value' a line")
    return content or {}


def parse_yaml(text: str, what: str) -> Any:
    """Return the value of a YAML text: plain YAML, without tags.

    Raises InputError for other text, one with too many values or aliases, and for what `check_plain_value` refuses.
    what: its name for messages.
    """
    try:
        _check_events(yaml.parse(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # of a date or a number that there is not
        raise InputError(f"{what} is not YAML that can be used: {_explain(error)}") from error
    check_plain_value(content, what)
    return content


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Raise YAMLError for events of a text beyond the limits, for an alias inside its anchor, and for tags."""
    open_lists, counts, count = list[tuple[str | None, int]](), dict[str | None, int](), 0
    for event in events:
        problem = ""
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_lists.pop()
            counts[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_lists):
                problem = f"the alias {event.anchor!r} refers to the list that it is in"
            count += counts.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            is_number = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and NUMBER.fullmatch(event.value)
            if is_number and len(event.value) > SHOWN_LENGTH:  # PyYAML takes minutes for one to base 60
                problem = "a whole number has more than 64 bits"
            if event.tag not in (None, "!", TEXT_TAG):
                problem = "tags are not read"
            if isinstance(event, yaml.CollectionStartEvent):
                open_lists.append((event.anchor, count))
            count += 1
        if len(open_lists) > MAX_DEPTH or count > MAX_VALUES:
            problem = f"at most {MAX_DEPTH} lists in one another and {MAX_VALUES:,} values are read, aliases unfolded"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _explain(error: Exception) -> str:
    """Return what is wrong and where, in one line."""
    problem = ": ".join(each for name in ("context", "problem") if (each := getattr(error, name, None)))
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return " ".join((problem or str(error)).split()) + where


def apply_override(content: Any, text: str) -> dict[str, Any]:
    """Apply "some.field=value", the value in YAML, to nested settings."""
    name, sign, value = text.partition("=")
    first, _, rest = name.strip().partition(".")
    if not sign or not first:
        raise InputError(f"{shown(text)} overrides nothing: expected field=value, or group.field=value")
    if not isinstance(content, Mapping):
        raise InputError(f"{shown(text)} overrides a field of {shown(content)}, which has no fields")
    if rest:
        return {**content, first: apply_override(content.get(first) or {}, f"{rest}={value}")}
    given = parse_yaml(value, f"the value of {shown(text)}")
    return {**content, first: given}


def _message(model: type[BaseModel], error: ErrorDetails) -> str:
    location = error["loc"]
    field = ".".join(map(str, location))[:SHOWN_LENGTH] or "the file"
    if error["type"] == "missing":
        return f"{field} is missing"
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1])[:SHOWN_LENGTH], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        return f"{field} (here {shown(error['input'])}) is not a setting: {hint}"
    if error["type"] == "union_tag_invalid":
        name, known = error["ctx"]["discriminator"].strip("'"), error["ctx"]["expected_tags"]
        return f"{field}.{name}: expected one of {known}, not {shown(error['ctx']['tag'])}"
    expected = in_one_line(error["msg"].removeprefix("Value error, ").replace("Input should be", "expected"))
    return f"{field}: {expected}, not {shown(error['input'])}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields at a location; list indices and union tags in it are skipped."""
    models = [model]
    for part in location:
        fields = [each.model_fields[str(part)] for each in models if part in each.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    return sorted({name for each in models for name in each.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
