"""Settings of the REST service, which its operator chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kineograph.errors import InputError, check_integer, check_text

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the REST service.

    Attributes:
        host, port: the address that it listens at.
        opened_folder: folder whose files clients may name: control videos, images, adapters, LoRAs. None for none.
        max_upload_bytes: of one uploaded file.
        max_body_bytes: of a whole request.
        poll_seconds: time after which a client should ask for a job's state again.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    opened_folder: Path | None = None
    max_upload_bytes: int = 100 * 10**6
    max_body_bytes: int = 400 * 10**6
    poll_seconds: float = 1.0

    def __post_init__(self) -> None:
        check_text("`host`", self.host)
        check_integer("`port`", self.port, 0, 65535)
        check_integer("`max_upload_bytes`", self.max_upload_bytes, 1, 10**12)
        check_integer("`max_body_bytes`", self.max_body_bytes, 1, 10**12)
        if self.opened_folder is not None and not self.opened_folder.is_dir():
            raise InputError(f"`opened_folder` is a folder that is there, not {self.opened_folder}")

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches the address."""
        return self.host in LOOPBACK
