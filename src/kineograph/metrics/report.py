"""What a file says of a set's scores, and two such files side by side: never silently those of different protocols."""

from __future__ import annotations

import base64
import html
import json
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import InputError
from kineograph.media.video import open_video
from kineograph.metrics.distances import Mean
from kineograph.metrics.scores import Score, Survey
from kineograph.metrics.video_metrics import ASPECTS

VERSIONS = ("kineograph", "torch", "transformers", "numpy", "av")

Told = Mapping[str, Any]
Scores = Mapping[str, Told]


@dataclass(frozen=True)
class Evaluation:
    """A folder's scores, and what was seen of each of its videos."""

    name: str
    survey: Survey
    scores: tuple[Score, ...]
    against: Survey | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, without a time: the same videos give the same again."""
        return {
            "name": self.name,
            "folder": str(self.survey.folder),
            "against": None if self.against is None else str(self.against.folder),
            "versions": {name: version(name) for name in VERSIONS},
            "scores": [
                {
                    "name": each.name, "aspect": each.aspect, "value": _known(each.value.value),
                    "error": _known(each.value.error), "count": each.count, "protocol": each.protocol,
                    "settings": dict(each.settings),
                }
                for each in self.scores
            ],
            "videos": [
                {"name": video.name, "prompt": video.prompt, "frames": video.frames, "fps": video.fps, **video.numbers}
                for video in self.survey.videos
            ],
            "skipped": [problem._asdict() for problem in self.survey.problems],
        }  # fmt: skip


class Compared(NamedTuple):
    """A score in two reports, and ours less theirs with the error of two independent sets."""

    name: str
    ours: Mean
    theirs: Mean
    difference: Mean


def compare(ours: str | Path, theirs: str | Path, *, across: Collection[str] = ()) -> list[Compared]:
    """The scores that two JSON reports of `evaluate` have in common.

    across: names of scores to compare although they were measured by different protocols.
    Raises InputError when other scores were, saying what differs; when one of these is in neither report; when there
    is none in common; and when a file is no report.
    """
    return side_by_side(read_scores(ours), read_scores(theirs), across)


def side_by_side(ours: Scores, theirs: Scores, across: Collection[str] = ()) -> list[Compared]:
    """The same of scores that were read already."""
    shared = [name for name in ours if name in theirs]
    unknown = [name for name in across if name not in shared]
    if not shared or unknown:
        raise InputError(
            f"there is no score {' or '.join(unknown) or 'at all'} on both sides: here are "
            f"{', '.join(ours) or 'none'}, and there {', '.join(theirs) or 'none'}"
        )
    unlike = [name for name in shared if ours[name]["protocol"] != theirs[name]["protocol"] and name not in across]
    if unlike:
        raise InputError("\n".join(_refusal(name, ours[name], theirs[name]) for name in unlike))
    return [_compared(name, ours[name], theirs[name]) for name in shared]


def _compared(name: str, ours: Told, theirs: Told) -> Compared:
    one, other = (Mean(_number(each["value"]), _number(each["error"])) for each in (ours, theirs))
    return Compared(name, one, other, Mean(one.value - other.value, math.hypot(one.error, other.error)))


def _refusal(name: str, ours: Told, theirs: Told) -> str:
    mine, other = (dict(_flat(each["settings"])) for each in (ours, theirs))
    differing = [
        f"{key} is {mine.get(key, 'not there')} here and {other.get(key, 'not there')} there"
        for key in sorted({*mine, *other})
        if mine.get(key) != other.get(key)
    ]
    return (
        f"{name} was measured by protocol {ours['protocol']} here and {theirs['protocol']} there: "
        f"{'; '.join(differing)}. Measure both alike, or name it to compare it all the same: across={[name]} "
        f"(--across '{name}')"
    )


def _flat(settings: Told, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def read_scores(path: str | Path) -> dict[str, Told]:
    """The scores of a JSON report by name. Raises InputError when it is none."""
    try:
        return by_name(json.loads(Path(path).read_text()))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of `kineograph evaluate`: expected its JSON with scores") from error


def by_name(report: Told) -> dict[str, Told]:
    """The scores of a report that is JSON values."""
    return {each["name"]: each for each in report["scores"] if {"value", "error", "protocol", "settings"} <= {*each}}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _known(value: float) -> float | None:
    """JSON has no NaN, which is the error of one."""
    return None if math.isnan(value) else value


SHOWN = 12  # rows of videos on the page, which carries them in itself

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
th[scope=colgroup] { padding-top: 1.2rem; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
code, small { color: #666; }
video { width: 16rem; max-width: 100%; background: #eee; display: block; }
"""


class Row(NamedTuple):
    """A score by one protocol, by the name of the set; a set without it was measured otherwise, or not at all."""

    aspect: str
    name: str
    protocol: str
    cells: Mapping[str, Mean]


