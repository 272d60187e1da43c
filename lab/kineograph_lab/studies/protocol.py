"""Which cases are measured, and what of it is kept: whoever measures again measures the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kineograph_lab.world.captions import caption_clip, caption_image
from kineograph_lab.world.world import Shot, sample_shots

SHOTS = 20231  # the seed of the shots that prompts are taken from
FIRST_SEED = 70_000  # of the noise of case 0; case n has n more

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One prompt, and the shot that it was taken from: what a picture of it shows."""

    number: int
    prompt: str
    shot: Shot

    @property
    def thing(self) -> str:
        return self.shot.things[0].kind

    @property
    def colour(self) -> str:
        return self.shot.things[0].colour

    @property
    def scene(self) -> str:
        return self.shot.scene

    @property
    def motion(self) -> str:
        return self.shot.things[0].motion

    @property
    def seed(self) -> int:
        return FIRST_SEED + self.number


def held_out_cases(count: int) -> list[Case]:
    """The first `count` prompts of one thing each, in a colour or a scene that training never showed it in.

    They are captions of single pictures, so that they say nothing of motion. Any number begins with the same cases.
    """
    alone = (shot for shot in sample_shots(SHOTS, split="held_out") if len(shot.things) == 1)
    return [
        Case(number, caption_image(shot, np.random.default_rng(number)), shot)
        for number, shot in enumerate(islice(alone, count))
    ]


def moving_cases(count: int) -> list[Case]:
    """The same for videos: captions of clips, which say how the thing moves, before a camera that stands still."""
    alone = (
        shot for shot in sample_shots(SHOTS + 1, split="held_out") if len(shot.things) == 1 and shot.camera == "still"
    )
    return [
        Case(number, caption_clip(shot, np.random.default_rng(number)), shot)
        for number, shot in enumerate(islice(alone, count))
    ]


def kept(path: Path, protocol: str) -> list[Record]:
    """The records of an earlier run of this protocol, in the order in which they were made."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(_read, lines) if record.get("protocol") == protocol]


def keep(path: Path, record: Record) -> None:
    """Adds a record to the file, so that a run that is stopped loses only what it was at."""
    with path.open("a") as file:
        file.write("\n" + json.dumps(record))  # a line that was cut short stays a line of its own


def _read(line: str) -> Record:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # empty, or cut short
        return {}
