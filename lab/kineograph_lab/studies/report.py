"""The JSON and Markdown reports of a paper."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kineograph.media.files import replace_atomically
from kineograph.metrics.report import estimate_as_json
from kineograph.metrics.statistics import Estimate
from kineograph_lab.studies.claims import Claim, correct_claims

INTRODUCTION = (
    "A value ± its standard error is over independent clusters (the column, beside the count of values). Bounds are "
    "one-sided 95 % ones; a claim holds by itself if they lie within the bar, and holds if it still does after Holm's "
    "correction for all claims of this report. [How it is measured](method.md)"
)


@dataclass(frozen=True)
class StudyReport:
    """A study's section of the report: claims, the table behind them (row -> arm -> estimate), and some videos.

    images   prompt -> arm -> image file, relative to the report
    records  count, protocols and commits of the records, and what is in doubt about them
    """

    title: str
    claims: Sequence[Claim]
    table: Mapping[str, Mapping[str, Estimate]]
    images: Mapping[str, Mapping[str, str]]
    records: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Results of all studies of a paper, and the provenance of the run (`about`)."""

    paper: str
    about: Mapping[str, Any]
    studies: Sequence[StudyReport]

    @property
    def claims(self) -> list[Claim]:
        """Claims of all studies."""
        return [claim for study in self.studies for claim in study.claims]


def correct_report(report: Report) -> Report:
    """Return the report with the p-values of all its claims corrected for one another."""
    corrected = iter(correct_claims(report.claims))
    studies = [replace(study, claims=[next(corrected) for _ in study.claims]) for study in report.studies]
    return replace(report, studies=studies)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `<paper>.json` and `<paper>.md` to the folder, each atomically, and return their paths."""
    files = {f"{report.paper}.json": _to_json(report), f"{report.paper}.md": _to_markdown(report)}
    for name, text in files.items():
        with replace_atomically(folder / name) as part:
            part.write_text(text)
    return [folder / name for name in files]


def _to_json(report: Report) -> str:
    whole = {
        **report.about,
        "paper": report.paper,
        "claims": [claim_as_json(claim) for claim in report.claims],
        "parts": [_study_to_json(study) for study in report.studies],
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def claim_as_json(claim: Claim) -> dict[str, Any]:
    """Return a claim as JSON values; NaN, the error of one cluster, is None: JSON has no NaN."""
    values = {**asdict(claim), "holds": claim.holds, "holds_uncorrected": claim.holds_uncorrected}
    values["measured"] = claim.measured
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _study_to_json(study: StudyReport) -> dict[str, Any]:
    table = {
        row: {column: estimate_as_json(each) for column, each in cells.items()} for row, cells in study.table.items()
    }
    return {"title": study.title, "records": dict(study.records), "table": table}


def _to_markdown(report: Report) -> str:
    about = report.about
    held = [claim.holds for claim in report.claims]
    sections = [
        f"# {report.paper} on the pocket world\n",
        f"`{about['command']}` measured the videos on {about['machine']['processor']} ({about['model']['device']}, "
        f"{about['model']['dtype']}); `kineograph reproduce {report.paper} --from-records` computes this report from their "
        f"records. [{report.paper}.json]({report.paper}.json) has the hashes of the weights, versions and commits.\n",
        f"{sum(held)} of {len(held)} claims hold ({sum(each.holds_uncorrected for each in report.claims)} by themselves)"
        f"{_unmeasured(report.claims)}. "
        f"{INTRODUCTION}.\n",
        *(_study_to_markdown(study) for study in report.studies),
    ]
    return "\n".join(sections)


def _unmeasured(claims: Sequence[Claim]) -> str:
    missing = sum(not each.measured for each in claims)
    return f"; of these, {missing} not measured (the records lack an arm, a metric or videos)" if missing else ""


def _study_to_markdown(study: StudyReport) -> str:
    head = ["claim", "measured", "bounds", "bar", "count", "clusters", "p", "corrected", "holds by itself", "holds"]
    cells = [[row, *map(_cell, estimates.values())] for row, estimates in study.table.items()]
    doubt = study.records.get("doubt")
    return "\n".join(
        [
            f"## {study.title}\n",
            *([f"**In doubt**: {doubt}\n"] if doubt else []),
            _table(head, [_claim_row(each) for each in study.claims]),
            _table(["", *next(iter(study.table.values()))], cells),
            *(_images_to_markdown(caption, files) for caption, files in study.images.items()),
        ]
    )


def _claim_row(claim: Claim) -> list[object]:
    if not claim.measured:
        return [claim.name, "not measured", "-", claim.bar, 0, 0, "-", "-", "-", "-"]
    answers = ["yes" if each else "**no**" for each in (claim.holds_uncorrected, claim.holds)]
    bounds, p = f"{claim.low:.3f} to {claim.high:.3f}", f"{claim.p:.2g}"
    if math.isnan(claim.p):  # of a single cluster
        bounds = p = "-"
    numbers = [_with_error(claim.value, claim.error), bounds, claim.bar, claim.count, claim.clusters]
    return [claim.name, *numbers, p, f"{claim.p_corrected:.2g}", *answers]


def _cell(estimate: Estimate) -> str:
    return _with_error(estimate.value, estimate.error)


def _with_error(value: float, error: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _images_to_markdown(caption: str, files: Mapping[str, str]) -> str:
    return "\n".join([f"### {caption}\n", *(f"{name}\n\n![{name}]({file})\n" for name, file in files.items())])
