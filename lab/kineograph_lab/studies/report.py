"""Claims with their numbers, and the JSON and Markdown reports of a paper."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.media.files import replace_atomically
from kineograph.metrics.distances import Mean, mean

STANDARD_ERRORS = 2  # that a difference must exceed 0 by, unless a claim asks for more


@dataclass(frozen=True)
class Claim:
    """A statement that can fail: the value measured over `count` cases, its standard error, and the bar to reach."""

    name: str
    value: float
    error: float
    count: int
    bar: str
    holds: bool


@dataclass(frozen=True)
class StudyReport:
    """A study's section of the report: claims, the table behind them (row -> arm -> mean), and some videos."""

    title: str
    claims: Sequence[Claim]
    table: Mapping[str, Mapping[str, Mean]]
    images: Mapping[str, Mapping[str, str]]
    """prompt -> arm -> image file, relative to the report"""


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


def claim_at_least(name: str, values: Sequence[float], bar: float) -> Claim:
    """Claim that the mean reaches the bar."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f">= {bar:g}", value >= bar)


def claim_not_below(name: str, ours: Sequence[float], theirs: Sequence[float], errors: int = STANDARD_ERRORS) -> Claim:
    """Claim that the mean difference over the same cases is not below 0 by `errors` standard errors."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), f"not < 0 by {errors} standard errors", value >= -errors * error)


def claim_at_least_share(name: str, ours: Sequence[float], theirs: Sequence[float], bar: float) -> Claim:
    """Claim that the mean is at least this share of the other mean over the same cases (error: delta method)."""
    whole = float(np.mean(theirs))
    share = float(np.mean(ours)) / whole if whole else math.nan
    error = mean([a - share * b for a, b in zip(ours, theirs, strict=True)]).error / whole if whole else math.nan
    return Claim(name, share, error, len(ours), f">= {bar:g}", share >= bar)


def claim_within(name: str, values: Sequence[float], low: float, high: float) -> Claim:
    """Claim that the mean lies between two bounds."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f"{low:g} to {high:g}", low <= value <= high)


def claim_better(name: str, ours: Sequence[float], theirs: Sequence[float], errors: int = STANDARD_ERRORS) -> Claim:
    """Claim that the mean difference over the same cases is above 0 by `errors` standard errors."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), f"> 0 by {errors} standard errors", value > errors * error)


def claim_ratio_within(name: str, ours: Sequence[float], theirs: Sequence[float], low: float, high: float) -> Claim:
    """Claim that the ratio of the means over the same cases lies between two bounds (error: delta method)."""
    value = float(np.mean(ours) / np.mean(theirs))
    error = mean([a - value * b for a, b in zip(ours, theirs, strict=True)]).error / float(np.mean(theirs))
    return Claim(name, value, error, len(theirs), f"{low:g} to {high:g}", low <= value <= high)


def claim_unchanged(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Claim:
    """Claim that the mean difference over the same cases is within a standard error of 0."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), "0 within a standard error", abs(value) <= error)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `<paper>.json` and `<paper>.md` to the folder, each atomically, and return their paths."""
    files = {f"{report.paper}.json": _to_json(report), f"{report.paper}.md": _to_markdown(report)}
    for name, text in files.items():
        with replace_atomically(folder / name) as part:
            part.write_text(text)
    return [folder / name for name in files]


def _to_json(report: Report) -> str:
    whole = {**report.about, "paper": report.paper, "parts": [_study_to_json(study) for study in report.studies]}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _study_to_json(study: StudyReport) -> dict[str, Any]:
    claims = [
        {**asdict(each), "value": _nan_to_none(each.value), "error": _nan_to_none(each.error)} for each in study.claims
    ]
    table = {
        row: {
            column: {"value": _nan_to_none(each.value), "error": _nan_to_none(each.error)}
            for column, each in cells.items()
        }
        for row, cells in study.table.items()
    }
    return {"title": study.title, "claims": claims, "table": table}


def _nan_to_none(value: float) -> float | None:
    """Replace NaN, the mean of no values and the error of one, by None: JSON has no NaN."""
    return None if math.isnan(value) else value


def _to_markdown(report: Report) -> str:
    about = report.about
    sections = [
        f"# {report.paper} on the pocket world\n",
        f"`{about['command']}` at commit {about['commit']}, on {about['machine']['processor']} "
        f"({about['model']['device']}, {about['model']['dtype']}). Numbers are means ± standard errors over prompts; "
        f"[{report.paper}.json]({report.paper}.json) has the hashes of the weights and the versions.\n",
        *(_study_to_markdown(study) for study in report.studies),
    ]
    return "\n".join(sections)


def _study_to_markdown(study: StudyReport) -> str:
    claims = [
        [each.name, str(Mean(each.value, each.error)), each.count, each.bar, "yes" if each.holds else "**no**"]
        for each in study.claims
    ]
    cells = [[row, *map(str, cells.values())] for row, cells in study.table.items()]
    return "\n".join(
        [
            f"## {study.title}\n",
            _table(["claim", "measured", "count", "bar", "holds"], claims),
            _table(["", *next(iter(study.table.values()))], cells),
            *(_images_to_markdown(caption, files) for caption, files in study.images.items()),
        ]
    )


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _images_to_markdown(caption: str, files: Mapping[str, str]) -> str:
    return "\n".join([f"### {caption}\n", *(f"{name}\n\n![{name}]({file})\n" for name, file in files.items())])
