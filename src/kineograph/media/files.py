"""Atomic writes: a file or folder is there whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain, count
from pathlib import Path

SLUG_LENGTH = 48


def write_new(path: Path) -> AbstractContextManager[Path]:
    """Yield a temporary name in the folder of `path`, and rename it to `path` when the block ends well.

    Whatever ends the block early (an error, a full disk, Ctrl-C) removes what was written.
    Raises FileExistsError when `path` exists at the end, and OSErrors with `path` as their file name.
    """
    return _write_temporary(path, _rename_to_new)


def replace_atomically(path: Path) -> AbstractContextManager[Path]:
    """Like `write_new`, but replace the file or folder at `path`, at the very end."""
    return _write_temporary(path, _rename_over)


@contextmanager
def _write_temporary(path: Path, rename: Callable[[Path, Path], None]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        rename(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        remove_path(temporary)


def _rename_to_new(temporary: Path, path: Path) -> None:
    refuse_existing(path)
    if temporary.is_dir() or path.is_dir():
        _remove_empty(path)
        temporary.rename(path)
        return
    try:
        path.hardlink_to(temporary)  # unlike a rename, fails where another process took the name since
    except FileExistsError:
        raise FileExistsError(f"{path} exists already, since another program wrote it: choose another name") from None
    except OSError:  # a file system without links
        temporary.replace(path)


def _remove_empty(path: Path) -> None:
    """Remove an empty folder, if there is one: `write_new` puts a file or a folder in its place."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.rmdir()


def _rename_over(temporary: Path, path: Path) -> None:
    old = _temporary_name(path)
    if path.is_dir():  # the one thing that a rename does not replace
        path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    remove_path(old)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(6)}.part")


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path, otherwise: str = "delete it first") -> None:
    """Raise FileExistsError when `path` exists; an empty folder does not count. otherwise: than another name."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder with files in it: name a file in it, such as {path / 'video.mp4'}")
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: choose another name, or {otherwise}")


def check_writable(path: Path) -> None:
    """Raise OSError when `path` cannot be written, before minutes are spent on its content."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):  # os.access says yes to root on a read-only disk
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def reserve_unused_path(folder: Path, text: str, seed: int, suffix: str) -> Iterator[Path]:
    """Yield the first free path: `folder/some-words_7.mp4`, then `some-words_7_2.mp4`, and so on.

    Until the block ends, it is yielded to no other process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{slug(text)}_{seed}"
    for ending in chain([""], (f"_{number}" for number in count(2))):
        path = folder / f"{stem}{ending}{suffix}"
        reservation = path.with_name(f".{path.name}.part")
        try:
            reservation.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            if not os.path.lexists(path):
                yield path
                return
        finally:
            reservation.unlink(missing_ok=True)


def slug(text: str) -> str:
    """Return the words of a text as part of a file name: lower case, joined by hyphens, of at most 48 bytes."""
    words = "-".join(re.findall(r"[^\W_]+", text.lower()))
    return words.encode()[:SLUG_LENGTH].decode(errors="ignore").strip("-") or "video"
