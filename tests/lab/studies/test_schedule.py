"""The order of all studies' cases, the time that they take, and runs that are stopped and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kineograph_lab.bench.text2video_zero import save_random_pipeline
from kineograph_lab.studies import schedule
from kineograph_lab.studies.claims import Claim, claim_at_least
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Record, held_out_cases, read_protocols
from kineograph_lab.studies.reproduce import PreparedStudy
from kineograph_lab.studies.schedule import ScheduledStudy, cases_needed, measure_progress, measure_scheduled
from kineograph_lab.studies.study import Analysis, Study, metric_values

MACHINE = "this machine"
GREY = np.full((2, 8, 8, 3), 128, np.uint8)


def state_claims(records: Sequence[Record]) -> list[Claim]:
    return [claim_at_least("grey", metric_values(records, "a", "grey"), 100)]


def study(name: str, cases: int, arms: Sequence[str] = ("a", "b")) -> Study:
    return Study(
        Analysis(name, name, held_out_cases, state_claims, {"grey": "grey level"}),
        settings={},
        cases=held_out_cases(cases, "test"),
        arms={arm: lambda batch: [GREY] * len(batch) for arm in arms},
        measure=lambda frames, case: {"grey": float(frames.mean() + case.number % 3)},
    )


def scheduled(folder: Path, name: str, cases: int, needed: int, **options: Sequence[str]) -> ScheduledStudy:
    stamp = {"protocol": "now", "split": "test", "commit": "none", "machine": MACHINE}
    prepared = PreparedStudy(study(name, cases, **options), {"models": {}}, stamp)
    return ScheduledStudy("paper", None, prepared, folder, needed)  # type: ignore[arg-type]  # no model is called


def write_records(folder: Path, name: str, count: int, **fields: object) -> None:
    records = [{"protocol": "now", "arm": arm, "case": case, **fields} for case in range(count) for arm in ("a", "b")]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_least_share_of_the_needed_cases_is_measured_first(tmp_path) -> None:
    write_records(tmp_path, "half", 2)
    studies = [scheduled(tmp_path, "half", 4, 4), scheduled(tmp_path, "few", 4, 2), scheduled(tmp_path, "many", 4, 4)]
    log: list[str] = []
    measure_scheduled(studies, hours=None, log=log.append)
    order = [line.split(":")[0].removeprefix("paper/") for line in log]
    assert [order.count(name) for name in ("half", "few", "many")] == [2, 4, 4]
    assert {*order[:2]} == {"few", "many"} and order[2:4] != ["few", "few"]
    assert order.index("half") > order.index("many") and order[-1] == "few"
    assert all(measure_progress(each).share >= 1 and not measure_progress(each).batch for each in studies)
    assert [*read_protocols(tmp_path, "few")] == ["now"]


def test_equal_shares_begin_with_the_cheaper_study(tmp_path) -> None:
    for name, seconds in (("dear", 30.0), ("cheap", 2.0)):
        write_records(tmp_path, name, 1, machine=MACHINE, seconds=seconds)
    studies = [scheduled(tmp_path, name, 3, 3) for name in ("dear", "cheap")]
    assert [measure_progress(each).seconds for each in studies] == [60, 4]
    lines = schedule.describe_schedule(studies, 2)
    assert lines[0].startswith("paper/cheap") and "2 of     6 records, needs   3 cases, left: 0 min" in lines[0]
    assert lines[1].startswith("paper/dear") and lines[1].endswith("left: 2 min")
    assert lines[2] == f"left in all: 0.0 h, measured on {MACHINE}" and lines[3].startswith("stops after 2 h")


def test_time_of_another_machine_is_not_counted(tmp_path) -> None:
    write_records(tmp_path, "elsewhere", 1, machine="another machine", seconds=9.0)
    only = scheduled(tmp_path, "elsewhere", 3, 3)
    assert measure_progress(only).seconds is None and math.isnan(measure_progress(only).seconds_left)
    line, total = schedule.describe_schedule([only], None)
    assert line.endswith("left: unknown") and "1 studies whose time is known after their first case" in total


def test_a_batch_that_would_end_too_late_does_not_begin(tmp_path) -> None:
    write_records(tmp_path, "slow", 1, machine=MACHINE, seconds=3600.0)
    studies = [scheduled(tmp_path, "slow", 3, 3), scheduled(tmp_path, "new", 1, 3)]
    log: list[str] = []
    measure_scheduled(studies, hours=1, log=log.append)
    assert [line.split(":")[0] for line in log] == ["paper/new"]


def test_a_stopped_batch_is_completed(tmp_path) -> None:
    (tmp_path / "study.jsonl").write_text(json.dumps({"protocol": "now", "arm": "a", "case": 0}) + "\n")
    one = scheduled(tmp_path, "study", 2, 2)
    assert (measure_progress(one).records, measure_progress(one).left) == (1, 2)
    measure_scheduled([one], hours=None, log=lambda line: None)
    records = [json.loads(line) for line in (tmp_path / "study.jsonl").read_text().splitlines() if line]
    assert sorted((record["case"], record["arm"]) for record in records) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert all(record["seconds"] >= 0 and record["split"] == "test" for record in records[1:])


def claim(p: float | None, count: int = 100, clusters: int = 100) -> dict:
    return {"p": p, "count": count, "clusters": clusters}


def test_cases_needed_grow_as_a_claim_is_undecided_on_either_side() -> None:
    decided, open_claim = claim(1e-12), claim(0.2)
    assert cases_needed([decided], 10, 1000) < 100 < cases_needed([open_claim], 10, 1000)
    assert cases_needed([decided, open_claim], 10, 1000) == cases_needed([open_claim], 10, 1000)
    assert cases_needed([claim(0.8)], 10, 1000) == cases_needed([open_claim], 10, 1000)
    assert cases_needed([open_claim], 1, 1000) < cases_needed([open_claim], 50, 1000)
    assert cases_needed([claim(0.5)], 10, 1000) == 1000
    assert cases_needed([], 10, 70) == 70 and cases_needed([claim(None, clusters=1)], 10, 70) == 70
    assert cases_needed([claim(0.0)], 10, 70) == 1


@pytest.mark.slow
def test_all_papers_are_scheduled_measured_in_turns_and_reported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "pipeline", tmp_path / "results"
    save_random_pipeline(source, channels=32, side=8, text_layers=1)
    loaded = schedule.load(source, dtype="float32")
    papers = {
        paper: ((each.analysis, lambda model, judges, count, steps, each=each: each),)
        for paper, each in {"first": study("one", 2), "second": study("two", 2)}.items()
    }
    monkeypatch.setattr(schedule, "load", lambda name: loaded)
    for name, value in {"PAPERS": papers, "MODELS": dict.fromkeys(papers, "tiny")}.items():
        monkeypatch.setattr(schedule, name, value)
        monkeypatch.setattr(f"kineograph_lab.studies.reproduce.{name}", value)
    judges = Judges(*[lambda *_: None] * 5, weight_hashes={"judge": "none"})  # type: ignore[arg-type]
    studies = schedule.schedule_studies(judges, cases=2, out=out)
    assert [each.name for each in studies] == ["first/one", "second/two"]
    assert schedule.report_scheduled(studies, judges, command="command", cases=2, out=out) == []
    measure_scheduled(studies, hours=None, log=lambda line: None)
    reports = schedule.report_scheduled(studies, judges, command="command", cases=2, out=out)
    assert [report.paper for report in reports] == ["first", "second"]
    written = json.loads((out / "first.json").read_text())
    assert {"name", "value", "low", "high", "holds"} <= written["claims"][0].keys()
    assert written["parts"][0]["records"]["splits"] == {"test": 4} and written["parts"][0]["records"]["doubt"] is None
    again = schedule.schedule_studies(judges, cases=2, out=out)
    assert all(not measure_progress(each).batch for each in again)
    more = schedule.schedule_studies(judges, cases=3, out=out)
    assert [measure_progress(each).left for each in more] == [1, 1]
