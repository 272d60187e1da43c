"""A study: cases, the ways in which each is made a video, what is measured of the videos, and what that should show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.errors import InputError
from kineograph.metrics.distances import Mean, mean
from kineograph.metrics.features import Frames
from kineograph_lab.studies.protocol import Case, Record, keep, kept
from kineograph_lab.studies.report import Claim, Part

SHOWN = range(3)  # the numbers of cases whose frames go into the report

SEEN = {
    "thing": "frames with the prompt's thing",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
    "always the same": "videos with one thing and colour throughout",
    "individual": "likeness of the individual to the first frame's",
    "text": "CLIP score (100 cos)",
}
"""What the numbers mean that most studies have."""

Film = Callable[[Sequence[Case]], Sequence[Frames]]


Sets = Callable[[Sequence[Record]], Mapping[str, Mapping[str, Mean]]]  # numbers of all videos of an arm together


def whole(frames: Frames) -> Frames:
    return frames


def every_third(frames: Frames) -> UInt8[np.ndarray, "third h w 3"]:
    return frames[::3]


def alone(made: Sequence[Record]) -> Mapping[str, Mapping[str, Mean]]:
    """Every video is measured by itself."""
    return {}


class Untrained(InputError):
    """A study's network, which does not ship, was not trained on this machine."""


def untrained(file: Path, *stages: str) -> Untrained:
    """What to say where the recipe's stages did not leave a file yet."""
    command = f"python -m kineograph_lab.recipe.run --from-shipped --stages {','.join(stages)}"
    return Untrained(f"there is no {file}: train it first, by {command}")


class Study(NamedTuple):
    """One comparison of a paper.

    name      of its files
    title     of its part of the report
    settings  all that its numbers depend on besides the model and the witnesses
    arms      the ways of making the videos of some consecutive cases
    measured  named numbers of a video of a case, and whatever `sets` is taken from
    rows      what the numbers mean that stand in the table
    at_once   how many videos are made together
    pictured  the numbers of the cases whose frames go into the report
    shown     which frames of a video those are
    sets      further rows of the table: of each arm's videos together
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    cases: Sequence[Case]
    arms: Mapping[str, Film]
    measured: Callable[[Frames, Case], Mapping[str, Any]]
    claims: Callable[[Sequence[Record]], list[Claim]]
    rows: Mapping[str, str]
    at_once: int = 1
    pictured: Collection[int] = SHOWN
    shown: Callable[[Frames], Frames] = whole
    sets: Sets = alone


def records(study: Study, folder: Path, stamp: Record) -> Iterator[Record]:
    """A record of every case and arm, those of an earlier run first; the others are kept as they are made.

    stamp: what every record says besides; records of an earlier run count when their "protocol" is the same.
    """
    file = folder / f"{study.name}.jsonl"
    wanted = {(arm, case.number) for arm in study.arms for case in study.cases}
    earlier = {(each["arm"], each["case"]): each for each in kept(file, stamp["protocol"])}
    yield from (record for key, record in earlier.items() if key in wanted)
    for start in range(0, len(study.cases), study.at_once):
        batch = study.cases[start : start + study.at_once]
        for name, film in study.arms.items():
            if all((name, case.number) in earlier for case in batch):
                continue
            for case, frames in zip(batch, film(batch), strict=True):
                if (name, case.number) in earlier:
                    continue
                record = {**stamp, "arm": name, "case": case.number, "prompt": case.prompt}
                record |= study.measured(frames, case)
                if case.number in study.pictured:
                    side_by_side = np.concatenate(list(study.shown(frames)), axis=1)
                    Image.fromarray(side_by_side).save(folder / strip(study, case, name))
                keep(file, record)
                yield record


def strip(study: Study, case: Case, arm: str) -> str:
    """The file name of the frames of a case side by side."""
    return f"{study.name}-{case.number}-{arm.replace(' ', '-')}.png"


def part(study: Study, made: Sequence[Record], folder: Path) -> Part:
    """What a report says of a study; `folder` is where its pictures are, as the report sees it."""
    pictures = {
        case.prompt: {arm: str(folder / strip(study, case, arm)) for arm in study.arms}
        for case in study.cases
        if case.number in study.pictured
    }
    return Part(study.title, study.claims(made), {**table(study, made), **study.sets(made)}, pictures)


def table(study: Study, made: Sequence[Record]) -> dict[str, dict[str, Mean]]:
    """Every metric of every arm."""
    return {row: {name: mean(column(made, name, metric)) for name in study.arms} for metric, row in study.rows.items()}


def column(made: Sequence[Record], arm: str, metric: str) -> list[float]:
    """A metric of all cases that have it, in their order."""
    ordered = sorted((record for record in made if record["arm"] == arm), key=lambda record: record["case"])
    return [record[metric] for record in ordered if metric in record]
