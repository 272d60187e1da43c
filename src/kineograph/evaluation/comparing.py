"""What a file says of a set's scores, and two such files side by side: never silently those of different protocols."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import InputError
from kineograph.evaluation.report import Mean
from kineograph.evaluation.scores import Score, Survey

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
