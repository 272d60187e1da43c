"""Versions of code that records depend on: they rise when an output of fixed inputs changes."""

from __future__ import annotations

import inspect
import json

import pytest
from lab.studies import golden

from kineograph_lab.studies import frame_metrics

RAISE = (
    "the records of all studies were measured with other outputs of {changed}: undo the change, or raise {name} in "
    "lab/kineograph_lab/studies/protocol.py, which makes them stale, and run python tests/lab/studies/golden.py"
)
SLOW = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
known = json.loads(golden.FILE.read_text())


def test_golden_outputs_are_those_of_the_present_versions() -> None:
    assert known["versions"] == dict(golden.VERSIONS.values()), "run python tests/lab/studies/golden.py"


@pytest.mark.parametrize(
    "group", [pytest.param(each, marks=SLOW) if each in golden.OF_NETWORKS else each for each in golden.GROUPS]
)
def test_outputs_change_with_their_version_alone(group) -> None:
    if group in golden.OF_NETWORKS:
        text = "weights changed, which makes records stale by itself: run python tests/lab/studies/golden.py"
        assert known["weights"] == golden.network_hashes(), text
    changed = golden.differences(group, golden.GROUPS[group](), known["outputs"][group])
    assert not changed, RAISE.format(changed=", ".join(changed), name=golden.VERSIONS[group][0])


def test_every_metric_of_frames_has_a_golden_output() -> None:
    functions = inspect.getmembers(frame_metrics, inspect.isfunction)
    public = {name for name, each in functions if each.__module__ == frame_metrics.__name__ and name[0] != "_"}
    missing = public - known["outputs"]["metrics"].keys()
    assert not missing, f"add {', '.join(sorted(missing))} to metric_outputs in tests/lab/studies/golden.py"


def test_a_change_beyond_rounding_is_found() -> None:
    before = {"a": [1.0, 2.0], "b": ["fish"], "c": [1.0]}
    now = {"a": [1.0, 2.0001], "b": ["cat"], "d": [1.0]}
    assert golden.differences("samplers", now, before) == ["b", "c", "d"]
    assert golden.differences("samplers", {**before, "a": [1.0, 2.1]}, before) == ["a"]


def test_changed_outputs_are_written_only_with_another_version(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden.json")
    for value, version in ((1.0, 1), (2.0, 2)):
        monkeypatch.setattr(golden, "VERSIONS", {"samplers": ("SAMPLER_VERSION", version)})
        monkeypatch.setattr(golden, "GROUPS", {"samplers": lambda value=value: {"ddim": [value]}})
        golden.main()
        assert json.loads(golden.FILE.read_text())["outputs"] == {"samplers": {"ddim": [value]}}
    monkeypatch.setattr(golden, "GROUPS", {"samplers": lambda: {"ddim": [3.0], "added": [1.0]}})
    with pytest.raises(SystemExit, match="ddim changed: raise SAMPLER_VERSION in"):
        golden.main()
