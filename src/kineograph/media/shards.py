"""Byte ranges of files: an image, a video or a caption in a file of its own, or within a webdataset tar."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from kineograph.errors import InputError

BRACES = re.compile(r"\{([^{}]+)\}")
NUMBER_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
MAX_SHARDS, MAX_BRACES = 100_000, 16


class FileRange(NamedTuple):
    """`size` bytes of a file from byte `start` on. size: None for all up to the file's end."""

    path: Path
    start: int = 0
    size: int | None = None


class DatasetFile(NamedTuple):
    """A file that may belong to a data set. name: with folders and, within a tar, the tar's name first."""

    name: str
    file_range: FileRange


class Problem(NamedTuple):
    """A defect of a file in a data set. reason: the rest of a sentence that begins with the name."""

    name: str
    reason: str


@dataclass(frozen=True)
class FileSlice:
    """A byte range of an open file that reads like a file of its own, for PyAV and Pillow."""

    file: BinaryIO
    start: int
    size: int

    def read(self, count: int = -1) -> bytes:
        """Return the next `count` bytes, or all that are left; nothing beyond the end."""
        left = max(0, self.size - self.tell())
        return self.file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Move to a byte, and return its position within the slice."""
        origin = {SEEK_SET: 0, SEEK_CUR: self.tell(), SEEK_END: self.size}[whence]
        return self.file.seek(self.start + max(0, origin + offset)) - self.start

    def tell(self) -> int:
        """Return the position of the next byte within the slice."""
        return self.file.tell() - self.start


def is_hidden(name: str) -> bool:
    """Return True if a file, or a folder in its name, begins with a dot or is macOS's own."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


@contextmanager
def open_range(file_range: FileRange) -> Iterator[FileSlice]:
    """Open a byte range at its beginning. Raises OSError when the file does not exist any more."""
    with file_range.path.open("rb") as file:
        size = file.seek(0, SEEK_END) if file_range.size is None else file_range.size
        opened = FileSlice(file, file_range.start, size)
        opened.seek(0)
        yield opened


def read_text(file_range: FileRange) -> str:
    """Return a byte range as text. Raises OSError, and ValueError when it is not UTF-8."""
    with open_range(file_range) as opened:
        return opened.read().decode("utf-8-sig")


def list_tar_members(path: Path, name: str) -> tuple[list[DatasetFile], list[Problem]]:
    """Return the files in a tar, and its problems. The intact files of a truncated tar are used.

    name: of the tar, as a prefix of the names of its files.
    """
    found: list[DatasetFile] = []
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                inner = PurePosixPath(member.name)  # without the "./" that some writers begin with
                intact = member.isreg() and not member.issparse() and member.offset_data + member.size <= length
                if intact and not is_hidden(str(inner)):
                    found.append(DatasetFile(f"{name}/{inner}", FileRange(path, member.offset_data, member.size)))
        # tarfile takes anything that is no header for the end
        reason = None if _has_end_mark(path, tar.offset) else "it has no end mark"
    except FileNotFoundError:
        return [], [Problem(name, "is not there")]
    except (tarfile.TarError, OSError) as error:
        reason = str(error)
    problem = f"is not a tar, is compressed, or breaks off after {len(found)} files ({reason})"
    return found, [] if reason is None else [Problem(name, problem)]


def _has_end_mark(path: Path, offset: int) -> bool:
    with open_range(FileRange(path, offset, tarfile.BLOCKSIZE)) as block:
        return block.read() == bytes(tarfile.BLOCKSIZE)


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does: a-{08..10}.tar names three files, {a,b}/c.tar two.

    Raises InputError for more than `MAX_SHARDS` names.
    """
    paths = [pattern]
    for _ in range(MAX_BRACES):
        if not any(BRACES.search(path) for path in paths):
            return paths
        paths = [expanded for path in paths for expanded in _expand_first(path, MAX_SHARDS // len(paths))]
    raise InputError(f"{pattern[:100]!r} has more than {MAX_BRACES} pairs of braces: name the files by fewer")


def _expand_first(path: str, most: int) -> list[str]:
    """Return the paths that a path with braces stands for, without its first ones."""
    braces = BRACES.search(path)
    if braces is None:
        return [path]
    before, after = path[: braces.start()], path[braces.end() :]
    numbers = NUMBER_RANGE.fullmatch(braces[1])
    if numbers is None:
        choices: Sequence[int | str] = braces[1].split(",")
        width = 0
    else:
        first, last = numbers.groups()
        choices, width = range(int(first), int(last) + 1), len(first) if first.startswith("0") else 0
    if len(choices) > most:
        raise InputError(f"the braces in {path[:100]!r} name more than {MAX_SHARDS:,} files: split the source")
    return [f"{before}{choice:0{width}d}{after}" if numbers else f"{before}{choice}{after}" for choice in choices]
