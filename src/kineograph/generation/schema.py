"""JSON schemas of the options, for programs that build requests, forms and documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions, readers, with_plugins
from kineograph.models.loading.options import LoadOptions
from kineograph.options import CONFIG, Option, declared

# function -> the TypedDicts of its options
DECLARATIONS: Mapping[str, Callable[[], tuple[type, ...]]] = {
    "generate": lambda: with_plugins(GenerateOptions),
    "animate": lambda: with_plugins(AnimateOptions),
    "edit": lambda: with_plugins(EditOptions),
    "load": lambda: (LoadOptions,),
}


def options_schema(function: str) -> dict[str, Any]:
    """Return the JSON schema of the options of "generate", "animate", "edit" or "load".

    Beside the keywords of JSON Schema, each option has its `group`; `shown_default`, the default in words; `readers`,
    the methods that read it, or nothing if all do; and `recorded`, False if it does not change the frames.
    """
    options = declared(*DECLARATIONS[function]())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": function,
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {**_option_schema(each), "readers": [] if function == "load" else readers(name)}
            for name, each in options.items()
        },
    }


def _option_schema(option: Option) -> dict[str, Any]:
    ge, gt, le = option.range
    kind: Any = Annotated[option.type, Field(ge=ge, gt=gt, le=le)]
    adapter = TypeAdapter[Any](kind, config=CONFIG)
    default = adapter.dump_python(option.default, mode="json")
    schema = adapter.json_schema() | {"description": option.help, "default": default}
    if option.choices:
        schema["enum"] = [*option.choices, *([None] if option.default is None else [])]
    return schema | {"group": option.group, "shown_default": option.shown_default, "recorded": option.recorded}
