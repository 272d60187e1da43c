"""A thousand mutated inputs of all readers, by `tools/fuzz.py`; docs/results/robustness.md has more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "tools" / "fuzz.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(os.name != "posix", reason="forks")]


def fuzz(*arguments: object) -> dict:
    """Run the fuzzer, and return its summary."""
    command = [sys.executable, FUZZ, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout, ended.stderr
    return json.loads(ended.stdout)


def test_a_thousand_mutated_inputs_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    summary = fuzz("--inputs", 1000, "--seed", 0, "--failures", tmp_path)
    assert summary["inputs"] == 1000
    assert not summary["failures"]


@pytest.mark.soak
def test_inputs_without_mutations_are_read(tmp_path: Path) -> None:
    readers = fuzz("--valid", "--failures", tmp_path)["readers"]
    assert len(readers) > 30
    assert not [name for name, each in readers.items() if each["fine"] < each["inputs"]]
