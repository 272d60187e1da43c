"""Atomic writes: a file or folder is there whole or not at all.

It is written in a hidden folder beside it, `.0123456789ab.part`, which this process locks, and renamed at the end. What
a killed process left of such folders is removed by the next write beside it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

if sys.platform != "win32":
    import fcntl

SLUG_LENGTH = 48
TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.part")
NEW, REPLACED = ".new.part", ".replaced"  # in a temporary folder: what is written, and what it replaces
SYSTEM_ERROR = re.compile(r"os error (\d+)")  # in the messages of safetensors
FAILED_SAVE = "inline_container"  # torch's own source file, which its message names


def write_new(path: Path) -> AbstractContextManager[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends well.

    Whatever ends the block early (an error, a full disk, Ctrl-C) removes what was written. Files get the mode that the
    umask gives. Raises FileExistsError when `path` exists at the end, and OSErrors with `path` as their file name.
    """
    return _write_temporary(path, _rename_to_new)


def replace_atomically(path: Path) -> AbstractContextManager[Path]:
    """Like `write_new`, but replace the file or folder at `path`, at the very end."""
    return _write_temporary(path, _rename_over)


@contextmanager
def _write_temporary(path: Path, rename: Callable[[Path, Path], None]) -> Iterator[Path]:
    with _errors_of_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path.parent) as folder:
            temporary = folder / NEW
            yield temporary
            _set_modes(temporary)
            rename(temporary, path)


@contextmanager
def _errors_of_writing(path: Path) -> Iterator[None]:
    """Raise what libraries raise when they cannot write as OSError with the file's name."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except SafetensorError as error:
        found = SYSTEM_ERROR.search(str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from error
    except RuntimeError as error:
        if FAILED_SAVE not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder, locked until the block ends and removed then. Removes those of killed processes."""
    remove_leftovers(parent)
    folder, lock = _make_locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make_locked_folder(parent: Path) -> tuple[Path, int | None]:
    """Return a new folder, and the descriptor of its lock; None where the file system has no locks."""
    while True:
        folder = parent / f".{secrets.token_hex(6)}.part"
        folder.mkdir()
        try:
            lock = _lock(folder)
        except (FileNotFoundError, BlockingIOError):  # another process took it for a leftover
            continue
        except OSError:
            return folder, None
        if folder.exists():
            return folder, lock
        os.close(lock)


def _lock(path: Path) -> int:
    """Lock a file or folder while its descriptor, which is returned, is open.

    Raises BlockingIOError if another process has locked it, and other OSErrors where that is not possible.
    """
    if sys.platform == "win32":
        raise OSError("folders cannot be locked on Windows")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder; what one of them was replacing is put back.

    Only names that this module gives, which no process has locked, count.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for found in [folder / entry.name for entry in entries if TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError):  # it is locked, or another user's
                lock = _lock(found)
                try:
                    for old in (found / REPLACED).glob("*"):
                        if not os.path.lexists(folder / old.name):
                            old.rename(folder / old.name)
                    remove_path(found)
                finally:
                    os.close(lock)


def _set_modes(path: Path) -> None:
    """Give all files the mode that the umask gives: some libraries write files that only their owner can read."""
    probe = path.with_name("mode")
    probe.touch()
    mode = probe.stat().st_mode
    for file in [path, *path.rglob("*")]:
        if file.is_file() and not file.is_symlink() and file.stat().st_mode != mode:
            file.chmod(mode)
    probe.unlink()


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
    old = temporary.with_name(REPLACED) / path.name
    if path.is_dir():  # the one thing that a rename does not replace
        old.parent.mkdir()
        path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise


def remove_atomically(path: Path) -> None:
    """Remove a folder; a kill leaves it whole or removes it."""
    with _temporary_folder(path.parent) as folder:
        path.replace(folder / path.name)


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Append to a text file. Raises OSError, and leaves the file as it was, when there is no room for all of it."""
    with _errors_of_writing(path), path.open("ab", buffering=0) as file:
        before, content = file.tell(), text.encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


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


def write_to_unused_path(folder: Path, text: str, seed: int, suffix: str, write: Callable[[Path], object]) -> Path:
    """Write a file under the first free name, and return it: `folder/some-words_7.mp4`, then `some-words_7_2.mp4`, ...

    The name is chosen at the end. write: writes the file at the path that it is given.
    """
    stem = f"{slug(text)}_{seed}"
    endings = chain([""], (f"_{number}" for number in count(2)))
    with _errors_of_writing(folder / f"{stem}{suffix}"):
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(folder) as temporary:
            file = temporary / f"video{suffix}"
            write(file)
            while True:
                path = folder / f"{stem}{next(endings)}{suffix}"
                with suppress(FileExistsError):
                    _rename_to_new(file, path)
                    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values by name, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def slug(text: str) -> str:
    """Return the words of a text as part of a file name: lower case, joined by hyphens, of at most 48 bytes."""
    words = "-".join(re.findall(r"[^\W_]+", text.lower()))
    return words.encode()[:SLUG_LENGTH].decode(errors="ignore").strip("-") or "video"
