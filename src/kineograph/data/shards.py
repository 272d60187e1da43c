"""Shards of webdataset: tar files that are indexed once and then read by seeking. Nothing is unpacked."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from kineograph.data.places import Found, Place, Problem, is_hidden, opened

BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def members(path: Path, name: str) -> tuple[list[Found], list[Problem]]:
    """The files in a tar, and what is wrong with the tar: of one that breaks off, what is whole is used.

    name: what the tar is called in the names of what it holds.
    """
    found: list[Found] = []
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                inner = PurePosixPath(member.name)  # without the "./" that some writers begin with
                whole = member.isreg() and not member.issparse() and member.offset_data + member.size <= length
                if whole and not is_hidden(str(inner)):
                    found.append(Found(f"{name}/{inner}", Place(path, member.offset_data, member.size)))
        reason = None if _is_end(path, tar.offset) else "it has no end mark"  # tarfile stops there, and says nothing
    except FileNotFoundError:
        return [], [Problem(name, "is not there")]
    except (tarfile.TarError, OSError) as error:
        reason = str(error)
    wrong = f"is no tar, is compressed, or breaks off after {len(found)} files ({reason})"
    return found, [] if reason is None else [Problem(name, wrong)]


def _is_end(path: Path, offset: int) -> bool:
    with opened(Place(path, offset, tarfile.BLOCKSIZE)) as part:
        return part.read() == bytes(tarfile.BLOCKSIZE)


def expanded(pattern: str) -> list[str]:
    """What a pattern with braces names, as a shell has it: a-{08..10}.tar are three, {a,b}/c.tar two."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [rest for choice in _choices(braces[1]) for rest in expanded(f"{before}{choice}{after}")]


def _choices(inner: str) -> list[str]:
    numbers = RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
