"""`kineograph reproduce all`: the studies of all papers, the most informative cases first, and the time that they take."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies.claims import ALPHA
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, parse_record
from kineograph_lab.studies.report import Report
from kineograph_lab.studies.reproduce import (
    CASES,
    MODELS,
    PAPERS,
    RESULTS,
    PreparedStudy,
    available_studies,
    lock_study,
    prepare_study,
    report_measured,
)
from kineograph_lab.studies.splits import TEST, Split
from kineograph_lab.studies.study import (
    Analysis,
    measure_batch,
    missing_batches,
    recorded_pairs,
    records_file,
)

Log = Callable[[str], None]


class ScheduledStudy(NamedTuple):
    """A study to measure.

    model   what it is run with
    needed  cases after which, by earlier records, each of its claims should be decided; at most those asked for
    """

    paper: str
    model: Model
    prepared: PreparedStudy
    folder: Path
    needed: int

    @property
    def name(self) -> str:
        """Paper and name of the study."""
        return f"{self.paper}/{self.prepared.study.analysis.name}"


class StudyProgress(NamedTuple):
    """State of a study's records.

    records  those of its present protocol; `wanted` in all
    share    of the needed cases, how many have records of all arms
    left     cases that have not
    batch    cases to measure next, empty at the end
    seconds  a case, all arms together, by the records of this kind of machine; None if there are none
    """

    records: int
    wanted: int
    share: float
    left: int
    batch: Sequence[Case]
    seconds: float | None

    @property
    def priority(self) -> tuple[float, float]:
        """Rank of the study: the least share first, of equal ones the cheapest case."""
        return self.share, self.seconds or 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds that the rest should take; NaN if nothing is known."""
        return self.left * (math.nan if self.seconds is None else self.seconds) if self.left else 0.0


def schedule_studies(
    judges: Judges, *, cases: int = CASES, steps: int | None = None, split: Split = TEST, out: str | Path = RESULTS
) -> list[ScheduledStudy]:
    """Load the models of all papers, and return their studies."""
    models = {name: load(name) for name in dict.fromkeys(MODELS.values())}
    scheduled = []
    for paper in PAPERS:
        model, folder = models[MODELS[paper]], Path(out) / paper
        claims = read_claims(Path(out) / f"{paper}.json")
        for study in available_studies(paper, model, judges, cases, steps, split):
            prepared = prepare_study(study, folder, model, judges, split)
            own = [each for each in claims if each["study"] == study.analysis.name]
            scheduled.append(
                ScheduledStudy(paper, model, prepared, folder, cases_needed(own, len(claims), len(study.cases)))
            )
    return scheduled


def read_claims(report: Path) -> list[Mapping[str, Any]]:
    """Return the claims of a report; none if there is no report."""
    return json.loads(report.read_text())["claims"] if report.exists() else []


def cases_needed(claims: Iterable[Mapping[str, Any]], together: int, most: int) -> int:
    """Return the number of cases after which each claim should hold or be refuted, by its test so far.

    A test's t grows as the root of the number of cases; a claim is decided where it is beyond the quantile of
    ALPHA / together (Bonferroni), whatever its sign. Without claims, or an error, all cases are needed.

    Args:
        together: claims of the whole report.
        most: cases in all.
    """
    needed = max((_cases_for(each, together) for each in claims), default=math.inf)
    return max(1, math.ceil(min(needed, most)))


def _cases_for(claim: Mapping[str, Any], together: int) -> float:
    degrees, p = claim["clusters"] - 1, claim["p"]
    if degrees < 1 or p is None:
        return math.inf
    t = abs(float(stdtrit(degrees, p)))
    return claim["count"] * (float(stdtrit(degrees, 1 - ALPHA / together)) / t) ** 2 if t > 0 else math.inf


def measure_progress(scheduled: ScheduledStudy) -> StudyProgress:
    """Return the state of a study's records."""
    study, stamp = scheduled.prepared.study, scheduled.prepared.stamp
    wanted = {(arm, case.number) for arm in study.arms for case in study.cases}
    there = recorded_pairs(study.analysis, scheduled.folder, stamp["protocol"]).keys() & wanted
    complete = sum(all((arm, case.number) in there for arm in study.arms) for case in study.cases)
    batches = missing_batches(study, there)
    seconds = seconds_per_case(study.analysis, scheduled.folder, [*study.arms], stamp["machine"])
    share, left = complete / scheduled.needed, len(study.cases) - complete
    return StudyProgress(len(there), len(wanted), share, left, batches[0] if batches else (), seconds)


