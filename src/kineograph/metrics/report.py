"""Reports of scores as JSON, Markdown and HTML, and the comparison of two reports.

Scores of different protocols never share a table row, and are compared only on request.
"""

from __future__ import annotations

import base64
import html
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import InputError, load_json
from kineograph.media.video import open_video
from kineograph.metrics.scores import Measurements, Score
from kineograph.metrics.statistics import Estimate, difference_of_independent
from kineograph.metrics.video_metrics import ASPECTS

VERSIONS = ("kineograph", "torch", "transformers", "numpy", "av")

ScoreRecord = Mapping[str, Any]
Scores = Mapping[str, ScoreRecord]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a folder of videos, and the measurements of each video.

    against: the measurements of the reference videos, if there are any.
    """

    name: str
    measurements: Measurements
    scores: tuple[Score, ...]
    against: Measurements | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values. It holds no time, so that equal videos give equal reports."""
        return {
            "name": self.name,
            "folder": str(self.measurements.folder),
            "against": None if self.against is None else str(self.against.folder),
            "versions": {name: version(name) for name in VERSIONS},
            "scores": [
                {
                    "name": each.name, "aspect": each.aspect, **estimate_as_json(each.value),
                    "protocol": each.protocol, "settings": dict(each.settings),
                    **({"doubt": each.doubt} if each.doubt else {}),
                }
                for each in self.scores
            ],
            "videos": [
                {"name": video.name, "prompt": video.prompt, "frames": video.frames, "fps": video.fps,
                 **({} if video.cluster is None else {"cluster": video.cluster}), **video.values}
                for video in self.measurements.videos
            ],
            "skipped": [problem._asdict() for problem in self.measurements.problems],
        }  # fmt: skip


class ScoreComparison(NamedTuple):
    """A score in two reports, and ours minus theirs with the error of two independent sets."""

    name: str
    ours: Estimate
    theirs: Estimate
    difference: Estimate


def compare_reports(
    ours: str | Path, theirs: str | Path, *, ignore_protocol: Collection[str] = ()
) -> list[ScoreComparison]:
    """Compare the scores that two JSON reports of `evaluate` have in common.

    Args:
        ignore_protocol: names of scores to compare although they were measured by different protocols.

    Raises InputError when a file is no report, another score was measured by different protocols (the message names
    the differences), a name is in neither report, or the reports share no score.
    """
    return compare_scores(read_scores(ours), read_scores(theirs), ignore_protocol)


def compare_scores(ours: Scores, theirs: Scores, ignore_protocol: Collection[str] = ()) -> list[ScoreComparison]:
    """Compare scores that were read already; see `compare_reports`."""
    shared = [name for name in ours if name in theirs]
    unknown = [name for name in ignore_protocol if name not in shared]
    if not shared or unknown:
        raise InputError(
            f"there is no score {' or '.join(unknown) or 'at all'} on both sides: here are "
            f"{', '.join(ours) or 'none'}, and there {', '.join(theirs) or 'none'}"
        )
    different = [
        name for name in shared
        if ours[name]["protocol"] != theirs[name]["protocol"] and name not in ignore_protocol
    ]  # fmt: skip
    if different:
        raise InputError("\n".join(_protocol_differences(name, ours[name], theirs[name]) for name in different))
    pairs = [(name, _recorded_estimate(ours[name]), _recorded_estimate(theirs[name])) for name in shared]
    return [ScoreComparison(name, one, other, difference_of_independent(one, other)) for name, one, other in pairs]


def _recorded_estimate(score: ScoreRecord) -> Estimate:
    """Return the estimate of a recorded score; earlier reports do not say its clusters: each video was one."""
    value, error = (math.nan if score[name] is None else score[name] for name in ("value", "error"))
    count = int(score.get("count", 0))
    return Estimate(value, error, count, int(score.get("clusters", count)), score.get("degrees", count - 1))