def lines(found: Sequence[Evaluation]) -> list[Row]:
    """The scores of all sets, sorted by aspect: those of different protocols are in different rows."""
    rows: dict[tuple[str, str], Row] = {}
    for each in found:
        for score in each.scores:
            row = rows.setdefault((score.name, score.protocol), Row(score.aspect, score.name, score.protocol, {}))
            rows[score.name, score.protocol] = row._replace(cells={**row.cells, each.name: score.value})
    return sorted(rows.values(), key=lambda row: ASPECTS.index(row.aspect))


def table(found: Sequence[Evaluation]) -> str:
    """All scores in Markdown, with what was left out."""
    names = [each.name for each in found]
    head = ["aspect", "score", *names, "protocol"]
    body = [[row.aspect, row.name, *_cells(row, names), f"`{row.protocol}`"] for row in lines(found)]
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
    skipped = [
        f"- {each.name}: {len(each.survey.problems)} videos could not be read" for each in found if each.survey.problems
    ]
    return "\n".join(
        [
            "# Evaluation\n",
            "Means ± standard errors. Only numbers in one row can be compared: a score of another protocol has a row "
            "of its own, and the .json files say how protocols differ.\n",
            *rows,
            "",
            *skipped,
        ]
    )


def page(found: Sequence[Evaluation]) -> str:
    """One HTML file that needs no other: the table, and the first videos of each set side by side."""
    body = [
        "<h1>Evaluation</h1>",
        "<p>Means ± standard errors. Only numbers in one row can be compared: a score of another protocol has a row of "
        "its own.</p>",
        _scores(found),
        *(_skipped(each) for each in found if each.survey.problems),
        "<h2>Videos</h2>",
        _videos(found),
    ]
    head = f'<meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _scores(found: Sequence[Evaluation]) -> str:
    names = [each.name for each in found]
    parts = [_row("th", ["score", *names, "protocol"])]
    shown = ""
    for row in lines(found):
        if row.aspect != shown:
            shown = row.aspect
            parts.append(f'<tr><th scope="colgroup" colspan="{len(names) + 2}">{html.escape(shown)}</th></tr>')
        cells = "".join(f'<td class="n">{cell}</td>' for cell in _cells(row, names))
        parts.append(f"<tr><td>{html.escape(row.name)}</td>{cells}<td><code>{row.protocol}</code></td></tr>")
    return f"<table>{''.join(parts)}</table>"


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    return [_said(row.cells[name]) if name in row.cells else "-" for name in names]


def _said(value: Mean) -> str:
    return f"{value.value:.3f}" if math.isnan(value.error) else str(value)


def _skipped(each: Evaluation) -> str:
    items = "".join(f"<li>{html.escape(f'{name}: {reason}')}</li>" for name, reason in each.survey.problems)
    return f"<details><summary>{html.escape(each.name)}: not read</summary><ul>{items}</ul></details>"


def _videos(found: Sequence[Evaluation]) -> str:
    columns = [(each.name, dict(_figures(each.survey))) for each in found]
    if found[0].against is not None:
        columns.append(("against", dict(_figures(found[0].against))))
    parts = [_row("th", ["", *(name for name, _ in columns)])]
    for number, keys in enumerate(_paired([[*videos] for _, videos in columns])):
        if number == SHOWN:
            break
        cells = [videos[key]() if key else "" for key, (_, videos) in zip(keys, columns, strict=True)]
        named = html.escape(next(key for key in keys if key))
        parts.append(f"<tr><th>{named}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(parts)}</table>"


def _paired(names: Sequence[Sequence[str]]) -> Iterator[tuple[str | None, ...]]:
    """Names of videos that belong together: the same name in each set, or, if sets share none, the same place."""
    stems = [{str(Path(name).with_suffix("")): name for name in each} for each in names]
    known = list(dict.fromkeys(stem for each in stems for stem in each))
    if all({*stems[0]} & {*each} for each in stems):
        shared = sorted(known, key=lambda stem: -sum(stem in each for each in stems))
        yield from (tuple(each.get(stem) for each in stems) for stem in shared)
        return
    for place in range(max(map(len, names))):
        yield tuple(each[place] if place < len(each) else None for each in names)


def _figures(survey: Survey) -> Iterator[tuple[str, Callable[[], str]]]:
    for video in survey.videos:
        numbers = "<br>".join(f"{html.escape(name)} {value:.3f}" for name, value in video.numbers.items())
        caption = f"{html.escape(video.prompt or '')}<br><small>{numbers}</small>"
        yield video.name, partial(_figure, survey.folder / video.name, caption)


def _figure(path: Path, caption: str) -> str:
    """A video in the page itself, as an mp4, which all browsers show."""
    try:
        video = open_video(path)
    except InputError:
        return "cannot be read"
    with tempfile.TemporaryDirectory() as folder:
        movie = base64.b64encode(video.save(Path(folder) / "video.mp4").read_bytes()).decode()
    source = f"data:video/mp4;base64,{movie}"
    return f'<video controls autoplay loop muted playsinline src="{source}"></video><div>{caption}</div>'


def _row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"
