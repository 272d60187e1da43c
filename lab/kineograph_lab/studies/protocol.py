"""Held-out cases, and the files in which their records are kept between runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kineograph_lab.world.captions import caption_clip, caption_image
from kineograph_lab.world.world import ShotSpec, sample_shots

SHOT_SEED = 20231  # of the shots that prompts are taken from
FIRST_SEED = 70_000  # of the noise of case 0; case n has n more

EARLIER = "earlier_protocols"  # of a record that was given another id by hand: [id, first commit] of each

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A prompt, and the shot of the pocket world that it describes.

    cluster: number of what was trained or sampled independently; by default the case itself.
    """

    number: int
    prompt: str
    shot: ShotSpec
    cluster: int | None = None

    @property
    def subject(self) -> str:
        """Kind of the main subject."""
        return self.shot.things[0].kind

    @property
    def colour(self) -> str:
        """Colour of the main subject."""
        return self.shot.things[0].colour

    @property
    def scene(self) -> str:
        """Scene around it."""
        return self.shot.scene

    @property
    def motion(self) -> str:
        """Motion of the main subject."""
        return self.shot.things[0].motion

    @property
    def seed(self) -> int:
        """Seed of the case's noise."""
        return FIRST_SEED + self.number


def held_out_cases(count: int) -> list[Case]:
    """Return the first `count` prompts of one subject, in a colour or scene that training never combined it with.

    They are captions of images, without motion. A larger count begins with the same cases.
    """
    shots = (shot for shot in sample_shots(SHOT_SEED, split="held_out") if len(shot.things) == 1)
    return [
        Case(number, caption_image(shot, np.random.default_rng(number)), shot)
        for number, shot in enumerate(islice(shots, count))
    ]


def moving_cases(count: int) -> list[Case]:
    """Return the first `count` captions of clips with one moving subject before a still camera, held out likewise."""
    shots = (
        shot
        for shot in sample_shots(SHOT_SEED + 1, split="held_out")
        if len(shot.things) == 1 and shot.camera == "still"
    )
    return [
        Case(number, caption_clip(shot, np.random.default_rng(number)), shot)
        for number, shot in enumerate(islice(shots, count))
    ]


def load_records(path: Path, protocol: str) -> list[Record]:
    """Return the records that earlier runs of this protocol wrote to a file, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(parse_record, lines) if record.get("protocol") == protocol]


def last_protocol(path: Path) -> str:
    """Return the protocol of the last record in a file; "" if there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((record["protocol"] for record in map(parse_record, reversed(lines)) if "protocol" in record), "")


def describe_records(records: Sequence[Record]) -> dict[str, Any]:
    """Return the count of records, their protocol ids and commits, and what is in doubt about them."""
    doubtful = [record for record in records if EARLIER in record]
    ids = ", ".join(sorted({earlier for record in doubtful for earlier, _ in record[EARLIER]}))
    text = (
        f"{len(doubtful)} of {len(records)} records were measured under other protocol ids and given this one by hand, "
        f"without being measured again ({ids}). Whether settings and code gave the same numbers was not checked then."
    )
    return {
        "count": len(records),
        "protocols": dict(Counter(record["protocol"] for record in records)),
        "commits": dict(Counter(record["commit"] for record in records)),
        "doubt": text if doubtful else None,
    }


def recorded_cluster(record: Record) -> int:
    """Return the number of a record's cluster, by default that of its case."""
    cluster = record.get("cluster")
    return record["case"] if cluster is None else cluster


def append_record(path: Path, record: Record) -> None:
    """Append a record to a file of JSON lines, so that a run that is stopped loses only the video at work."""
    with path.open("a") as file:
        file.write("\n" + json.dumps(record))  # a line that was cut short stays a line of its own


def parse_record(line: str) -> Record:
    """Return the record of a line; empty for a line that is empty or was cut short."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}
