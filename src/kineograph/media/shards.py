"""Where the bytes of a picture, a video or a caption lie: in a file of their own, or in the middle of a tar."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple


class FileRange(NamedTuple):
    """A file, or `size` bytes of it from byte `start` on. size: None is up to the file's end."""

    path: Path
    start: int = 0
    size: int | None = None


class DatasetFile(NamedTuple):
    """Something that may belong to a dataset. name: with folders and, in a tar, the tar's name first."""

    name: str
    place: FileRange


class Problem(NamedTuple):
    """What is wrong with something in a dataset, as the rest of a sentence that begins with the name."""

    name: str
    reason: str


@dataclass(frozen=True)
class FileSlice:
    """A part of an open file that reads like a file of its own, as PyAV and Pillow want one."""

    file: BinaryIO
    start: int
    size: int

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes, or all that are left; nothing beyond the end."""
        left = max(0, self.size - self.tell())
        return self.file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a byte and say which, counted from the part's own start."""
        origin = {SEEK_SET: 0, SEEK_CUR: self.tell(), SEEK_END: self.size}[whence]
        return self.file.seek(self.start + max(0, origin + offset)) - self.start

    def tell(self) -> int:
        """Which byte is next."""
        return self.file.tell() - self.start


def is_hidden(name: str) -> bool:
    """Whether a file is not meant for users: it, or a folder of its name, begins with a dot or is macOS's own."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


@contextmanager
def open_range(place: FileRange) -> Iterator[FileSlice]:
    """The bytes of a place, to read from their beginning. Raises OSError when the file is not there any more."""
    with place.path.open("rb") as file:
        part = FileSlice(file, place.start, file.seek(0, SEEK_END) if place.size is None else place.size)
        part.seek(0)
        yield part


def read_text(place: FileRange) -> str:
    """The text at a place. Raises OSError, and ValueError when it is not UTF-8."""
    with open_range(place) as part:
        return part.read().decode("utf-8-sig")


BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def list_tar_members(path: Path, name: str) -> tuple[list[DatasetFile], list[Problem]]:
    """The files in a tar, and what is wrong with the tar: of one that breaks off, what is whole is used.

    name: what the tar is called in the names of what it holds.
    """
    found: list[DatasetFile] = []
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                inner = PurePosixPath(member.name)  # without the "./" that some writers begin with
                whole = member.isreg() and not member.issparse() and member.offset_data + member.size <= length
                if whole and not is_hidden(str(inner)):
                    found.append(DatasetFile(f"{name}/{inner}", FileRange(path, member.offset_data, member.size)))
        reason = None if _is_end(path, tar.offset) else "it has no end mark"  # tarfile stops there, and says nothing
    except FileNotFoundError:
        return [], [Problem(name, "is not there")]
    except (tarfile.TarError, OSError) as error:
        reason = str(error)
    wrong = f"is no tar, is compressed, or breaks off after {len(found)} files ({reason})"
    return found, [] if reason is None else [Problem(name, wrong)]


def _is_end(path: Path, offset: int) -> bool:
    with open_range(FileRange(path, offset, tarfile.BLOCKSIZE)) as part:
        return part.read() == bytes(tarfile.BLOCKSIZE)


def expand_braces(pattern: str) -> list[str]:
    """What a pattern with braces names, as a shell has it: a-{08..10}.tar are three, {a,b}/c.tar two."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [rest for choice in _choices(braces[1]) for rest in expand_braces(f"{before}{choice}{after}")]


def _choices(inner: str) -> list[str]:
    numbers = RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