def seconds_per_case(analysis: Analysis, folder: Path, arms: Sequence[str], machine: str) -> float | None:
    """Return the mean seconds of a case with these arms, by a study's records of one kind of machine; None without any."""
    by_arm = defaultdict[str, list[float]](list)
    for record in _all_records(records_file(analysis, folder)):
        if record.get("machine") == machine and "seconds" in record:
            by_arm[record["arm"]].append(record["seconds"])
    if not by_arm:
        return None
    means = {arm: sum(each) / len(each) for arm, each in by_arm.items()}
    return sum(means.get(arm, sum(means.values()) / len(means)) for arm in arms)


def _all_records(file: Path) -> Iterator[Record]:
    yield from map(parse_record, file.read_text().splitlines() if file.exists() else [])


def describe_schedule(studies: Sequence[ScheduledStudy], hours: float | None) -> list[str]:
    """Return a line for each study, in the order in which they begin: records, cases needed, time left; then the sum."""
    states = sorted(((measure_progress(each), each) for each in studies), key=lambda pair: pair[0].priority)
    rows = [
        f"{each.name:44} {found.records:5} of {found.wanted:5} records, needs {each.needed:3} cases, left: "
        f"{_in_minutes(found.seconds_left)}"
        for found, each in states
    ]
    machine = f"measured on {studies[0].prepared.stamp['machine']}" if studies else "nothing to measure"
    limit = [] if hours is None else [f"stops after {hours:g} h; the same command goes on"]
    return [*rows, f"{_time_left([found for found, _ in states])}, {machine}", *limit]


def _time_left(states: Sequence[StudyProgress]) -> str:
    known = [found.seconds_left for found in states if not math.isnan(found.seconds_left)]
    text = f"left in all: {sum(known) / 3600:.1f} h"
    unknown = len(states) - len(known)
    return f"{text}, and {unknown} studies whose time is known after their first case" if unknown else text


def _in_minutes(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else f"{seconds / 60:.0f} min"


def measure_scheduled(studies: Sequence[ScheduledStudy], *, hours: float | None, log: Log) -> None:
    """Measure batch after batch of cases, each of the study with the least share of its needed cases, until time is up.

    A batch does not begin if, by the time that others of its study took, it would end too late.
    """
    end = math.inf if hours is None else time.monotonic() + 3600 * hours
    states = [(measure_progress(each), each) for each in studies]
    while waiting := [number for number, (found, _) in enumerate(states) if _ends_before(end, found)]:
        chosen = min(waiting, key=lambda number: states[number][0].priority)
        found, scheduled = states[chosen]
        prepared, started = scheduled.prepared, time.monotonic()
        lock_study(prepared, scheduled.folder)
        measured = [*measure_batch(prepared.study, found.batch, scheduled.folder, prepared.stamp)]
        states[chosen] = measure_progress(scheduled), scheduled
        left = _time_left([found for found, _ in states])
        log(f"{scheduled.name}: {len(measured)} records in {time.monotonic() - started:.0f} s; {left}")


def _ends_before(end: float, found: StudyProgress) -> bool:
    expected = (found.seconds or 0.0) * len(found.batch)
    return len(found.batch) > 0 and time.monotonic() + expected < end


def report_scheduled(
    studies: Sequence[ScheduledStudy], judges: Judges, *, command: str, cases: int = CASES, out: str | Path = RESULTS
) -> list[Report]:
    """Write the reports of the papers of which a study has records of its present protocol, and return them."""
    reports = []
    for paper in PAPERS:
        own = [each for each in studies if each.paper == paper]
        if any(measure_progress(each).records for each in own):
            prepared = [each.prepared for each in own]
            about = {"command": command, "cases": cases}
            reports.append(report_measured(paper, about, own[0].model, judges, prepared, Path(out)))
    return reports
