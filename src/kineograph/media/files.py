"""Files that are whole or absent, under names that nothing had before."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, count
from pathlib import Path

SLUG_LENGTH = 48


def write_new(path: Path) -> AbstractContextManager[Path]:
    """Lends a hidden name in the same folder to write to, and renames it to `path` once all is well.

    Whatever ends the block early (an error, a full disk, Ctrl-C) removes what was written.
    Raises FileExistsError when `path` is taken by then, and OSErrors with `path` as their file name.
    """
    return _written(path, _put_where_nothing_is)


def replace_atomically(path: Path) -> AbstractContextManager[Path]:
    """Like `beside`, but the file or folder at `path` gives way, at the very end."""
    return _written(path, _put_over)


@contextmanager
def _written(path: Path, put: Callable[[Path, Path], None]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _hidden(path)
    try:
        yield part
        put(part, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        remove_path(part)


def _put_where_nothing_is(part: Path, path: Path) -> None:
    refuse_existing(path)
    part.replace(path)


def _put_over(part: Path, path: Path) -> None:
    aside = _hidden(path)
    if path.is_dir():  # the one thing that a rename does not replace
        path.replace(aside)
    part.replace(path)
    remove_path(aside)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(6)}.part")


def remove_path(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises FileExistsError when something stands at `path`; an empty folder does not count."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder with files in it: name a file in it, such as {path / 'video.mp4'}")
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: choose another name, or ask to overwrite it")


def check_writable(path: Path) -> None:
    """Raises OSError when `path` could not be written, before minutes are spent on what would go there."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):  # os.access says yes to root on a read-only disk
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def unused_path(folder: Path, text: str, seed: int, suffix: str) -> Path:
    """A path that nothing has yet: `folder/some-words_7.mp4`, then `some-words_7_2.mp4`, and so on."""
    stem = f"{slug(text)}_{seed}"
    numbered = chain([""], (f"_{number}" for number in count(2)))
    paths = (folder / f"{stem}{tail}{suffix}" for tail in numbered)
    return next(path for path in paths if not os.path.lexists(path))


def slug(text: str) -> str:
    """The words of a text as part of a file name: lower case, joined by hyphens, of bounded length in bytes."""
    words = "-".join(re.findall(r"[^\W_]+", text.lower()))
    return words.encode()[:SLUG_LENGTH].decode(errors="ignore").strip("-") or "video"
