"""Exclusive use of a run's folder, by a lock of the operating system that ends with the process."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kineograph.errors import InputError, InputWarning
from kineograph.media.files import replace_atomically


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder within the block, and make it if needed.

    Raises InputError while another run holds it, naming that run. Warns (InputWarning) where the file system has no
    locks, as some network file systems, and goes on without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "run.lock"), folder / "run.owner"
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = owner.read_text(encoding="utf-8").strip() if owner.exists() else ""
        raise InputError(
            f"{folder} is in use by another run ({holder or 'which has just started'}): wait for it to end, stop it, "
            "or name another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        warnings.warn(InputWarning(f"{folder} cannot be locked ({error}): see that no other run uses it"), stacklevel=4)
    try:
        with replace_atomically(owner) as part:
            part.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()
