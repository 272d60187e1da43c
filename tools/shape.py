"""Print the shape of the source tree, and fail where it breaks the limits of docs/architecture.md.

    python tools/shape.py

Standard library only. Counted: `src/kineograph` (the library) and `lab/kineograph_lab` (the laboratory).
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LIBRARY, LABORATORY = ROOT / "src" / "kineograph", ROOT / "lab" / "kineograph_lab"

# Highest first: a module imports from its own layer and from lower ones. Names on one line share a layer.
LAYERS = (
    "kineograph_lab",
    "kineograph kineograph.__main__",
    "kineograph.cli",
    "kineograph.service",
    "kineograph.cluster",
    "kineograph.training kineograph.curation",
    "kineograph.metrics",
    "kineograph.generation",
    "kineograph.methods",
    "kineograph.plan",
    "kineograph.models",
    "kineograph.media",
    "kineograph.request",
    "kineograph.samplers",
    "kineograph.denoise",
    "kineograph.latents kineograph.noise kineograph.motion kineograph.sigmas",
    "kineograph.hub kineograph.plugins kineograph.options",
    "kineograph.errors",
)
OPENING = re.compile(r"(What|How|Which|Whether|Where|Who|When|By|Of|As|From|In)\b")
TWICE = {"attach", "check", "loss", "sample", "run", "unread"}  # every method file has its own
MOST_FILES, FULL, FULLER = 235, 14, 16  # 191 without the service and the OpenVINO engine
SHORT, MOST_SHORT = 60, 12
MOST_PARAMETERS = 12


class Module(NamedTuple):
    """A parsed source file."""

    name: str
    path: Path
    lines: int
    tree: ast.Module


def read(root: Path) -> list[Module]:
    """Return the parsed modules below a package's folder."""
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        modules.append(Module(name, path, text.count("\n"), ast.parse(text)))
    return modules


def functions(modules: list[Module]) -> Iterator[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its module."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of named parameters."""
    arguments = function.args
    return len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)


def docstrings(modules: list[Module]) -> Iterator[tuple[str, str]]:
    """Yield (place, first line) of every docstring."""
    for module in modules:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                continue
            if text := ast.get_docstring(node):
                yield f"{module.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


def defined_twice(modules: list[Module]) -> list[str]:
    """Return the public functions and classes that two modules define, with the modules."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                homes[node.name].append(module.name)
    found = []
    for name, places in sorted(homes.items()):
        others = [place for place in dict.fromkeys(places) if not is_command(name, place)]
        if name in TWICE:
            others = [place for place in others if ".methods." not in place]
        if len(others) > 1:
            found.append(f"{name}: {', '.join(others)}")
    return found


def is_command(name: str, place: str) -> bool:
    """Return True if this is a command of the command line, which may be named like the function that it calls."""
    return place.startswith(("kineograph.cli.", "kineograph_lab.cli")) or place.endswith(f".__main__.{name}")


def layer(name: str) -> int | None:
    """Return the position of a module's layer, None for a module outside of both packages."""
    best, length = None, -1
    for number, line in enumerate(LAYERS):
        for prefix in line.split():
            inside = name == prefix or (name.startswith(f"{prefix}.") and prefix != "kineograph")
            if inside and len(prefix) > length:
                best, length = number, len(prefix)
    return best


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of the imports of our own packages, but those for type checkers alone."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(module.tree):
        if node in skipped:
            continue
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in {"kineograph", "kineograph_lab"}
        ):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}" if node.module == "kineograph" else node.module


def upward(modules: list[Module]) -> list[str]:
    """Return the imports that point to a higher layer, or from one method's file to another's."""
    found = []
    for module in modules:
        own = layer(module.name)
        if own is None:
            found.append(f"{module.name} is in no layer")
            continue
        for line, target in imports(module):
            place = layer(target)
            sibling = target.startswith("kineograph.methods.") and module.name.startswith("kineograph.methods.")
            if (place is not None and place < own) or (sibling and target != module.name):
                found.append(f"{module.path.relative_to(ROOT)}:{line} imports {target}")
    return found


def main() -> int:
    """Print all figures; return 1 if one breaks its limit."""
    library, laboratory = read(LIBRARY), read(LABORATORY)
    modules = [*library, *laboratory]
    broken: list[str] = []

    def figure(name: str, value: object, limit: str, *, bad: list[str] | bool) -> None:
        print(f"{name:44} {value!s:>8}   {limit}")
        if bad:
            broken.append(name)
            for line in (bad if isinstance(bad, list) else [])[:40]:
                print(f"    {line}")

    folders = Counter(module.path.parent for module in modules)
    full, count = folders.most_common(1)[0]
    over = [f"{folder.relative_to(ROOT)}: {number}" for folder, number in folders.items() if number > FULL]
    short = [m for m in modules if m.lines < SHORT and m.path.name != "__init__.py"]
    many = [(parameters(f), f"{m.path.relative_to(ROOT)}:{f.lineno} {f.name}") for m, f in functions(modules)]
    docs = list(docstrings(modules))
    riddles = [f"{place} {line[:90]}" for place, line in docs if OPENING.match(line)]
    twice, wrong = defined_twice(modules), upward(modules)

    figure("library: files", len(library), f"at most {MOST_FILES}", bad=len(library) > MOST_FILES)
    figure("library: lines", sum(m.lines for m in library), "", bad=False)
    figure("laboratory: files", len(laboratory), "", bad=False)
    figure("laboratory: lines", sum(m.lines for m in laboratory), "", bad=False)
    figure(
        "fullest folder: files", count, f"{full.relative_to(ROOT)}; aim {FULL}, at most {FULLER}", bad=count > FULLER
    )
    for line in over:
        print(f"    {line}")
    figure(
        f"files under {SHORT} lines",
        len(short),
        f"at most {MOST_SHORT}",
        bad=[str(m.path.relative_to(ROOT)) for m in short] if len(short) > MOST_SHORT else [],
    )
    figure(
        "most parameters",
        max(many)[0],
        f"at most {MOST_PARAMETERS}",
        bad=[f"{place}: {number}" for number, place in many if number > MOST_PARAMETERS],
    )
    figure("public names defined twice", len(twice), "0", bad=twice)
    figure(
        "docstrings that open with a counted word",
        f"{100 * len(riddles) / len(docs):.1f} %",
        f"at most 1 %, of {len(docs)}",
        bad=riddles if len(riddles) > len(docs) / 100 else [],
    )
    figure("imports against the layers", len(wrong), "0", bad=wrong)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
