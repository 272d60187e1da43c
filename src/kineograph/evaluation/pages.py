"""What an evaluation says to people: a table in Markdown, and one HTML file with the videos side by side."""

from __future__ import annotations

import base64
import html
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kineograph.data.video import open_video
from kineograph.errors import InputError
from kineograph.evaluation.comparing import Evaluation
from kineograph.evaluation.gauges import ASPECTS
from kineograph.evaluation.report import Mean
from kineograph.evaluation.scores import Survey

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
