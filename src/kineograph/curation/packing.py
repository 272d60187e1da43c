"""Selection of clips, their captions, shards and the manifest."""

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
    FileRecord,
    add_to_tar,
    check_clips,
    clips_path,
    load_record,
    read_json_file,
    record_path,
    write_text,
)
from kineograph.curation.settings import CurationSettings
from kineograph.curation.sources import SourceFile, SourceListing
from kineograph.errors import InputError
from kineograph.media.files import replace_atomically

MANIFEST, CLIPS, DROPPED = "manifest.json", "clips.jsonl", "dropped.jsonl"


class SelectedClip(NamedTuple):
    """An accepted clip, and the file it comes from."""

    file: SourceFile
    clip: ClipRecord


class DroppedClip(NamedTuple):
    """A dropped clip or file, with the reason. start: seconds into the file."""

    file: str
    start: float
    reason: str
    detail: str


class Selection(NamedTuple):
    """The clips for the shards, by name, and all that was dropped."""

    clips: list[SelectedClip]
    dropped: list[DroppedClip]


def select_clips(files: Sequence[SourceFile], settings: CurationSettings) -> Selection:
    """Select the accepted clips without duplicates. Of duplicates one with a label stays, and the first by name."""
    records = [(file, _load_finished(record_path(settings.output, file))) for file in files]
    clips = [SelectedClip(file, clip) for file, record in records for clip in record.clips]
    dropped = [DroppedClip(file.name, *drop) for file, record in records for drop in record.dropped]
    bits = settings.filters.duplicate_bits
    hashed = [
        HashedClip(int(not file.label), clip.name, clip.kind, int(clip.perceptual_hash, 16)) for file, clip in clips
    ]
    originals = {} if bits is None else find_duplicates(hashed, bits)
    dropped += [
        DroppedClip(file.name, clip.start, "duplicate", f"looks like {originals[clip.name]}")
        for file, clip in clips
        if clip.name in originals
    ]
    unique = (each for each in clips if each.clip.name not in originals)
    return Selection(sorted(unique, key=lambda each: each.clip.name), dropped)


def _load_finished(path: Path) -> FileRecord:
    record = load_record(path)
    if record is None:
        raise InputError(f"{path} was damaged while this run used it: run the same command again")
    return record


def attach_captions(selection: Selection, settings: CurationSettings) -> tuple[Selection, dict[str, str]]:
    """Return the clips that have a caption, and the captions by the clips' names.

    Without caption settings, return all clips, and their labels as captions.
    """
    if settings.captions is None:
        return selection, {clip.name: file.label for file, clip in selection.clips}
    paths = {file: captions_path(settings.output, settings.captions, file) for file, _ in selection.clips}
    records = {file: read_captions(path) for file, path in paths.items()}
    captions = {name: text for record in records.values() for name, text in record.captions.items()}
    captioned = [each for each in selection.clips if each.clip.name in captions]
    dropped = [
        DroppedClip(file.name, clip.start, "caption", records[file].failed.get(clip.name, "was not asked for"))
        for file, clip in selection.clips
        if clip.name not in captions
    ]
    return Selection(captioned, [*selection.dropped, *dropped]), captions


def plan_shards(selection: Selection, captions: dict[str, str], settings: CurationSettings) -> dict[str, str]:
    """Return the rows of each shard, as JSON by the shards' names."""
    size = settings.clips_per_shard
    rows = [_shard_row(each, captions[each.clip.name], settings) for each in selection.clips]
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return {f"clips-{number:06d}.tar": json.dumps(part) for number, part in enumerate(parts)}


def _shard_row(selected: SelectedClip, caption: str, settings: CurationSettings) -> dict[str, object]:
    """Return what is known of a clip, and in `tar` the path of its file's clips."""
    file, clip = selected
    row: dict[str, object] = {"name": clip.name, "caption": caption, "label": file.label, "file": file.name}
    row |= {"source": settings.sources[file.source].source}
    row |= {name: value for name, value in clip._asdict().items() if name != "name"}
    return row | {"tar": clips_path(settings.output, file).relative_to(settings.output).as_posix()}


