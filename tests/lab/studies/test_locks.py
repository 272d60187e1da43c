"""Locks: a default that changes after its study was measured makes the study's figures those of another default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from typing_extensions import TypedDict

from kineograph.options import Number, option
from kineograph.request import SharedOptions
from kineograph_lab.studies.protocol import (
    STALE,
    changed_defaults,
    declare_protocol,
    find_protocol,
    last_protocol,
    lock_protocol,
    option_defaults,
    read_protocols,
)
from kineograph_lab.studies.reproduce import PAPERS
from kineograph_lab.studies.study import records_file

RESULTS = Path(__file__).parents[3] / "docs" / "results"
STUDIES = [(paper, analysis) for paper, studies in PAPERS.items() for analysis, _ in studies]
MEASURE_AGAIN = (
    "since the study {study} was measured, {changes}: measure it again by `kineograph reproduce {paper}`, or give the "
    "option its earlier value in the study"
)


@pytest.mark.parametrize(("paper", "analysis"), STUDIES, ids=lambda each: getattr(each, "name", each))
def test_defaults_are_those_that_the_study_was_measured_with(paper, analysis) -> None:
    number = last_protocol(records_file(analysis, RESULTS / paper))
    locked = read_protocols(RESULTS / paper, analysis.name)
    assert number in locked, f"the records of {number} have no protocol in {analysis.name}.protocols.json"
    if STALE in locked[number]:
        pytest.skip("its records are stale: what is measured next has today's defaults")
    changes = changed_defaults(locked[number], (SharedOptions, *analysis.options))
    assert not changes, MEASURE_AGAIN.format(study=analysis.name, changes="; ".join(changes), paper=paper)


class Before(TypedDict, total=False):
    """Options when a study was locked."""

    strength: Annotated[Number, option(0.5, "Strength.", group="Video")]
    gone: Annotated[Number, option(1.0, "Gone later.", group="Video")]


class After(TypedDict, total=False):
    """The same options later."""

    strength: Annotated[Number, option(0.6, "Strength.", group="Video")]
    added: Annotated[Number, option(0.0, "Added later, off.", group="Video")]


class Added(TypedDict, total=False):
    """An option that was added later, and does nothing by default."""

    added: Annotated[Number, option(0.0, "Added later, off.", group="Video")]


def declared(*options: type, steps: int = 20) -> dict:
    return declare_protocol({"pocket": {"unet": "abc"}}, {"steps": steps}, options, {"dtype": "float32"}, "test")


def test_changed_and_removed_defaults_are_named_and_added_ones_are_not() -> None:
    locked = declared(Before)
    assert changed_defaults(locked, (Before, Added)) == []
    assert changed_defaults(locked, (After,)) == ["`strength` was 0.5, is 0.6", "`gone` was 1.0, is gone"]


def test_an_id_changes_with_settings_weights_versions_and_defaults_but_not_with_an_added_option(tmp_path) -> None:
    locked = declared(Before)
    number = find_protocol(locked, {})
    lock_protocol(tmp_path, "study", number, locked)
    lock_protocol(tmp_path, "study", number, declared(Before, steps=30))  # what is there stays
    known = read_protocols(tmp_path, "study")
    assert known == {number: locked}
    assert find_protocol(declared(Before, Added), known) == number
    others = [declared(Before, steps=30), declared(After), {**locked, "versions": {}}, {**locked, "models": {}}]
    ids = {find_protocol(each, known) for each in others}
    assert len(ids) == len(others) and number not in ids


def test_a_stale_protocol_is_never_measured_again() -> None:
    locked = declared(Before)
    assert find_protocol(locked, {"old": {**locked, "stale": "another code"}}) != "old"


def test_defaults_that_change_no_frames_are_not_locked() -> None:
    assert {"num_inference_steps", "guidance_scale"} <= option_defaults([SharedOptions]).keys()
    assert "progress" not in option_defaults([SharedOptions])
