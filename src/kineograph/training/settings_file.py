"""Settings from a YAML file, with overrides; errors name the file, the field, the value and what was expected.

Ours, not pydantic-settings or OmegaConf: those replace `apply_override`, fifteen lines, and none of the error messages.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kineograph.errors import InputError

SettingsT = TypeVar("SettingsT", bound=BaseModel)


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
        raise InputError("\n".join(f"{prefix}{_message(model, each)}" for each in error.errors())) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises InputError for a file that is missing, or holds something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a YAML file of settings") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise InputError(f"{path} holds a {type(content).__name__}; expected settings, one 'name: value' a line")
    return content or {}


def apply_override(content: Any, text: str) -> dict[str, Any]:
    """Apply "some.field=value", the value in YAML, to nested settings."""
    name, sign, value = text.partition("=")
    first, _, rest = name.strip().partition(".")
    if not sign or not first:
        raise InputError(f"{text!r} overrides nothing: expected field=value, or group.field=value")
    if not isinstance(content, Mapping):
        raise InputError(f"{text!r} overrides a field of {content!r}, which has no fields")
    try:
        given = apply_override(content.get(first) or {}, f"{rest}={value}") if rest else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} has a value that is not YAML: {error}") from error
    return {**content, first: given}


def _message(model: type[BaseModel], error: ErrorDetails) -> str:
    location = error["loc"]
    field = ".".join(map(str, location)) or "the file"
    if error["type"] == "missing":
        return f"{field} is missing"
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        return f"{field} (here {error['input']!r}) is not a setting: {hint}"
    expected = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{field}: {expected}, not {error['input']!r}"


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
