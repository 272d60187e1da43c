"""Write docs/formats.md: every layout and feature of files, with what the tests assert of it.

    python tools/formats_table.py            # writes the table
    python tools/formats_table.py --check    # fails if the table differs from the tests' rows

The rows are the marks of tests/format_rows.py. Nothing is run; a test that is expected to fail has a row that says so.
"""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "formats.md"
IMPORT = "from format_rows import"  # in the tests that have rows
sys.path.insert(0, str(ROOT / "tests"))

from format_rows import KINDS, Row  # noqa: E402

INTRODUCTION = """\
# Formats

Layouts and features of files, with what the tests assert of each. Written by `tools/formats_table.py` from the rows of
the tests, so a row stands here because its test passes. Figures are the greatest absolute difference of the networks'
outputs or weights, in float32 on random weights; where diffusers or peft reads a file wrongly, or not at all,
the reference is the definition. What is in no row is refused as unknown, or left out with a warning that counts it.
"""


class Rows:
    """A pytest plugin that takes the rows of the collected tests."""

    def __init__(self) -> None:
        """Start without rows."""
        self.rows: dict[tuple[str, str], tuple[Row, str]] = {}
        self.errors: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take the rows."""
        for item in items:
            for mark in item.iter_markers("format_row"):
                (row,) = mark.args
                if item.get_closest_marker("xfail"):
                    row = row._replace(result="not yet")
                file = item.path.relative_to(ROOT).as_posix()
                known, where = self.rows.setdefault((row.kind, row.layout), (row, file))
                if known.result != row.result:
                    self.errors.append(f"{row.layout}: {known.result!r} in {where}, {row.result!r} in {file}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Take the errors of files that cannot be imported."""
        if report.failed:
            self.errors.append(str(report.longrepr))


def collect() -> Rows:
    """Return the rows of all tests, without running any."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if IMPORT in path.read_text()]
    rows = Rows()
    options = ["--collect-only", "--no-header", "--no-summary", "-n0", "-m", "", f"--rootdir={ROOT}"]
    with redirect_stdout(io.StringIO()):
        pytest.main([*options, *files], plugins=[rows])
    return rows


def table(rows: Rows) -> str:
    """Return the page."""
    page = [INTRODUCTION]
    for kind, about in KINDS.items():
        of_kind = [each for each in rows.rows.values() if each[0].kind == kind]
        if of_kind:
            page += [f"## {kind}s\n", f"{about}\n", "| layout or feature | result | test |", "|---|---|---|"]
            page += [
                f"| {row.layout} | {row.result} | [{Path(file).stem}](../{file}) |"
                for row, file in sorted(of_kind, key=_layout)
            ]
            page.append("")
    return "\n".join(page)


def _layout(row: tuple[Row, str]) -> str:
    return row[0].layout.lower().strip("`")


def main() -> int:
    """Write or check the page; return 1 if it is stale or rows contradict each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    check = parser.parse_args().check
    rows = collect()
    page = table(rows)
    if rows.errors:
        print("\n".join(rows.errors))
        return 1
    if not check:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        print("docs/formats.md is stale: run python tools/formats_table.py")
        return 1
    missing = [kind for kind in KINDS if not any(row.kind == kind for row, _ in rows.rows.values())]
    for kind in missing:
        print(f"no test has a row of kind {kind}: see tests/format_rows.py")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
