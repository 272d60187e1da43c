"""Imports of a command that generates a video: what it does not use is not loaded, and what is deferred works."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kineograph.cli import defer_import, quick_imports

MODULE = """
from math import sqrt

LOADED.append(__name__)
number = 7

def root(value, *, plus=0):
    return sqrt(value) + plus
"""
GENERATE = """
import json, sys
from kineograph.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
# what a plain `generate` does not use: the insides of the deferred modules, data frames and learners, other commands
UNUSED = {
    "scipy.stats._stats_py", "scipy.optimize._optimize", "scipy.linalg", "scipy.sparse", "pandas", "sklearn",
    "matplotlib", "torchvision", "ray", "cv2", "fastapi", "kineograph.training.loop", "kineograph.metrics.report",
    "kineograph.curation.run",
}  # fmt: skip


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of loaded modules of a package that can be imported."""
    names = list[str]()
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").write_text("")
    (tmp_path / "slow_package" / "module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.LOADED", names, raising=False)
    yield names
    for name in ("slow_package.module", "slow_package"):
        sys.modules.pop(name, None)


def import_module() -> Any:
    return importlib.import_module("slow_package.module")


def test_a_deferred_module_is_loaded_when_a_name_of_it_is_read(loaded: list[str]) -> None:
    defer_import("slow_package.module")
    module = import_module()
    assert module.__spec__ is not None
    assert not hasattr(module, "__wrapped__")
    assert loaded == []
    assert module.number == 7
    assert module.root(4) == 2
    assert loaded == ["slow_package.module"]


def test_a_name_can_be_imported_of_a_deferred_module(loaded: list[str]) -> None:
    defer_import("slow_package.module")
    from slow_package.module import number  # type: ignore[import-not-found]

    assert (number, loaded) == (7, ["slow_package.module"])


def test_a_function_of_a_deferred_module_is_imported_before_the_module_is_loaded(loaded: list[str]) -> None:
    defer_import("slow_package.module", ["root"])
    from slow_package.module import root  # type: ignore[import-not-found]

    assert loaded == []
    assert root(9, plus=1) == 4
    assert root(16) == 4
    assert import_module().root is not root
    assert loaded == ["slow_package.module"]


def test_a_deferred_module_has_no_names_but_its_own(loaded: list[str]) -> None:
    defer_import("slow_package.module")
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = import_module().other


def test_the_garbage_collector_pauses_during_imports() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_garbage_collector_runs_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.slow
def test_what_is_deferred_of_scipy_computes_as_scipy_does() -> None:
    code = """
from kineograph.cli import quick_imports
with quick_imports():
    from scipy import optimize, stats
    from scipy.optimize import linear_sum_assignment
    import scipy.stats
print(stats.beta.ppf(0.5, 2, 2), *linear_sum_assignment([[2, 1], [1, 2]])[1], optimize.brentq(lambda x: x - 3, 0, 9))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["0.5", "1", "0", "3.0"]


@pytest.mark.slow
def test_generate_loads_no_modules_that_it_does_not_use(tmp_path: Path) -> None:
    arguments = ["a red fish", "--num-frames", "1", "--num-inference-steps", "1", "-o", str(tmp_path / "a.mp4")]
    program = [sys.executable, "-c", GENERATE, "generate", *arguments]
    modules = json.loads(subprocess.check_output(program, text=True).splitlines()[-1])
    assert UNUSED & {*modules} == set()
    assert {"torch", "diffusers", "transformers"} <= {*modules}
