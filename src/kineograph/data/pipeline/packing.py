"""All records of a run become one set of shards, in an order that does not depend on the order of work."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kineograph.data.files import instead_of
from kineograph.data.pipeline.captioning import captions_path, read_captions
from kineograph.data.pipeline.likeness import Print, duplicates
from kineograph.data.pipeline.records import WORK, Kept, Lost, add, clips_path, read_record, record_path, write_text
from kineograph.data.pipeline.settings import DataSettings
from kineograph.data.pipeline.sources import Unit


class Row(NamedTuple):
    """A clip that is kept, and the file it comes from."""

    unit: Unit
    clip: Kept


class Drop(NamedTuple):
    """What was dropped, from which file, and why."""

    file: str
    start: float
    why: str
    told: str


class Choice(NamedTuple):
    """The clips that are kept, by name, and what was dropped."""

    rows: list[Row]
    drops: list[Drop]


def choose(units: Sequence[Unit], settings: DataSettings) -> Choice:
    """What is kept of all that was cut: of duplicates one with a label, and the first by name."""
    records = [(unit, read_record(record_path(settings.output, unit))) for unit in units]
    rows = [Row(unit, clip) for unit, record in records for clip in record.kept]
    drops = [_drop(unit, lost) for unit, record in records for lost in record.lost]
    bits = settings.filters.duplicate_bits
    prints = [Print(int(not unit.label), clip.name, clip.kind, int(clip.print, 16)) for unit, clip in rows]
    same = {} if bits is None else duplicates(prints, bits)
    drops += [
        Drop(unit.name, clip.start, "duplicate", f"looks like {same[clip.name]}")
        for unit, clip in rows
        if clip.name in same
    ]
    return Choice(sorted((row for row in rows if row.clip.name not in same), key=lambda row: row.clip.name), drops)


def told_of(choice: Choice, settings: DataSettings) -> tuple[Choice, dict[str, str]]:
    """The clips that have a caption, if captions are asked for, and the captions, else labels, by the clips' names."""
    if settings.captions is None:
        return choice, {clip.name: unit.label for unit, clip in choice.rows}
    paths = {unit: captions_path(settings.output, settings.captions, unit) for unit, _ in choice.rows}
    answers = {unit: read_captions(path) for unit, path in paths.items()}
    captions = {name: text for each in answers.values() for name, text in each.captions.items()}
    rows = [row for row in choice.rows if row.clip.name in captions]
    mute = [row for row in choice.rows if row.clip.name not in captions]
    drops = [
        Drop(unit.name, clip.start, "caption", answers[unit].failed.get(clip.name, "was not asked for"))
        for unit, clip in mute
    ]
    return Choice(rows, [*choice.drops, *drops]), captions


def plan(choice: Choice, captions: dict[str, str], settings: DataSettings) -> dict[str, str]:
    """What goes into each shard, as JSON by the shards' names."""
    size, rows = settings.clips_per_shard, [_told(row, captions[row.clip.name], settings) for row in choice.rows]
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return {f"clips-{number:06d}.tar": json.dumps(part) for number, part in enumerate(parts)}


def is_packed(output: Path, name: str, told: str) -> bool:
    """Whether a shard is there and holds just that."""
    done = _done(output, name)
    return (output / name).exists() and done.exists() and done.read_text() == _digest(told)


def pack(name: str, settings: DataSettings) -> str:
    """Writes a shard as planned: for each clip its .mp4, its caption in .txt, and what is known of it in .json."""
    told = plan_path(settings.output, name).read_text(encoding="utf-8")
    with instead_of(settings.output / name) as part, tarfile.open(part, "w") as tar:
        for row in json.loads(told):
            clips = settings.output / row.pop("tar")
            with tarfile.open(clips, "r:") as cut:
                movie = cut.extractfile(f"{row['name']}.mp4")
                assert movie is not None
                add(tar, f"{row['name']}.mp4", movie.read())
            add(tar, f"{row['name']}.txt", row["caption"].encode())
            add(tar, f"{row['name']}.json", json.dumps(row).encode())
    write_text(_done(settings.output, name), _digest(told))
    return name


def plan_path(output: Path, name: str) -> Path:
    """Where the plan of a shard is."""
    return output / WORK / "shards" / f"{name}.json"


def _done(output: Path, name: str) -> Path:
    return plan_path(output, name).with_suffix(".done")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _drop(unit: Unit, lost: Lost) -> Drop:
    return Drop(unit.name, lost.start, lost.why, lost.told)


def _told(row: Row, caption: str, settings: DataSettings) -> dict[str, object]:
    unit, clip = row
    known: dict[str, object] = {"name": clip.name, "caption": caption, "label": unit.label, "file": unit.name}
    known |= {"source": settings.sources[unit.source].source}
    known |= {name: value for name, value in clip._asdict().items() if name != "name"}
    return known | {"tar": clips_path(settings.output, unit).relative_to(settings.output).as_posix()}