def is_shard_current(output: Path, name: str, plan: str) -> bool:
    """Return True if a shard exists and was written by this plan."""
    digest, shard = _digest_path(output, name), output / name
    return shard.exists() and digest.exists() and digest.read_bytes() == _shard_facts(shard, plan).encode()


def write_shard(name: str, settings: CurationSettings) -> str:
    """Write a shard by its plan: for each clip its .mp4, its caption in .txt, and its row in .json. Return the name.

    Raises InputError when clips are damaged; then a further run makes them again.
    """
    plan = shard_plan_path(settings.output, name).read_text(encoding="utf-8")
    with replace_atomically(settings.output / name) as temporary, tarfile.open(temporary, "w") as tar:
        checked = None
        for row in json.loads(plan):
            clips = settings.output / row.pop("tar")
            if clips != checked:
                check_clips(checked := clips)
            with tarfile.open(clips, "r:") as source:
                video = source.extractfile(f"{row['name']}.mp4")
                assert video is not None
                add_to_tar(tar, f"{row['name']}.mp4", video.read())
            add_to_tar(tar, f"{row['name']}.txt", row["caption"].encode())
            add_to_tar(tar, f"{row['name']}.json", json.dumps(row).encode())
    write_text(_digest_path(settings.output, name), _shard_facts(settings.output / name, plan))
    return name


def shard_plan_path(output: Path, name: str) -> Path:
    """Return the path of a shard's plan."""
    return output / WORK / "shards" / f"{name}.json"


def _digest_path(output: Path, name: str) -> Path:
    return shard_plan_path(output, name).with_suffix(".done")


def _shard_facts(shard: Path, plan: str) -> str:
    """Return the digest of a shard's plan, and its size: a shard that was cut short is written again."""
    return f"{hashlib.sha256(plan.encode()).hexdigest()} {shard.stat().st_size}"


def write_manifest(
    settings: CurationSettings, listing: SourceListing, selection: Selection, plans: Mapping[str, str]
) -> None:
    """Write clips.jsonl, dropped.jsonl, and manifest.json with the counts.

    plans: of the shards, by their names.
    """
    output = settings.output
    dropped = [DroppedClip(name, 0.0, "left out", reason) for name, reason in listing.problems] + selection.dropped
    shards = {name: json.loads(plan) for name, plan in plans.items()}
    rows = [{"shard": name, **row} for name, part in shards.items() for row in part]
    for row in rows:
        del row["tar"]
    write_text(output / CLIPS, _json_lines(rows))
    write_text(output / DROPPED, _json_lines(drop._asdict() for drop in sorted(dropped)))
    manifest = {
        "made_with": f"kineograph {version('kineograph')}",
        "files": _count_files(listing, dropped),
        "clips": len(selection.clips),
        "seconds": round(sum(clip.frames / clip.fps for _, clip in selection.clips), 3),
        "without_caption": sum(not row["caption"] for row in rows),
        "dropped": dict(sorted(Counter(drop.reason for drop in dropped).items())),
        "shards": [{"name": name, "clips": len(part)} for name, part in shards.items()],
        "settings": settings.model_dump(mode="json", exclude={"output", "run"}),
    }
    write_text(output / MANIFEST, json.dumps(manifest, indent=1))


def _count_files(listing: SourceListing, dropped: Sequence[DroppedClip]) -> dict[str, int]:
    kinds = Counter(file.kind for file in listing.files)
    broken = sum(drop.reason == "broken" for drop in dropped)
    return {"videos": kinds["video"], "pictures": kinds["image"], "broken": broken, "left_out": len(listing.problems)}


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def read_manifest(output: Path) -> Mapping[str, Any]:
    """Return the manifest of a finished run; an empty one before."""
    return read_json_file(output / MANIFEST)


def read_dropped(output: Path) -> list[DroppedClip]:
    """Return all that a finished run dropped."""
    lines = (output / DROPPED).read_text(encoding="utf-8").splitlines()
    return [DroppedClip(**json.loads(line)) for line in lines]
