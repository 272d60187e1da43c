"""docs/formats.md is what the tests assert of files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_table_of_formats_is_what_the_tests_assert() -> None:
    command = [sys.executable, "tools/formats_table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
