"""Options of commands: those that several commands share, and those that follow from the declared options.

A command that reads declared options takes them as `**given`, parsed, and only those that were given. Nothing here
imports the declarations before such a command is invoked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer
from rich.markup import escape
from typing_extensions import get_type_hints

from kineograph.errors import InputError, expand_user, is_present, shown

if TYPE_CHECKING:  # `--help` of the program does not wait for it
    from kineograph.options import Option

PANELS = (
    "Video",
    "Input image",
    "Edits",
    "Second pass",
    "Control videos",
    "Long videos",
    "Second model",
    "Model",
    "Download",
    "File",
)

MAX_DIGITS = 10  # of a number beside words

file_option = partial(typer.Option, rich_help_panel="File")

Output = Annotated[
    Path | None,
    file_option(
        "--output",
        "-o",
        show_default="a new name in outputs/",
        help="Where to write: .mp4, .webm, .gif, .webp, or a name without an ending for a folder of pngs.",
    ),
]
Json = Annotated[bool, file_option("--json", help="Print one JSON object on stdout, for programs.")]

# --- the options of `load`, for one model or a second one

WITHOUT_FLAG = ("token", "torch_dtype")
OF_SECOND_MODEL = ("lora", "adapter", "motion_adapter", "motion_module", "clip_skip")


def load_options(*names: str) -> dict[str, Option]:
    """Return the options of `load` that have a flag, or those of these names, by parameter."""
    from kineograph.models.loading.options import LoadOptions
    from kineograph.options import declared

    return {
        each.name: each
        for each in declared(LoadOptions).values()
        if (each.name in names if names else each.name not in WITHOUT_FLAG)
    }


def save_options() -> dict[str, Option]:
    """Return the options of `Video.save` that are declared, by parameter."""
    from kineograph.media.metadata import SaveOptions
    from kineograph.options import declared

    return declared(SaveOptions)


def second_model_options() -> dict[str, Option]:
    """Return the options of `load` for the second model, by parameter."""
    from kineograph.models.loading.options import SECOND_MODEL

    return {
        f"{SECOND_MODEL}{name}": each._replace(
            flags=(f"--video-{flag(each)[2:]}",), help=f"As {flag(each)}, for the video model.", group="Second model"
        )
        for name, each in load_options(*OF_SECOND_MODEL).items()
    }


def load_flags(prefix: str = "") -> dict[str, str]:
    """Return the flags of the options of `load` by their names, for messages. prefix: of the second model."""
    options = second_model_options() if prefix else load_options()
    return {each.name: flag(each) for each in options.values()}


# --- declared options as parameters of a command


def with_options(command: Callable[..., None], options: Mapping[str, Option]) -> Callable[..., None]:
    """Return a command that takes `**given` with a parameter for each option, in the order of the panels."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [
        each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for each in signature.parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    forms = {name: _form(each) for name, each in options.items()}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each, forms[name]))
        for name, each in options.items()
    ]

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in forms}
        parsed = {name: forms[name].parse(each, f"`{name}`") for name, each in given.items() if each is not None}
        command(**values, **parsed)

    run.__signature__ = inspect.Signature(sorted([*own, *added], key=_panel_number))  # type: ignore[attr-defined]
    run.__doc__ = command.__doc__
    return run


def _panel_number(parameter: inspect.Parameter) -> int:
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel in PANELS else -1 if panel is None else PANELS.index("Model")


def _annotation(option: Option, form: Form) -> Any:
    flags = option.flags or [flag(option)]
    return Annotated[
        form.type | None,
        typer.Option(
            *flags,
            help=_help(option, form),
            show_default=_shown_default(option),
            metavar=form.metavar,
            rich_help_panel=option.group,
        ),
    ]


def flag(option: Option) -> str:
    """Return the option's flag."""
    return option.flags[0] if option.flags else f"--{option.name.replace('_', '-')}"


