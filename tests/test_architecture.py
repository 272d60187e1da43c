"""The design's budgets (docs/decisions, CONTRIBUTING.md): what a reader of the code may rely on.

Which module may import which is import-linter's job (`lint-imports`, contracts in pyproject.toml).
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "kineograph"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMELESS = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}
KINDS_OF_CLASS = {"Function", "NamedTuple", "Protocol", "BaseModel", "TypedDict"}
WORDS_OF_THE_ECOSYSTEM = {"local_files_only"}  # flags that users know from diffusers, passed on as they are


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


each_file = pytest.mark.parametrize("file", FILES, ids=name)


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def length(function: ast.FunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    pairs = [*zip(positional[first:], arguments.defaults, strict=True)]
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
    return ((argument.arg, default) for argument, default in pairs)


def is_an_allowed_kind(node: ast.ClassDef) -> bool:
    frozen = any("dataclass" in ast.unparse(d) and "frozen=True" in ast.unparse(d) for d in node.decorator_list)
    bases = [ast.unparse(base).split("[")[0] for base in node.bases]
    return frozen or any(
        base.startswith("nn.") or base.endswith(("Error", "Warning")) or base.rsplit(".", 1)[-1] in KINDS_OF_CLASS
        for base in bases
    )


@each_file
def test_a_file_fits_in_250_lines_or_says_why(file: Path):
    text = file.read_text()
    assert text.count("\n") <= 250 or "Longer than 250 lines because" in text


@each_file
def test_a_file_is_named_after_what_it_holds(file: Path):
    assert file.stem not in NAMELESS


@each_file
def test_no_signature_swallows_arguments(file: Path):
    assert [f"{f.name}:{f.lineno}" for f in functions(file) if f.args.kwarg and f.args.kwarg.arg.strip("_")] == []


@pytest.mark.parametrize("file", [file for file in FILES if "cli" not in file.parts], ids=name)  # there it is an option
def test_no_parameter_is_a_flag(file: Path):
    flags = [
        f"{f.name}({word}), line {f.lineno}"
        for f in functions(file)
        for word, default in defaults(f.args)
        if isinstance(default, ast.Constant) and isinstance(default.value, bool) and word not in WORDS_OF_THE_ECOSYSTEM
    ]
    assert flags == [], "two behaviours are two functions: pass the function"


@each_file
def test_classes_are_modules_records_or_interfaces(file: Path):
    classes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if not is_an_allowed_kind(node)] == []


@each_file
def test_nothing_is_left_for_later(file: Path):
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|raise NotImplementedError", file.read_text()) == []


def test_half_of_the_functions_are_under_ten_lines_and_nine_in_ten_under_forty():
    lengths = sorted(length(function) for file in FILES for function in functions(file))
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 40


def test_importing_the_package_does_no_work():
    code = "import sys, kineograph; print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
