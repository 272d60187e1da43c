"""What became of each file, written once it is done: a record and, beside it, a tar with its clips.

All lie in `.work` below the output, named by the unit's key, so that what is done is known by what is there.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.curation.sources import SourceFile
from kineograph.media.files import replace_atomically

WORK = ".work"  # a dot: whoever reads the output as a dataset does not see it


class ClipRecord(NamedTuple):
    """A clip that got through. print: its fingerprint, as hexadecimal digits."""

    name: str
    kind: str
    start: float
    frames: int
    fps: float
    height: int
    width: int
    print: str


class DropRecord(NamedTuple):
    """A clip, or a whole file, that did not; start: in seconds."""

    start: float
    why: str
    told: str


class FileRecord(NamedTuple):
    """What a file became."""

    kept: list[ClipRecord]
    lost: list[DropRecord]


def record_path(output: Path, unit: SourceFile) -> Path:
    """Where a file's record is, once it is done. 256 folders: there may be millions of files."""
    return output / WORK / "units" / unit.key[:2] / f"{unit.key}.json"


def clips_path(output: Path, unit: SourceFile) -> Path:
    """Where a file's clips are, if it has any."""
    return record_path(output, unit).with_suffix(".tar")


def write_record(path: Path, record: FileRecord) -> None:
    """A record, whole or not at all."""
    told = {"kept": [kept._asdict() for kept in record.kept], "lost": [lost._asdict() for lost in record.lost]}
    write_text(path, json.dumps(told))


def read_record(path: Path) -> FileRecord:
    """A record that is there."""
    told = json.loads(path.read_text(encoding="utf-8"))
    return FileRecord([ClipRecord(**kept) for kept in told["kept"]], [DropRecord(**lost) for lost in told["lost"]])


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json_file(path: Path) -> Mapping[str, Any]:
    """The object in a file; an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file into a tar, without a time or an owner: the same clips make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
