"""Claims with their numbers, and the two files that state them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineograph.data.files import instead_of

SURE = 2  # standard errors by which a difference must exceed 0


class Mean(NamedTuple):
    """A mean over independent cases, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


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
class Report:
    """A paper's claims, the table that they rest on (row -> column -> mean) and how it was made."""

    paper: str
    about: Mapping[str, Any]
    claims: Sequence[Claim]
    table: Mapping[str, Mapping[str, Mean]]
    pictures: Mapping[str, Mapping[str, str]]
    """caption -> column -> file, relative to the report"""


def mean(values: Sequence[float]) -> Mean:
    """The mean, with the error that independent cases have."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Mean(float(np.mean(values)) if len(values) else float("nan"), float(spread))


def at_least(name: str, values: Sequence[float], bar: float) -> Claim:
    """The mean reaches the bar."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f">= {bar:g}", value >= bar)


def within(name: str, values: Sequence[float], low: float, high: float) -> Claim:
    """The mean lies between the two."""
    value, error = mean(values)
    return Claim(name, value, error, len(values), f"{low:g} to {high:g}", low <= value <= high)


def better(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Claim:
    """The mean difference over the same cases is above 0 by two standard errors."""
    value, error = mean(np.subtract(ours, theirs).tolist())
    return Claim(name, value, error, len(ours), f"> 0 by {SURE} standard errors", value > SURE * error)


def write(report: Report, folder: Path) -> list[Path]:
    """`paper.json` and `paper.md` in the folder, each whole or as it was before."""
    files = {f"{report.paper}.json": _json(report), f"{report.paper}.md": _markdown(report)}
    for name, text in files.items():
        with instead_of(folder / name) as part:
            part.write_text(text)
    return [folder / name for name in files]


def _json(report: Report) -> str:
    claims = [{**asdict(each), "value": _known(each.value), "error": _known(each.error)} for each in report.claims]
    table = {
        row: {column: {"value": _known(each.value), "error": _known(each.error)} for column, each in cells.items()}
        for row, cells in report.table.items()
    }
    whole = {**report.about, "paper": report.paper, "claims": claims, "table": table}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
        "## Claims\n",
        _table(
            ["claim", "measured", "count", "bar", "holds"],
            [
                [c.name, str(Mean(c.value, c.error)), c.count, c.bar, "yes" if c.holds else "**no**"]
                for c in report.claims
            ],
        ),
        "## Ablation\n",
        _table(
            ["", *next(iter(report.table.values()))],
            [[row, *map(str, cells.values())] for row, cells in report.table.items()],
        ),
        "## Pictures\n",
        *(_strips(caption, files) for caption, files in report.pictures.items()),
    ]
    return "\n".join(parts)


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def _strips(caption: str, files: Mapping[str, str]) -> str:
    return "\n".join([f"### {caption}\n", *(f"{name}\n\n![{name}]({file})\n" for name, file in files.items())])
