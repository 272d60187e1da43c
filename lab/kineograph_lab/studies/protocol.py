"""Cases, protocols, and the files in which records are kept between runs.

A protocol is everything that a study's numbers depend on: hashes of weights, settings, defaults of options, versions of
code, number format and split. A study's protocols, by their ids, are in the file `<study>.protocols.json` beside its
records. That of the last record locks the study: tests/lab/studies/test_locks.py fails when a default changes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.media.files import replace_atomically
from kineograph.media.metadata import settings_id
from kineograph.models.loading.provenance import json_value
from kineograph.options import declared
from kineograph_lab.studies.splits import DEVELOPMENT, Split, clip_shots, image_shots, seed_offset
from kineograph_lab.world.captions import caption_clip, caption_image
from kineograph_lab.world.world import ShotSpec

FIRST_SEED = 70_000  # of the noise of case 0; case n has n more

# Versions of code that records depend on. tests/lab/studies/test_versions.py fails when an output changes: raise the
# version then, which makes all records stale, or undo the change.
SAMPLER_VERSION, METRIC_VERSION, WORLD_VERSION = 1, 2, 1

STALE = "stale"  # of a protocol under which nothing is measured any more: the reason
EARLIER = "earlier_protocols"  # of a record that was given another id by hand: [id, first commit] of each

Record = dict[str, Any]
Protocol = dict[str, Any]  # models, settings, defaults, versions, numbers and split: JSON values
WriteCaption = Callable[[ShotSpec, np.random.Generator], str]


@dataclass(frozen=True)
class Case:
    """A prompt, and the shot of the pocket world that it describes.

    cluster: number of what was trained or sampled independently; by default the case itself.
    """

    number: int
    prompt: str
    shot: ShotSpec
    cluster: int | None = None
    split: Split = DEVELOPMENT

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
        return FIRST_SEED + seed_offset(self.split) + self.number


def held_out_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return the first `count` prompts of one subject, in a colour or scene that training never combined it with.

    They are captions of images, without motion. A larger count begins with the same cases.
    """
    return _captioned(image_shots(split), count, split, caption_image)


def moving_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return the first `count` captions of clips with one moving subject before a still camera, held out likewise."""
    return _captioned(clip_shots(split), count, split, caption_clip)


def _captioned(shots: Iterator[ShotSpec], count: int, split: Split, write_caption: WriteCaption) -> list[Case]:
    first = seed_offset(split)
    return [
        Case(number, write_caption(shot, np.random.default_rng(first + number)), shot, split=split)
        for number, shot in enumerate(islice(shots, count))
    ]


def declare_protocol(
    models: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: Sequence[type],
    numbers: Mapping[str, str],
    split: Split,
) -> Protocol:
    """Return a study's protocol.

    Args:
        models: hashes of the weight files of every network that generates or measures.
        options: TypedDicts of the options that its videos depend on; their defaults are a part of the protocol.
        numbers: dtype, device and engine.
    """
    versions = {"sampler": SAMPLER_VERSION, "metric": METRIC_VERSION, "world": WORLD_VERSION}
    return {
        "models": json_value(models), "settings": json_value(settings), "defaults": option_defaults(options),
        "versions": versions, "numbers": dict(numbers), "split": split,
    }  # fmt: skip


def option_defaults(options: Sequence[type]) -> dict[str, Any]:
    """Return the default of every option that changes frames, as JSON values."""
    return {name: json_value(each.default) for name, each in declared(*options).items() if each.recorded}


def find_protocol(protocol: Protocol, known: Mapping[str, Protocol]) -> str:
    """Return the id of the same protocol among the known ones, or a new one.

    An option that was added since changes nothing: its default is what was done before it.
    """
    for number, each in known.items():
        defaults = {name: protocol["defaults"].get(name) for name in each["defaults"]}
        if each == {**protocol, "defaults": defaults} and each["defaults"].keys() <= protocol["defaults"].keys():
            return number
    return settings_id(protocol)


def protocols_file(folder: Path, study: str) -> Path:
    """Return the file of a study's protocols."""
    return folder / f"{study}.protocols.json"


def read_protocols(folder: Path, study: str) -> dict[str, Protocol]:
    """Return a study's protocols by their ids."""
    file = protocols_file(folder, study)
    return json.loads(file.read_text()) if file.exists() else {}


def lock_protocol(folder: Path, study: str, number: str, protocol: Protocol) -> None:
    """Add a study's protocol to its file, unless it is there."""
    known = read_protocols(folder, study)
    if number not in known:
        with replace_atomically(protocols_file(folder, study)) as part:
            part.write_text(json.dumps({**known, number: protocol}, indent=1, ensure_ascii=False) + "\n")


def changed_defaults(locked: Protocol, options: Sequence[type]) -> list[str]:
    """Return a clause for each default that is another one than when the study was locked."""
    now = option_defaults(options)
    return [
        f"`{name}` was {was!r}, is {now[name]!r}" if name in now else f"`{name}` was {was!r}, is gone"
        for name, was in locked["defaults"].items()
        if name not in now or now[name] != was
    ]


def load_records(path: Path, protocol: str) -> list[Record]:
    """Return the records that earlier runs of this protocol wrote to a file, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(parse_record, lines) if record.get("protocol") == protocol]


def last_protocol(path: Path) -> str:
    """Return the protocol of the last record in a file; "" if there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((record["protocol"] for record in map(parse_record, reversed(lines)) if "protocol" in record), "")


def describe_records(records: Sequence[Record], protocol: Protocol) -> dict[str, Any]:
    """Return the count of records, their split, protocol ids and commits, and what is in doubt about them."""
    return {
        "count": len(records),
        "splits": dict(Counter(record.get("split", DEVELOPMENT) for record in records)),
        "protocols": dict(Counter(record["protocol"] for record in records)),
        "commits": dict(Counter(record["commit"] for record in records)),
        "doubt": " ".join([*_stale(protocol), *_stamped_by_hand(records), *_of_several_trainings(records)]) or None,
    }


def _stale(protocol: Protocol) -> Iterator[str]:
    if STALE in protocol:
        yield protocol[STALE]


def _stamped_by_hand(records: Sequence[Record]) -> Iterator[str]:
    doubtful = [record for record in records if EARLIER in record]
    ids = ", ".join(sorted({earlier for record in doubtful for earlier, _ in record[EARLIER]}))
    if doubtful:
        yield (
            f"{len(doubtful)} of {len(records)} records were measured under other protocol ids and given this one by hand, "
            f"without being measured again ({ids}). Whether settings and code gave the same numbers was not checked then."
        )


def _of_several_trainings(records: Sequence[Record]) -> Iterator[str]:
    """Yield a doubt if the records of an arm and cluster, which share what was trained, have several hashes of it."""
    hashes: dict[tuple[str, int], set[str]] = {}
    for record in records:
        hashes.setdefault((record["arm"], recorded_cluster(record)), set()).add(json.dumps(record.get("trained")))
    several = [f"{arm}, cluster {cluster}" for (arm, cluster), found in hashes.items() if len(found) > 1]
    if several:
        yield f"Adapters were trained again among the records of {'; '.join(several)}."


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
