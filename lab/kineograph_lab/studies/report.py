"""Claims with their numbers, and the two files that state them."""

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

SURE = 2  # standard errors by which a difference must exceed 0, unless a claim says more


@dataclass(frozen=True)
class Claim:
    """One statement that can fail: what was measured, over how many cases, against which bar."""

    name: str
    value: float
    error: float
    count: int
    bar: str
    holds: bool


@dataclass(frozen=True)
class Part:
    """One study of a paper: its claims, the table that they rest on (row -> column -> mean), and some of its videos."""

    title: str
    claims: Sequence[Claim]
    table: Mapping[str, Mapping[str, Mean]]
    pictures: Mapping[str, Mapping[str, str]]
    """caption -> column -> file, relative to the report"""


@dataclass(frozen=True)
class Report:
    """What was measured of a paper, part by part, and how."""

    paper: str
    about: Mapping[str, Any]
    parts: Sequence[Part]

    @property
    def claims(self) -> list[Claim]:
        """Those of all parts."""
        return [claim for part in self.parts for claim in part.claims]


def at_least(name: str, values: Sequence[float], bar: float) -> Claim:
    """The mean reaches the bar."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f">= {bar:g}", value >= bar)


def not_below(name: str, ours: Sequence[float], theirs: Sequence[float], errors: int = SURE) -> Claim:
    """The mean difference over the same cases is not below 0 by so many standard errors."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), f"not < 0 by {errors} standard errors", value > -errors * error)


def at_least_a_share(name: str, ours: Sequence[float], theirs: Sequence[float], bar: float) -> Claim:
    """The mean is at least so much of the other's over the same cases, or more; the error is of the first order."""
    whole = float(np.mean(theirs))
    share = float(np.mean(ours)) / whole if whole else math.nan
    error = mean([a - share * b for a, b in zip(ours, theirs, strict=True)]).error / whole if whole else math.nan
    return Claim(name, share, error, len(ours), f">= {bar:g}", share >= bar)


def within(name: str, values: Sequence[float], low: float, high: float) -> Claim:
    """The mean lies between the two."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f"{low:g} to {high:g}", low <= value <= high)


def better(name: str, ours: Sequence[float], theirs: Sequence[float], errors: int = SURE) -> Claim:
    """The mean difference over the same cases is above 0 by so many standard errors."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), f"> 0 by {errors} standard errors", value > errors * error)


def unchanged(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Claim:
    """The mean difference over the same cases is less than its standard error away from 0."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), "0 within a standard error", abs(value) <= error)


def write(report: Report, folder: Path) -> list[Path]:
    """`paper.json` and `paper.md` in the folder, each whole or as it was before."""
    files = {f"{report.paper}.json": _json(report), f"{report.paper}.md": _markdown(report)}
    for name, text in files.items():
        with replace_atomically(folder / name) as part:
            part.write_text(text)
    return [folder / name for name in files]


def _json(report: Report) -> str:
    whole = {**report.about, "paper": report.paper, "parts": [_plain(part) for part in report.parts]}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(part: Part) -> dict[str, Any]:
    claims = [{**asdict(each), "value": _known(each.value), "error": _known(each.error)} for each in part.claims]
    table = {
        row: {column: {"value": _known(each.value), "error": _known(each.error)} for column, each in cells.items()}
        for row, cells in part.table.items()
    }
    return {"title": part.title, "claims": claims, "table": table}


def _known(value: float) -> float | None:
    """JSON has no NaN, which is the mean of nothing and the error of one."""
    return None if math.isnan(value) else value


def _markdown(report: Report) -> str:
    about = report.about
    parts = [
        f"# {report.paper} on the pocket world\n",
        f"`{about['command']}` at commit {about['commit']}, on {about['machine']['processor']} "
        f"({about['model']['device']}, {about['model']['dtype']}). Numbers are means ± standard errors over prompts; "
        f"[{report.paper}.json]({report.paper}.json) has the hashes of the weights and the versions.\n",
        *(_section(part) for part in report.parts),
    ]
    return "\n".join(parts)


def _section(part: Part) -> str:
    claims = [
        [each.name, str(Mean(each.value, each.error)), each.count, each.bar, "yes" if each.holds else "**no**"]
        for each in part.claims
    ]
    cells = [[row, *map(str, cells.values())] for row, cells in part.table.items()]
    return "\n".join(
        [
            f"## {part.title}\n",
            _table(["claim", "measured", "count", "bar", "holds"], claims),
            _table(["", *next(iter(part.table.values()))], cells),
            *(_strips(caption, files) for caption, files in part.pictures.items()),
        ]
    )


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _strips(caption: str, files: Mapping[str, str]) -> str:
    return "\n".join([f"### {caption}\n", *(f"{name}\n\n![{name}]({file})\n" for name, file in files.items())])