def estimate_as_json(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON values, with the ends of its 95 % interval; NaN, which JSON cannot hold, is None."""
    every = {**asdict(estimate), "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(value) else value for name, value in every.items()}


def _protocol_differences(name: str, ours: ScoreRecord, theirs: ScoreRecord) -> str:
    mine, other = (dict(_flatten(each["settings"])) for each in (ours, theirs))
    differences = [
        f"{key} is {mine.get(key, 'not there')} here and {other.get(key, 'not there')} there"
        for key in sorted({*mine, *other})
        if mine.get(key) != other.get(key)
    ]
    return (
        f"{name} was measured by protocol {ours['protocol']} here and {theirs['protocol']} there: "
        f"{'; '.join(differences)}. Measure both by one protocol, or compare them all the same by "
        f"--ignore-protocol '{name}' (in Python: ignore_protocol=['{name}'])"
    )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)


def read_scores(path: str | Path) -> dict[str, ScoreRecord]:
    """Return the scores of a JSON report by name. Raises InputError when the file is not a report."""
    try:
        return scores_by_name(load_json(Path(path)))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no report of `kineograph evaluate`: expected its JSON with scores") from error


def scores_by_name(report: Mapping[str, Any]) -> dict[str, ScoreRecord]:
    """Return the scores of a report, given as JSON values, by name. Raises ValueError for a score with another type."""
    scores = {each["name"]: each for each in report["scores"] if {"value", "error", "protocol", "settings"} <= {*each}}
    for each in scores.values():
        numbers = all(isinstance(each[name], int | float | None) for name in ("value", "error"))
        if not numbers or not isinstance(each["settings"], Mapping) or not isinstance(each["protocol"], str):
            raise ValueError(f"the score {each['name']} is damaged")
    return scores


MAX_VIDEO_ROWS = 12  # of the page, which embeds the videos

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
th[scope=colgroup] { padding-top: 1.2rem; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
code, small { color: #666; }
video { width: 16rem; max-width: 100%; background: #eee; display: block; }
"""


class TableRow(NamedTuple):
    """One score by one protocol. cells: its value by name of the evaluation; without those that lack the score."""

    aspect: str
    name: str
    protocol: str
    cells: Mapping[str, Estimate]


def table_rows(evaluations: Sequence[Evaluation]) -> list[TableRow]:
    """Return one row per score and protocol, sorted by aspect."""
    rows: dict[tuple[str, str], TableRow] = {}
    for each in evaluations:
        for score in each.scores:
            row = rows.setdefault((score.name, score.protocol), TableRow(score.aspect, score.name, score.protocol, {}))
            rows[score.name, score.protocol] = row._replace(cells={**row.cells, each.name: score.value})
    return sorted(rows.values(), key=lambda row: ASPECTS.index(row.aspect))


def markdown_table(evaluations: Sequence[Evaluation]) -> str:
    """Return all scores in Markdown, and the number of videos that were left out."""
    names = [each.name for each in evaluations]
    head = ["aspect", "score", *names, "protocol"]
    body = [[row.aspect, row.name, *_cell_texts(row, names), f"`{row.protocol}`"] for row in table_rows(evaluations)]
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
    counts = [(each.name, len(each.measurements.problems)) for each in evaluations]
    skipped = [f"- {name}: {count} videos could not be read" for name, count in counts if count]
    introduction = (
        "Values ± standard errors, with 95 % intervals. Only numbers in one row can be compared: a score of another "
        "protocol has a row of its own, and the .json files say how protocols differ.\n"
    )
    doubts = [f"- {text}" for text in _doubts(evaluations)]
    return "\n".join(["# Evaluation\n", introduction, *rows, "", *doubts, *skipped]).rstrip() + "\n"


def _doubts(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a sentence for each score of each evaluation that does not mean what its name says."""
    found = [f"{each.name}: {score.name} {score.doubt}" for each in evaluations for score in each.scores if score.doubt]
    return [f"{text}." for text in found]


def html_page(evaluations: Sequence[Evaluation]) -> str:
    """Return a self-contained HTML page: the table, and the first videos of each evaluation side by side."""
    body = [
        "<h1>Evaluation</h1>",
        "<p>Values ± standard errors, with 95 % intervals. Only numbers in one row can be compared: a score of another "
        "protocol has a row of its own.</p>",
        _score_table(evaluations),
        *(f"<p><small>{html.escape(text)}</small></p>" for text in _doubts(evaluations)),
        *(_problem_list(each) for each in evaluations if each.measurements.problems),
        "<h2>Videos</h2>",
        _video_table(evaluations),
    ]
    head = f'<meta charset="utf-8"><title>Evaluation</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _score_table(evaluations: Sequence[Evaluation]) -> str:
    names = [each.name for each in evaluations]
    parts = [_table_row("th", ["score", *names, "protocol"])]
    aspect = ""
    for row in table_rows(evaluations):
        if row.aspect != aspect:
            aspect = row.aspect
            parts.append(f'<tr><th scope="colgroup" colspan="{len(names) + 2}">{html.escape(aspect)}</th></tr>')
        cells = "".join(f'<td class="n">{cell}</td>' for cell in _cell_texts(row, names))
        parts.append(f"<tr><td>{html.escape(row.name)}</td>{cells}<td><code>{row.protocol}</code></td></tr>")
    return f"<table>{''.join(parts)}</table>"


def _cell_texts(row: TableRow, names: Sequence[str]) -> list[str]:
    return [str(row.cells.get(name, "-")) for name in names]


def _problem_list(each: Evaluation) -> str:
    items = "".join(f"<li>{html.escape(f'{name}: {reason}')}</li>" for name, reason in each.measurements.problems)
    return f"<details><summary>{html.escape(each.name)}: not read</summary><ul>{items}</ul></details>"


def _video_table(evaluations: Sequence[Evaluation]) -> str:
    columns = [(each.name, dict(_figures(each.measurements))) for each in evaluations]
    if evaluations[0].against is not None:
        columns.append(("against", dict(_figures(evaluations[0].against))))
    parts = [_table_row("th", ["", *(name for name, _ in columns)])]
    for keys in islice(_match_videos([[*videos] for _, videos in columns]), MAX_VIDEO_ROWS):
        cells = [videos[key]() if key else "" for key, (_, videos) in zip(keys, columns, strict=True)]
        heading = html.escape(next(key for key in keys if key))
        parts.append(f"<tr><th>{heading}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(parts)}</table>"


def _match_videos(names: Sequence[Sequence[str]]) -> Iterator[tuple[str | None, ...]]:
    """Match videos of several folders: by equal names or, if the folders share none, by position."""
    stems = [{str(Path(name).with_suffix("")): name for name in each} for each in names]
    known = list(dict.fromkeys(stem for each in stems for stem in each))
    if all({*stems[0]} & {*each} for each in stems):
        shared = sorted(known, key=lambda stem: -sum(stem in each for each in stems))
        yield from (tuple(each.get(stem) for each in stems) for stem in shared)
        return
    yield from zip_longest(*names)


def _figures(measurements: Measurements) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name of each video and a function that renders it with its prompt and values."""
    for video in measurements.videos:
        values = "<br>".join(f"{html.escape(name)} {value:.3f}" for name, value in video.values.items())
        caption = f"{html.escape(video.prompt or '')}<br><small>{values}</small>"
        yield video.name, partial(_figure, measurements.folder / video.name, caption)


def _figure(path: Path, caption: str) -> str:
    """Return a video embedded in the page as mp4, which all browsers show."""
    try:
        video = open_video(path)
    except InputError:
        return "cannot be read"
    with tempfile.TemporaryDirectory() as folder:
        encoded = base64.b64encode(video.save(Path(folder) / "video.mp4").read_bytes()).decode()
    source = f"data:video/mp4;base64,{encoded}"
    return f'<video controls autoplay loop muted playsinline src="{source}"></video><div>{caption}</div>'


def _table_row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"