def _help(option: Option, form: Form) -> str:
    text = option.help
    if option.choices:
        text += f" One of {', '.join(option.choices)}."
    if form.type == list[str]:
        text += " May be repeated."
    return escape(text)


def _shown_default(option: Option) -> str | bool:
    value = option.default
    if option.shown_default or value is None or value is False or value in ("", (), {}):
        return option.shown_default or False
    values = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)


# --- values


class Form(NamedTuple):
    """Form of an option on the command line. parse: (value, name for messages) -> the option's value."""

    type: Any
    metavar: str | None
    parse: Callable[[Any, str], Any]


def _form(option: Option) -> Form:
    """Return the form that follows from the declared type."""
    from kineograph.options import union_members

    members = union_members(option.type)
    sequences = [each for each in members if _is(each, Sequence)]
    items = [item for each in sequences for item in union_members(get_args(each)[0])]
    if float in items:
        scaled = str in items  # a file with a scale, not numbers alone
        return Form(list[str], "FILE[=SCALE]", _parse_scaled) if scaled else Form(str, "N,N,...", parse_numbers)
    if sequences:
        return Form(list[str], None, _as_it_is)
    if mappings := [each for each in members if _is(each, Mapping)]:
        if int in union_members(get_args(mappings[0])[0]):
            return Form(list[str], "FRAME=TEXT", partial(parse_named, form="FRAME=TEXT", example="24='a blue fish'"))
        return Form(list[str], "KIND=VALUE", parse_named)
    if int in members and any(get_origin(each) is Literal for each in members):
        return Form(str, "NUMBER|WORD", _parse_whole_number)
    return Form(next((each for each in (bool, int, float) if each in members), str), None, _as_it_is)


def _is(kind: Any, base: type) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, base)


def _as_it_is(value: Any, what: str) -> Any:
    return value


def _parse_whole_number(text: str, what: str) -> int | str:
    """Return the number that a text is, or the text, such as a word that the option has beside numbers."""
    return int(text) if text.lstrip("-").isdecimal() and text.isascii() and len(text) < MAX_DIGITS else text


def _parse_scaled(texts: Sequence[str], what: str) -> list[tuple[str, float | dict[str, float]]]:
    return [parse_lora(text) for text in texts]


# Values are parsed here and not by typer's `parser=`, which replaces the message of an error by the bare value.


def parse_lora(text: str) -> tuple[str, float | dict[str, float]]:
    """Parse FILE, FILE=SCALE or FILE=unet:SCALE,text_encoder:SCALE into the file of a LoRA and its scale, 1 by default.

    FILE may have an = too.
    """
    file, equals, scale = text.rpartition("=")
    if not equals or is_present(expand_user(text)):
        return text, 1.0
    pairs = [each.rpartition(":") for each in scale.split(",")]
    try:
        numbers = {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        numbers = {}
    named = [bool(name) for name in numbers]
    if len(numbers) < len(pairs) or len(set(named)) > 1 or not all(map(math.isfinite, numbers.values())):
        raise InputError(
            f"{shown(text)} is no file, and no FILE=SCALE with a number for the scale, or one for each network, as in "
            "FILE=unet:0.8,text_encoder:0.5: expected one of them"
        )
    return file, numbers if all(named) else numbers[""]


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Parse numbers separated by commas; an empty text gives none. what: the option, for messages."""
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise InputError(f"{what} is a list of numbers such as 0.9,0.5, not {shown(text)}") from error


def parse_named(
    texts: Sequence[str], what: str, *, form: str = "KIND=VALUE", example: str = "canny=..."
) -> dict[str, str]:
    """Parse KIND=VALUE into values by kind. what: the option, form and example: of a value, for messages.

    Raises InputError when a kind or a value is missing, or a kind is given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"{what} is given as {form}, such as {example}, not {shown(text)}")
        if name in values:
            raise InputError(f"{what} is given twice for {name[:100]}: one for each {form.partition('=')[0].lower()}")
        values[name] = value
    return values
