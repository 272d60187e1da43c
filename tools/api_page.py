"""Write docs/api.md: every public name of `kineograph`, from its signature, its docstring and its declared options.

python tools/api_page.py            writes the page
python tools/api_page.py --check    exits with 1 if the page is not what would be written
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import kineograph as kg
from kineograph.generation.api import animate, edit, generate
from kineograph.generation.call import AnimateCall, CallOptions, EditCall, GenerateCall
from kineograph.generation.options import CommonOptions
from kineograph.models.loading.load import load
from kineograph.models.loading.options import LoadOptions
from kineograph.options import Option, declared, describe_option

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
INTRODUCTION = """# API

Every public name of `kineograph`, written by `python tools/api_page.py` from signatures, docstrings and declared
options. [python.md](python.md) shows them in use. What is not listed here may change without notice.
"""
FUNCTIONS = ("load", "generate", "animate", "edit", "replay", "open_video", "save", "classifier_free_guidance")
CLASSES = ("Video", "Model", "Condition", "Progress", "InputError", "InputWarning")
OPTIONS = ("LoadOptions", "GenerateOptions", "AnimateOptions", "EditOptions")
MODULES = ("samplers", "sigmas", "noise", "denoise", "frame_attention", "motion", "latents", "methods")
DECLARED: dict[Any, type] = {load: LoadOptions, generate: GenerateCall, animate: AnimateCall, edit: EditCall}


def api_page() -> str:
    """Return the page in Markdown. Raises ValueError for a public name that no list above has."""
    listed = {*FUNCTIONS, *CLASSES, *OPTIONS, *MODULES, "__version__"}
    if different := listed ^ set(kg.__all__):
        raise ValueError(f"tools/api_page.py and kineograph.__all__ differ in {', '.join(sorted(different))}")
    parts = [INTRODUCTION, "## Functions", *(_function(name) for name in FUNCTIONS), "## Classes"]
    parts += [_class(name) for name in CLASSES]
    parts += [_options(), "## Modules\n\nThe layer below, for sampling loops of your own.", *map(_module, MODULES)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _function(name: str) -> str:
    function = getattr(kg, name)
    text = inspect.getdoc(inspect.unwrap(function)) or ""
    return f"### {name}\n\n{_code(_signature(name, function))}\n\n{_prose(text.split('Options:')[0])}"


def _signature(name: str, function: Any) -> str:
    """Return a signature, in which `**options` stands for declared options."""
    signature = inspect.signature(function)
    if (kind := DECLARED.get(function)) is not None:
        own = [each for each in signature.parameters.values() if each.name not in declared(kind)]
        signature = signature.replace(parameters=own)
        shown = f"{str(signature.replace(return_annotation=inspect.Signature.empty))[:-1]}, **options)"
    else:
        shown = str(signature)
    return name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", shown)  # annotations are texts


def _class(name: str) -> str:
    kind = getattr(kg, name)
    own = [each for each in vars(kind).items() if not each[0].startswith("_") and _is_documented(each[1])]
    members = "\n".join(f"* {_member(*each)}" for each in own)
    text = inspect.getdoc(kind) or ""
    return f"### {name}\n\n{_prose(text)}\n\n{members}"


def _is_documented(member: Any) -> bool:
    return isinstance(member, property | classmethod) or inspect.isfunction(member)


def _member(name: str, member: Any) -> str:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    shown = name if isinstance(member, property) else f"{name}{_parameters(function)}"
    return f"`{shown}`: {_first_line(function)}"


def _parameters(function: Any) -> str:
    """Return the names of a function's parameters, without types."""
    plain = [
        each.replace(annotation=inspect.Parameter.empty, default=_shown_default(each.default))
        for each in inspect.signature(function).parameters.values()
        if each.name not in ("self", "cls")
    ]
    return str(inspect.Signature(plain))


def _shown_default(value: Any) -> Any:
    """Return a default, with the name of a function in place of its address."""

    class _Named:
        def __repr__(self) -> str:
            return str(value.__name__)

    return _Named() if inspect.isfunction(value) else value


def _module(name: str) -> str:
    module = getattr(kg, name)
    own = [(key, each) for key, each in vars(module).items() if _is_public_function(key, each, module)]
    listed = "\n".join(f"* `{key}{_parameters(each)}`: {_first_line(each)}" for key, each in own)
    return f"### {name}\n\n{_first_line(module)}\n\n{listed}"


def _is_public_function(name: str, value: Any, module: ModuleType) -> bool:
    return inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__


def _options() -> str:
    common = declared(CommonOptions)
    shared = {*common, *declared(CallOptions)}
    own = {
        kind: [each for name, each in declared(kind).items() if name not in shared]
        for kind in (GenerateCall, AnimateCall, EditCall)
    }
    added = "; ".join(
        f"`{function}`: {', '.join(f'`{each.name}`' for each in options)}"
        for function, options in zip(("generate", "animate", "edit"), own.values(), strict=True)
    )
    return "\n\n".join(
        [
            "## Options",
            "Keywords of the functions. `LoadOptions`, `GenerateOptions`, `AnimateOptions` and `EditOptions` are "
            "`TypedDict`s of them, for code that keeps them in a dictionary.",
            f"### Options of load\n\n{_table([*declared(LoadOptions).values()])}",
            "### Options of generate, animate and edit\n\nThe three have these in common. Besides, the inputs that are "
            f"no arguments already: {added}.\n\n{_table([*common.values()])}",
            _table(list({each.name: each for options in own.values() for each in options}.values())),
            f"### Keywords of a call\n\nNot recorded with the video.\n\n{_table([*declared(CallOptions).values()])}",
        ]
    )


def _table(options: list[Option]) -> str:
    rows = [f"| `{each.name}` | {_cell(each.expected)} | {_cell(describe_option(each))} |" for each in options]
    return "\n".join(["| name | value | |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _prose(text: str) -> str:
    """Return a docstring with its first paragraph as prose and the rest, whose lines and columns count, as a block."""
    first, _, rest = text.partition("\n\n")
    return f"{first}\n\n{_code(rest, 'text')}" if rest.strip() else first


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text.strip()}\n```"


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text() != api_page())
    PAGE.write_text(api_page())
