"""Results of each source file: a record, written last, and beside it a tar with its clips.

Both lie in `.work` below the output, under the file's key, so that finished files are known by their records.
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

WORK = ".work"  # hidden from readers of the output as a data set


class ClipRecord(NamedTuple):
    """An accepted clip. start: seconds into the source file; perceptual_hash: as hexadecimal digits."""

    name: str
    kind: str
    start: float
    frames: int
    fps: float
    height: int
    width: int
    perceptual_hash: str


class DropRecord(NamedTuple):
    """A dropped clip, or a file that cannot be used. start: seconds into the source file."""

    start: float
    reason: str
    detail: str


class FileRecord(NamedTuple):
    """The accepted and dropped clips of a file."""

    clips: list[ClipRecord]
    dropped: list[DropRecord]


def record_path(output: Path, file: SourceFile) -> Path:
    """Return the path of a file's record. It lies in one of 256 folders: there may be millions of files."""
    return output / WORK / "units" / file.key[:2] / f"{file.key}.json"


def clips_path(output: Path, file: SourceFile) -> Path:
    """Return the path of the tar with a file's clips, which exists only if there are any."""
    return record_path(output, file).with_suffix(".tar")


def write_record(path: Path, record: FileRecord) -> None:
    """Write a record atomically."""
    content = {name: [each._asdict() for each in rows] for name, rows in record._asdict().items()}
    write_text(path, json.dumps(content))


def read_record(path: Path) -> FileRecord:
    """Read a record."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return FileRecord(
        [ClipRecord(**each) for each in content["clips"]], [DropRecord(**each) for each in content["dropped"]]
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_file(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; an empty one where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar, without a time or an owner: the same clips make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
