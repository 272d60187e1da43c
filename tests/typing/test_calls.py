"""Type checkers know every option: mypy accepts `right_calls.py`, and refuses each marked line of `wrong_calls.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT, WRONG = HERE / "right_calls.py", HERE / "wrong_calls.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mypy_accepts_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    reported = _lines_with_errors(RIGHT, WRONG, cache=tmp_path)
    marked = [number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if line.endswith("  # error")]
    assert len(marked) > 40
    assert reported == {WRONG.name: marked}


def _lines_with_errors(*files: Path, cache: Path) -> dict[str, list[int]]:
    """Return the numbers of the lines in which mypy finds an error with the project's settings, by file."""
    options = ["--config-file", "pyproject.toml", "--cache-dir", str(cache), "--no-pretty", "--no-error-summary"]
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found: dict[str, set[int]] = {}
    for message in ended.stdout.splitlines():
        file, line, kind, _ = message.split(":", 3)
        if kind == " error":
            found.setdefault(Path(file).name, set()).add(int(line))
    return {name: sorted(lines) for name, lines in found.items()}
