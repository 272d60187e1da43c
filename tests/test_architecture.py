"""Rules of the design that can be checked on the source text; `tools/shape.py` checks layers, names and sizes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src" / "kineograph").rglob("*.py"), *(ROOT / "lab" / "kineograph_lab").rglob("*.py")])
TREES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in FILES}
NAMELESS = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}
# Function: autograd's; TextIOWrapper: a standard stream of the program
KINDS_OF_CLASS = {
    "NamedTuple", "Protocol", "BaseModel", "TypedDict", "Function", "TyperGroup", "TextIOWrapper", "BufferedReader",
    "TorchDispatchMode", "TorchFunctionMode", "Formatter", "Exception", "Webhook",
}  # fmt: skip
# diffusers' name; a property of a declared option; a permission of `replay`, as trust_remote_code of transformers;
# options of `kineograph bench`
NO_FLAGS = {"local_files_only", "recorded", "trust", "quick", "resume"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def flags(function: ast.FunctionDef) -> list[str]:
    """Return the parameters with a boolean default."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)]
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
    booleans = [a.arg for a, d in pairs if isinstance(d, ast.Constant) and isinstance(d.value, bool)]
    return [name for name in booleans if name not in NO_FLAGS]


def is_allowed_class(node: ast.ClassDef) -> bool:
    """Return True for nn.Modules, frozen dataclasses, records, interfaces, errors, groups of commands and streams."""
    frozen = any("dataclass" in ast.unparse(d) and "frozen=True" in ast.unparse(d) for d in node.decorator_list)
    bases = [ast.unparse(base).split("[")[0] for base in node.bases]
    typed_dict = any(each.arg == "total" for each in node.keywords)  # whose bases are TypedDicts too
    return (
        frozen
        or typed_dict
        or any(
            base.startswith("nn.") or base.endswith(("Error", "Warning")) or base.rsplit(".", 1)[-1] in KINDS_OF_CLASS
            for base in bases
        )
    )


def test_layers_names_and_sizes_are_within_the_limits() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "shape.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_are_named_after_what_they_hold() -> None:
    assert [name for name in TREES if Path(name).stem in NAMELESS] == []


def declares_options(function: ast.FunctionDef, kwarg: ast.arg) -> bool:
    """Return True if a TypedDict declares what `**kwarg` may hold."""
    decorators = [ast.unparse(each) for each in function.decorator_list]
    return "Unpack" in ast.unparse(kwarg.annotation or ast.Constant(0)) or any(
        each.startswith("declares(") for each in decorators
    )


def test_no_signature_swallows_arguments() -> None:
    found = [
        f"{name}:{f.lineno} {f.name}"
        for name, tree in TREES.items()
        if "/cli" not in name  # there parameters are built from declared options
        for f in functions(tree)
        if f.args.kwarg and f.args.kwarg.arg.strip("_") and not declares_options(f, f.args.kwarg)
    ]
    assert found == []


def test_no_parameter_is_a_flag() -> None:
    found = [
        f"{name}:{f.lineno} {f.name}({flag})"
        for name, tree in TREES.items()
        if "/cli" not in name  # there it is an option
        for f in functions(tree)
        for flag in flags(f)
    ]
    assert found == [], "two behaviours are two functions: pass the function"


def test_classes_are_modules_records_or_interfaces() -> None:
    found = [
        f"{name}:{node.lineno} {node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not is_allowed_class(node)
    ]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    assert [str(file) for file in FILES if marks.search(file.read_text())] == []


def test_importing_the_package_does_no_work() -> None:
    code = "import sys, kineograph; print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
