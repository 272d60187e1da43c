"""Results of each source file: a record, written last, and beside it a tar with its clips.

Both lie in `.work` below the output, under the file's key, so that finished files are known by their records. A record
has the SHA-256 of its tar and its own: what is damaged is made again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.curation.sources import SourceFile
from kineograph.errors import InputError, load_json
from kineograph.media.files import file_sha256, json_sha256, replace_atomically

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
    """Write a record atomically, once the clips beside it are whole."""
    content: dict[str, Any] = {name: [each._asdict() for each in rows] for name, rows in record._asdict().items()}
    tar = path.with_suffix(".tar")
    content |= {"tar": {"size": tar.stat().st_size, "sha256": file_sha256(tar)} if record.clips else None}
    write_text(path, json.dumps(content | {"sha256": json_sha256(content)}))


def load_record(path: Path) -> FileRecord | None:
    """Return a record; None if the file is not finished, or its record is damaged, or its clips are cut short."""
    content = _read_whole(path)
    if content is None:
        return None
    try:
        clips = [ClipRecord(**each) for each in content["clips"]]
        if (
            clips
            and (size := path.with_suffix(".tar").stat().st_size) != (content.get("tar") or {"size": size})["size"]
        ):
            return None
        return FileRecord(clips, [DropRecord(**each) for each in content["dropped"]])
    except (OSError, LookupError, TypeError, AttributeError):
        return None


def check_clips(tar: Path) -> None:
    """Raise InputError when the tar with a file's clips is damaged, and remove its record, so that it is made again."""
    record = tar.with_suffix(".json")
    expected = (_read_whole(record) or {}).get("tar")
    if expected and expected["sha256"] != file_sha256(tar):
        record.unlink(missing_ok=True)
        raise InputError(f"{tar} is damaged: run the same command again, which makes its clips again")


def _read_whole(path: Path) -> dict[str, Any] | None:
    """Return the content of a record; None where it is missing or damaged."""
    content = dict(read_json_file(path))
    own = content.pop("sha256", None)  # records of earlier versions have none
    return content if content and own in (None, json_sha256(content)) else None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_file(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; an empty one where there is no file, or it is damaged."""
    try:
        content = load_json(path) if path.exists() else {}
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar, without a time or an owner: the same clips make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
