"""One run in a folder at a time. The lock is the system's, so that it goes with the process, however that ends."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kineograph.errors import InputError, InputWarning

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(2**30)  # a byte beyond what is written: Windows lets nobody read a locked one
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds a folder, and makes it if need be. Raises InputError while another run holds it, naming that run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise InputError(
                f"{folder} is in use by another run ({file.read().strip() or 'which has just begun'}): wait for it to "
                "end, stop it, or name another folder"
            ) from error
        except OSError as error:  # a network's file system may know no locks
            warnings.warn(
                InputWarning(f"{folder} cannot be locked ({error}): see that no other run uses it"), stacklevel=4
            )
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
