"""Settings of the REST service, which its operator chooses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kineograph.errors import InputError, check_choice, check_integer, check_number, check_text, shown

LogFormat = Literal["plain", "json"]
MOST = 1e6
HOST_PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the REST service.

    Attributes:
        host, port: the address that it listens at.
        opened_folder: folder whose files clients may name: control videos, images, adapters, LoRAs. None for none.
        max_upload_bytes: of one uploaded file.
        max_body_bytes: of a whole request.
        max_json_bytes: of a request without files, which is held in memory.
        poll_seconds: time after which a client should ask for a job's state again.
        token_file: file of the tokens that requests need, of `kineograph serve --new-token`. None for a server that
            only this machine reaches, and that needs none.
        login_hours: time for which a browser that has logged in with a token needs none.
        allowed_hosts: names of this server, beside `host`, localhost and addresses.
        requests_per_second, requests_at_once: of an owner, in the mean and in a moment.
        metrics_owners: those whose tokens may read /metrics.
        webhook_hosts: hosts that webhooks may be sent to, as HOST, HOST:PORT, *.DOMAIN, or * for all. Addresses of
            private networks and http:// need a host that is named.
        log_format: "plain", or "json" for an object a line.
        log_prompts: whether logs have the prompts of videos.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    opened_folder: Path | None = None
    max_upload_bytes: int = 100 * 10**6
    max_body_bytes: int = 400 * 10**6
    max_json_bytes: int = 32 * 10**6
    poll_seconds: float = 1.0
    token_file: Path | None = None
    login_hours: float = 12.0
    allowed_hosts: tuple[str, ...] = ()
    requests_per_second: float = 100.0
    requests_at_once: int = 300
    metrics_owners: tuple[str, ...] = ()
    webhook_hosts: tuple[str, ...] = ()
    log_format: LogFormat = "plain"
    log_prompts: bool = False

    def __post_init__(self) -> None:
        check_text("`host`", self.host)
        check_integer("`port`", self.port, 0, 65535)
        check_integer("`max_upload_bytes`", self.max_upload_bytes, 1, 10**12)
        check_integer("`max_body_bytes`", self.max_body_bytes, 1, 10**12)
        check_integer("`max_json_bytes`", self.max_json_bytes, 1, 10**12)
        check_integer("`requests_at_once`", self.requests_at_once, 1, 10**9)
        for name in ("requests_per_second", "login_hours"):
            check_number(f"`{name}`", getattr(self, name))
            if not 0 < getattr(self, name) <= MOST:
                raise InputError(f"`{name}` is above 0 and at most {MOST:g}, not {getattr(self, name)}")
        check_choice("`log_format`", self.log_format, get_args(LogFormat))
        for each in self.webhook_hosts:
            if not HOST_PATTERN.fullmatch(each):
                raise InputError(f"`webhook_hosts` are HOST, HOST:PORT, *.DOMAIN or *, not {shown(each)}")
        if self.token_file is None and not self.is_loopback:
            raise InputError(
                f"`host` {self.host} opens the server to other machines, which needs tokens: make one by "
                "`kineograph serve --new-token OWNER --token-file FILE`, and give --token-file FILE"
            )
        if self.opened_folder is not None and not self.opened_folder.is_dir():
            raise InputError(f"the folder to open, {self.opened_folder}, is not there: name one, or leave it out")

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches the address."""
        return self.host in LOOPBACK
