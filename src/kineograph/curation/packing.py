"""What a run came to: counts, each clip, and each thing that was dropped and why. Written last, when all is done."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.curation.captions import captions_path, read_captions
from kineograph.curation.filters import HashedClip, find_duplicates
from kineograph.curation.records import (
    WORK,
    ClipRecord,
    DropRecord,
    add_to_tar,
    clips_path,
    read_json_file,
    read_record,
    record_path,
    write_text,
)
from kineograph.curation.settings import CurationSettings
from kineograph.curation.sources import SourceFile, SourceListing
from kineograph.media.files import replace_atomically

MANIFEST, CLIPS, DROPPED = "manifest.json", "clips.jsonl", "dropped.jsonl"


def write_manifest(settings: CurationSettings, found: SourceListing, choice: Choice, plan: Mapping[str, str]) -> None:
    """manifest.json with the counts, clips.jsonl, and dropped.jsonl, which names each file and says why."""
    output, drops = settings.output, [*_left_out(found), *choice.drops]
    shards = {name: json.loads(told) for name, told in plan.items()}
    rows = [{"shard": name, **_public(row)} for name, part in shards.items() for row in part]
    write_text(output / CLIPS, _lines(rows))
    write_text(output / DROPPED, _lines(drop._asdict() for drop in sorted(drops)))
    told = {
        "made_with": f"kineograph {version('kineograph')}",
        "files": _files(found, drops),
        "clips": len(choice.rows),
        "seconds": round(sum(clip.frames / clip.fps for _, clip in choice.rows), 3),
        "without_caption": sum(not row["caption"] for row in rows),
        "dropped": dict(sorted(Counter(drop.why for drop in drops).items())),
        "shards": [{"name": name, "clips": len(part)} for name, part in shards.items()],
        "settings": settings.model_dump(mode="json", exclude={"output", "run"}),
    }
    write_text(output / MANIFEST, json.dumps(told, indent=1))


def read_manifest(output: Path) -> Mapping[str, Any]:
    """The manifest of a run that is done; an empty one before."""
    return read_json_file(output / MANIFEST)


def read_dropped(output: Path) -> list[Drop]:
    """What a run that is done has dropped."""
    lines = (output / DROPPED).read_text(encoding="utf-8").splitlines()
    return [DroppedClip(**json.loads(line)) for line in lines]


def _files(found: SourceListing, drops: Sequence[Drop]) -> dict[str, int]:
    kinds = Counter(unit.kind for unit in found.units)
    broken = sum(drop.why == "broken" for drop in drops)
    return {"videos": kinds["video"], "pictures": kinds["image"], "broken": broken, "left_out": len(found.problems)}


def _left_out(found: SourceListing) -> list[Drop]:
    return [DroppedClip(name, 0.0, "left out", reason) for name, reason in found.problems]


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "tar"}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


class SelectedClip(NamedTuple):
    """A clip that is kept, and the file it comes from."""

    unit: SourceFile
    clip: ClipRecord


class DroppedClip(NamedTuple):
    """What was dropped, from which file, and why."""

    file: str
    start: float
    why: str
    told: str


class Selection(NamedTuple):
    """The clips that are kept, by name, and what was dropped."""

    rows: list[SelectedClip]
    drops: list[DroppedClip]


def select_clips(units: Sequence[SourceFile], settings: CurationSettings) -> Selection:
    """What is kept of all that was cut: of duplicates one with a label, and the first by name."""
    records = [(unit, read_record(record_path(settings.output, unit))) for unit in units]
    rows = [SelectedClip(unit, clip) for unit, record in records for clip in record.kept]
    drops = [_drop(unit, lost) for unit, record in records for lost in record.lost]
    bits = settings.filters.duplicate_bits
    prints = [HashedClip(int(not unit.label), clip.name, clip.kind, int(clip.print, 16)) for unit, clip in rows]
    same = {} if bits is None else find_duplicates(prints, bits)
    drops += [
        DroppedClip(unit.name, clip.start, "duplicate", f"looks like {same[clip.name]}")
        for unit, clip in rows
        if clip.name in same
    ]
    return Selection(sorted((row for row in rows if row.clip.name not in same), key=lambda row: row.clip.name), drops)


def attach_captions(choice: Selection, settings: CurationSettings) -> tuple[Selection, dict[str, str]]:
    """The clips that have a caption, if captions are asked for, and the captions, else labels, by the clips' names."""
    if settings.captions is None:
        return choice, {clip.name: unit.label for unit, clip in choice.rows}
    paths = {unit: captions_path(settings.output, settings.captions, unit) for unit, _ in choice.rows}
    answers = {unit: read_captions(path) for unit, path in paths.items()}
    captions = {name: text for each in answers.values() for name, text in each.captions.items()}
    rows = [row for row in choice.rows if row.clip.name in captions]
    mute = [row for row in choice.rows if row.clip.name not in captions]
    drops = [
        DroppedClip(unit.name, clip.start, "caption", answers[unit].failed.get(clip.name, "was not asked for"))
        for unit, clip in mute
    ]
    return Selection(rows, [*choice.drops, *drops]), captions


def plan_shards(choice: Selection, captions: dict[str, str], settings: CurationSettings) -> dict[str, str]:
    """What goes into each shard, as JSON by the shards' names."""
    size, rows = settings.clips_per_shard, [_told(row, captions[row.clip.name], settings) for row in choice.rows]
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return {f"clips-{number:06d}.tar": json.dumps(part) for number, part in enumerate(parts)}


def is_shard_current(output: Path, name: str, told: str) -> bool:
    """Whether a shard is there and holds just that."""
    done = _done(output, name)
    return (output / name).exists() and done.exists() and done.read_text() == _digest(told)


def write_shard(name: str, settings: CurationSettings) -> str:
    """Writes a shard as planned: for each clip its .mp4, its caption in .txt, and what is known of it in .json."""
    told = shard_plan_path(settings.output, name).read_text(encoding="utf-8")
    with replace_atomically(settings.output / name) as part, tarfile.open(part, "w") as tar:
        for row in json.loads(told):
            clips = settings.output / row.pop("tar")
            with tarfile.open(clips, "r:") as cut:
                movie = cut.extractfile(f"{row['name']}.mp4")
                assert movie is not None
                add_to_tar(tar, f"{row['name']}.mp4", movie.read())
            add_to_tar(tar, f"{row['name']}.txt", row["caption"].encode())
            add_to_tar(tar, f"{row['name']}.json", json.dumps(row).encode())
    write_text(_done(settings.output, name), _digest(told))
    return name


def shard_plan_path(output: Path, name: str) -> Path:
    """Where the plan of a shard is."""
    return output / WORK / "shards" / f"{name}.json"


def _done(output: Path, name: str) -> Path:
    return shard_plan_path(output, name).with_suffix(".done")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _drop(unit: SourceFile, lost: DropRecord) -> DroppedClip:
    return DroppedClip(unit.name, lost.start, lost.why, lost.told)


def _told(row: SelectedClip, caption: str, settings: CurationSettings) -> dict[str, object]:
    unit, clip = row
    known: dict[str, object] = {"name": clip.name, "caption": caption, "label": unit.label, "file": unit.name}
    known |= {"source": settings.sources[unit.source].source}
    known |= {name: value for name, value in clip._asdict().items() if name != "name"}
    return known | {"tar": clips_path(settings.output, unit).relative_to(settings.output).as_posix()}
