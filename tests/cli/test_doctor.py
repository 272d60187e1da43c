"""`kineograph doctor` on versions of libraries, and the floors that it compares them with."""

import re
import tomllib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

doctor: Any = import_module("kineograph.cli.doctor")  # its package exports the function of this name
ROOT = Path(__file__).parents[2]
DEPENDENCIES = [
    Requirement(each) for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def found_with(versions: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what doctor finds with these versions installed, and every other one just allowed."""
    lowest = {each.name: next(iter(each.specifier)).version for each in DEPENDENCIES} | {"torch": doctor.TESTED_TORCH}

    def version(name: str) -> str:
        if (lowest | versions)[name] == "none":
            raise PackageNotFoundError(name)
        return (lowest | versions)[name]

    monkeypatch.setattr(doctor, "requires", lambda _: [*map(str, DEPENDENCIES), "ray>=2.50; extra == 'data'"])
    monkeypatch.setattr(doctor, "version", version)
    return {each.what: each for each in doctor._libraries()}


def test_lowest_allowed_versions_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_with({}, monkeypatch)
    assert [*found] == [*doctor.LIBRARIES]
    assert not any(each.to_do for each in found.values())


@pytest.mark.parametrize(
    ("name", "version"),
    [("transformers", "5.0.0"), ("diffusers", "0.39.0"), ("av", "16.1.0"), ("pydantic", "1.10"), ("peft", "none")],
)
def test_versions_below_the_floors_are_named(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_with({name: version}, monkeypatch)[name]
    assert found.needed and found.to_do.startswith(f"pip install '{name}>=")
    assert "not installed" in found.found or re.fullmatch(rf"{version}, and kineograph needs >=.*", found.found)


@pytest.mark.parametrize("version", ["2.6.0", "2.12.1+cu126", "2.15.0"])
def test_other_versions_of_torch_are_untested(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_with({"torch": version}, monkeypatch)["torch"]
    assert "untested" in found.found and found.to_do and not found.needed
    assert not found_with({"torch": "2.13.0+cpu"}, monkeypatch)["torch"].to_do


def test_lowest_constraints_are_the_floors() -> None:
    """constraints-lowest.txt, with which CI tests, has the lowest version that each dependency allows."""
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = {each.name: each for each in map(Requirement, filter(None, (line.split("#")[0] for line in lines)))}
    assert pinned.keys() >= {each.name for each in DEPENDENCIES}
    for each in DEPENDENCIES:
        floor, pin = (Version(next(iter(one.specifier)).version) for one in (each, pinned[each.name]))
        assert pin == floor or each.name == "torch", each.name
    assert str(pinned["torch"].specifier) == f"=={doctor.TESTED_TORCH}"
