"""The names in the documents exist: functions in papers.md and notation.md, settings in the guides, links, commands.

Names are read from the source by `ast`.
"""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kineograph.cli.commands import COMMANDS as VERBS
from kineograph.cli.commands import build_command

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*GUIDES, *sorted(DOCS.glob("*/*.md")), ROOT / "CHANGELOG.md"]
PACKAGES = {ROOT / "src" / "kineograph": "*.py", ROOT / "lab" / "kineograph_lab": "*.py"}
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(?=\(|$)")
FILE = re.compile(r"([\w/]+\.py)(?:: (.+))?")
OUTSIDE = {"UNet2DConditionModel", "signal_scale", "A_up"}  # names of other libraries and of the papers


@cache
def sources() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for folder in PACKAGES for file in sorted(folder.rglob("*.py"))}


def targets(node: ast.AST) -> list[str]:
    """Return the names that an assignment, definition or parameter defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Assign):
        return [each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


@cache
def top_level(file: Path) -> frozenset[str]:
    return frozenset(name for node in sources()[file].body for name in targets(node))


@cache
def members() -> dict[str, frozenset[str]]:
    """Return, for each module stem and each class, the names defined in it."""
    found: dict[str, set[str]] = {}
    for file, tree in sources().items():
        found.setdefault(file.stem, set()).update(top_level(file))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(name for each in node.body for name in targets(each))
    return {owner: frozenset(names) for owner, names in found.items()}


@cache
def identifiers() -> frozenset[str]:
    return frozenset(name for tree in sources().values() for node in ast.walk(tree) for name in targets(node))


def rows(document: Path, header: str) -> list[list[str]]:
    """Return the cells of the tables with this header."""
    found, inside = [], False
    for line in document.read_text().splitlines():
        inside = line.startswith("|") and (inside or line.startswith(header))
        if inside and not line.startswith((header, "|---")):
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def resolve(path: str) -> Path:
    folder = ROOT if path.startswith(("lab/", "tests/", "src/")) else ROOT / "src" / "kineograph"
    return folder / path


def check_name(name: str) -> None:
    owner, _, member = name.rpartition(".")
    if not owner:
        assert name in identifiers() | OUTSIDE, f"there is no {name}"
    elif (owner := owner.rpartition(".")[2]) in members():
        assert member in members()[owner], f"{owner} has no {member}"
    else:
        assert owner in identifiers() and member in identifiers(), f"there is no {name}"


PAPERS = [span for row in rows(DOCS / "papers.md", "| paper | here |") for span in spans(row[1])]


@pytest.mark.slow
@pytest.mark.parametrize("span", sorted({span for span in PAPERS if not span.startswith(("-", "kineograph "))}))
def test_each_name_in_papers_exists(span: str) -> None:
    if file := FILE.fullmatch(span):
        path, names = resolve(file[1]), file[2]
        assert path.is_file(), f"there is no {file[1]}"
        for name in (names or "").split(", ") if names else []:
            assert name in top_level(path), f"{file[1]} has no {name}"
    elif name := NAME.match(span):
        check_name(name[0])


def test_papers_names_enough_to_be_checked() -> None:
    assert len([span for span in PAPERS if FILE.fullmatch(span)]) > 30


@pytest.mark.parametrize("row", rows(DOCS / "notation.md", "| diffusers |"), ids=lambda row: row[1])
def test_each_function_of_sigmas_in_notation_exists(row: list[str]) -> None:
    (call,) = spans(row[1])
    name = re.match(r"\w+", call)
    assert name and (name[0] in members()["sigmas"] if "(" in call else name[0] in identifiers())


METHODS_OF_NOTATION = ["schedule.scale", "schedule.timestep", "classifier_free_guidance", "Schedule.denoise"]


@pytest.mark.parametrize("call", METHODS_OF_NOTATION)
def test_notation_uses_functions_that_exist(call: str) -> None:
    assert f"`{call}" in (DOCS / "notation.md").read_text()
    check_name(call.replace("schedule.", "Schedule."))


@pytest.mark.parametrize("document", ["training.md", "customising.md", "curation.md"])
def test_each_setting_in_the_guides_exists(document: str) -> None:
    names = [span for row in rows(DOCS / document, "| setting |") for span in spans(row[0])]
    assert names
    for name in names:
        for part in re.match(r"[\w.]+", name)[0].split("."):
            assert part in identifiers(), f"there is no setting {part}"


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_each_file_and_module_in_the_guides_exists(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(r"(?:src|lab|tests|tools|examples)/[\w/]+\.(?:py|yaml|json|sh)\b", text):
        assert (ROOT / path).exists(), f"there is no {path}"
    for module in re.findall(r"(?:from|-m) (kineograph[\w.]*)", text):
        folder = ROOT / ("lab" if module.startswith("kineograph_lab") else "src") / module.replace(".", "/")
        assert folder.is_dir() or folder.with_suffix(".py").is_file(), f"there is no module {module}"


@pytest.mark.parametrize("document", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_exists(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{target} does not exist"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{linked.name} has no heading #{anchor}"


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for document in GUIDES
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("kineograph ")
    }
)


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    return {name: build_command(name) for name in VERBS}


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_in_the_guides_parses(line: str, commands: dict[str, Any]) -> None:
    _, verb, *arguments = shlex.split(line)
    commands[verb].make_context(verb, arguments)
