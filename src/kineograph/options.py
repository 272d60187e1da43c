"""Declared options: signatures, command line, YAML, JSON schema and recorded settings follow from one declaration.

Options are the keys of a `TypedDict` with `total=False`, each annotated by `option`:

    class SmoothingOptions(TypedDict, total=False):
        strength: Annotated[Number, option(0.5, "Strength of the smoothing.", group="Video", ge=0, le=1)]

A function takes them as `**options: Unpack[SmoothingOptions]`, which type checkers and editors read, and calls
`validate` with what it got. Error messages name an option in backticks; the command line shows its flag in their place.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import numpy as np
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import get_type_hints

from kineograph.errors import InputError, shown

# Values that are not converted: True is no number, and "8" is a text.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
File = str | Path
Limits = tuple[float | None, float | None, float | None]  # ge, gt, le
NO_LIMITS: Limits = (None, None, None)

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
Kind = TypeVar("Kind")
Function = TypeVar("Function", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    *,
    group: str = "Video",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    shown_default: str = "",
    choices: Sequence[str] = (),
    flags: Sequence[str] = (),
    hint: str = "",
    recorded: bool = True,
) -> Any:
    """Declare an option: the metadata of an `Annotated` type.

    Args:
        help: a sentence for help texts, without the default and the choices.
        group: heading of the option in help texts and forms.
        ge, gt, le: range of a number.
        shown_default: the default in words, for a default that depends on other options or on the model.
        choices: the values, where `Literal` cannot list them because a table holds them.
        flags: of the command line, if not `--name`.
        hint: a sentence after the error message for an invalid value.
        recorded: False for an option that does not change the frames.
    """
    extra: dict[str, Any] = {
        "group": group, "shown_default": shown_default, "flags": [*flags], "hint": hint, "recorded": recorded,
        **({"enum": [*choices]} if choices else {}),
    }  # fmt: skip
    return Field(default=default, description=help, ge=ge, gt=gt, le=le, json_schema_extra=extra)


class Option(NamedTuple):
    """A declared option. type: as annotated, without the metadata; range: (ge, gt, le)."""

    name: str
    type: Any
    default: Any
    help: str
    group: str
    range: Limits
    shown_default: str
    choices: tuple[str, ...]
    flags: tuple[str, ...]
    hint: str
    recorded: bool

    @property
    def expected(self) -> str:
        """The values in words, as "a whole number from 1 to 4096"."""
        return " or ".join(self.choices) if self.choices else _expected(self.type, self.range)


@lru_cache
def declared(*kinds: type) -> dict[str, Option]:
    """Return the options of these TypedDicts by name, in the order of their declaration."""
    return {
        name: _read_declaration(name, hint)
        for kind in kinds
        for name, hint in get_type_hints(kind, include_extras=True).items()
    }


def _read_declaration(name: str, hint: Any) -> Option:
    kind, *metadata = get_args(hint)
    (field,) = (each for each in metadata if isinstance(each, FieldInfo) and each.json_schema_extra)
    extra: Any = field.json_schema_extra
    members = [each for each in union_members(kind) if each is not type(None)]
    literals = tuple(members) if all(get_origin(each) is Literal for each in members) else ()
    choices = tuple(extra.get("enum", ())) or tuple(value for each in literals for value in get_args(each))
    return Option(
        name=name,
        type=kind,
        default=field.default,
        help=field.description or "",
        group=extra["group"],
        range=_limits(field.metadata),
        shown_default=extra["shown_default"],
        choices=choices,
        flags=tuple(extra["flags"]),
        hint=extra["hint"],
        recorded=extra["recorded"],
    )


def defaults(*kinds: type) -> dict[str, Any]:
    """Return the default of every option of these TypedDicts."""
    return {name: each.default for name, each in declared(*kinds).items()}


def validate(given: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """Return the options with defaults for those that are not given.

    Raises InputError for an unknown option, with a similar name if there is one, and for an invalid value.
    """
    options = declared(*kinds)
    for name in given:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            raise InputError(f"there is no option `{name}`{f'; did you mean `{near[0]}`?' if near else ''}")
    valid: dict[str, Any] = {}
    for kind in kinds:
        own = {name: _plain_number(given[name], each) for name, each in declared(kind).items() if name in given}
        try:
            valid |= _adapter(kind).validate_python(own)
        except ValidationError as error:
            raise _explained(error, options, given) from None
    for name, value in valid.items():
        if (choices := options[name].choices) and value is not None and value not in choices:
            raise invalid(options[name], value)
    return valid


def _plain_number(value: Any, option: Option) -> Any:
    """Return a number, also of a NumPy scalar; other values as they are. Raises InputError for a tensor or Decimal."""
    if isinstance(value, np.number):
        return value.item()
    if (
        {int, float} & set(union_members(option.type))
        and not isinstance(value, int | float)
        and hasattr(value, "__float__")
    ):
        raise invalid(option, value)
    return value


def union_members(kind: Any) -> list[Any]:
    """Return the types of a union, without their metadata."""
    if get_origin(kind) is Annotated:
        return union_members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for each in get_args(kind) for member in union_members(each)]
    return [kind]


@lru_cache
def _adapter(kind: type) -> Any:  # a TypeAdapter, which beartype does not know
    kind.__pydantic_config__ = CONFIG  # type: ignore[attr-defined]
    return TypeAdapter(kind)


def _explained(error: ValidationError, options: Mapping[str, Option], given: Mapping[str, Any]) -> InputError:
    name = str(error.errors()[0]["loc"][0])
    return invalid(options[name], given[name])


def invalid(option: Option, value: Any) -> InputError:
    """Return the error for an invalid value of this option."""
    hint = f": {option.hint}" if option.hint else ""
    return InputError(f"`{option.name}` is {option.expected}, not {shown(value)}{hint}")


def changed(options: Mapping[str, Any], *kinds: type) -> list[str]:
    """Return the names of those options of these TypedDicts whose value is not the default."""
    return [name for name, each in declared(*kinds).items() if name in options and options[name] != each.default]


def select(options: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """Return the options that this TypedDict declares."""
    names: Any = kind
    chosen: Any = {name: options[name] for name in declared(names)}
    return chosen


# --- signatures


def declares(kind: type, *, receives: str = "options") -> Callable[[Function], Function]:
    """Give a function that takes `**options` the signature and the documentation of the declared options."""

    def decorate(function: Function) -> Function:
        plain = inspect.signature(function)
        own = [each for each in plain.parameters.values() if each.name != receives]
        types = get_type_hints(kind)
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=types[name])
            for name, each in declared(kind).items()
        ]
        function.__signature__ = plain.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        listed = "\n".join(f"    {name}: {describe_option(each)}" for name, each in declared(kind).items())
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{listed}\n"
        return function

    return decorate


def describe_option(option: Option) -> str:
    """Return the help text with the choices and the default."""
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    unset = option.default is None or option.default is False or option.default in ("", (), {})
    default = option.shown_default or ("" if unset else str(option.default))
    return f"{option.help}{choices}{f' Default: {default}.' if default else ''}"


# --- types in words


def _limits(metadata: Iterable[Any]) -> Limits:
    found = {key: getattr(each, key) for each in metadata for key in ("ge", "gt", "le") if hasattr(each, key)}
    return found.get("ge"), found.get("gt"), found.get("le")


def _expected(kind: Any, limits: Limits) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        own = _limits(arguments[1:])
        return _expected(arguments[0], limits if own == NO_LIMITS else own)
    if origin in (Union, types.UnionType):
        parts = [_expected(each, limits) for each in arguments if each not in (type(None), Any)]
        return " or ".join(dict.fromkeys(parts))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is not None and issubclass(origin, Mapping):
        key = "kind" if arguments[0] is str else _expected(arguments[0], NO_LIMITS)
        return f"{{{key}: {_expected(arguments[1], limits)}}}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, of which each is {_expected(arguments[0], limits)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return words.get(kind, getattr(kind, "__name__", str(kind))) + _range_in_words(limits)


def _range_in_words(limits: Limits) -> str:
    ge, gt, le = (str(each) if isinstance(each, int) else f"{each:g}" if each is not None else None for each in limits)
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    words = (("at least", ge), ("above", gt), ("at most", le))
    parts = [f"{word} {limit}" for word, limit in words if limit is not None]
    return f" {' and '.join(parts)}" if parts else ""
