"""The commands that the laboratory adds: `kineograph reproduce` and `kineograph bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run

from kineograph_lab.studies.claims import Claim
from kineograph_lab.studies.report import Report, StudyReport


def test_reproduce_states_each_claim(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [
        Claim("identity", 0.97, 0.01, 0.952, 0.988, 10, 10, ">= 0.95", 0.04, 0.04),
        Claim("motion", 0.5, 0.1, 0.32, 0.68, 10, 10, "<= 0.15", 0.99, 1.0),
    ]
    asked: dict = {}

    def measured(
        paper: str, *_: object, cases: int, steps: int | None, split: str, out: Path,
        on_video: Callable[[int, int], None],
    ) -> Report:  # fmt: skip
        asked.update(paper=paper, cases=cases, split=split, out=out)
        on_video(4, 4)
        return Report(paper, {}, [StudyReport("all", claims, {}, {}, {})])

    monkeypatch.setattr("kineograph.models.loading.load.load", lambda model: None)
    monkeypatch.setattr("kineograph_lab.studies.judges.load_pocket_judges", lambda: None)
    monkeypatch.setattr("kineograph_lab.studies.reproduce.reproduce", measured)
    result = run("reproduce", "text2video-zero", "--quick", "--out", "results")
    assert (result.status, result.out) == (0, "results/text2video-zero.md\n")
    assert asked == {"paper": "text2video-zero", "cases": 10, "split": "test", "out": Path("results")}
    assert "holds  identity: 0.970 ± 0.010 (n = 10, >= 0.95; 10 clusters" in result.err
    assert "FAILS  motion" in result.err
    assert json.loads(run("reproduce", "text2video-zero", "--json").out)["claims"][0]["holds"] is True


def test_reproduce_refuses_unknown_splits_and_hours_of_a_single_paper(run: Run) -> None:
    assert "--split is development or test, not 'train'" in run("reproduce", "vidrd", "--split", "train").err
    assert "kineograph reproduce all --hours 2" in run("reproduce", "vidrd", "--hours", "2").err
    assert "the report of one paper: name it" in run("reproduce", "all", "--from-records").err


def test_bench_refuses_unknown_rows_and_engines(run: Run) -> None:
    assert "there is no row 'flux'" in run("bench", "--rows", "memory,flux").err
    assert "--engine is torch or openvino, not 'tvm'" in run("bench", "--engine", "tvm").err
    assert run("bench", "--repeats", "0").status == 2
