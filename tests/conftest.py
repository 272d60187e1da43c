"""Every test runs offline and on one thread: the machine is small, and sums are then taken in one order.

Shapes are checked in tests only, by pytest's option `--jaxtyping-packages` (pyproject.toml).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shapecheck

shapecheck.install()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KINEOGRAPH_GRAPHS"] = "off"  # the engine does not depend on what ran before


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Restore torch's default dtype: transformers leaves bfloat16 behind when it runs out of memory while it loads."""
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """A function that runs the command line; see `command.Run`."""
    from command import runner  # imports kineograph, whose shapes are checked only if that is after pytest's start

    yield from runner(tmp_path, monkeypatch, capsys)


@pytest.fixture
def within(request: pytest.FixtureRequest) -> float:
    """The greatest difference that the test's row of docs/formats.md allows; see `format_rows.loads`."""
    mark = request.node.get_closest_marker("format_row")
    assert mark is not None and mark.args[0].within is not None, "the test has no row with `within`"
    return mark.args[0].within
