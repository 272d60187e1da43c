"""Tokens of the REST service: a file with a line for each, and what a browser's cookie holds in place of one.

A token is kg_ID_SECRET, and its line OWNER:ID:DIGEST. The secret has 256 random bits, so one salted hash, which is
cheap to check, protects it as well as a slow one; the id is the salt, and finds the line.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import InputError, shown
from kineograph.service.jobs import check_name

log = logging.getLogger(__name__)

KEY_BYTES = 32
TOKEN = re.compile(r"kg_([0-9a-f]{16})_([\w-]{43})", re.ASCII)
LINE = re.compile(r"(.+):([0-9a-f]{16}):([0-9a-f]{64})")
COOKIE = re.compile(r"([0-9a-f]{16})\.([0-9]{1,12})\.([0-9a-f]{64})")


class HashedToken(NamedTuple):
    """A line of the file of tokens."""

    owner: str
    digest: str


@dataclass(frozen=True)
class TokenFile:
    """The tokens in a file, which is read again when it has changed. state: what was read, and of which file."""

    path: Path
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path) -> TokenFile:
        """Read a file of tokens. Raises InputError for one without a token or with a line that is none."""
        try:
            tokens, errors = parse_tokens(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"`token_file` {path} cannot be read ({error}): make it, as by --new-token OWNER"
            ) from None
        if errors:
            raise InputError(f"`token_file` {path}: {errors[0]}")
        if not tokens:
            raise InputError(f"`token_file` {path} has no token: add one, as by --new-token OWNER")
        return cls(path)

    def find(self, token: str) -> str | None:
        """Return the id of a token that is in the file, else None."""
        found = TOKEN.fullmatch(token)
        if found is None or (known := self._tokens().get(found[1])) is None:
            return None
        return found[1] if hmac.compare_digest(known.digest, hash_token(found[1], found[2])) else None

    def owner(self, token_id: str) -> str | None:
        """Return the owner of the token with this id; None if it is no longer in the file."""
        found = self._tokens().get(token_id)
        return found and found.owner

    def _tokens(self) -> Mapping[str, HashedToken]:
        try:
            seen = self.path.stat()
            version = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
            if self.state.get("version") != version:
                tokens, errors = parse_tokens(self.path.read_text(encoding="utf-8"))
                for each in errors:
                    log.error("%s: %s", self.path, each)
                self.state.update(version=version, tokens=tokens)
        except (OSError, UnicodeDecodeError) as error:
            if self.state.get("version") is not None or not self.state:
                log.error("%s cannot be read (%s): no token is accepted", self.path, error)
            self.state.update(version=None, tokens={})
        return self.state["tokens"]


def parse_tokens(text: str) -> tuple[dict[str, HashedToken], list[str]]:
    """Return the tokens of a file's text by id, and a message for each line that is none. Lines with # are comments."""
    tokens, errors = dict[str, HashedToken](), list[str]()
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        if found is None:  # the line may be a token, which no message shows
            errors.append(f"line {number} is not OWNER:ID:HASH: add lines by --new-token OWNER, not by hand")
        else:
            tokens[found[2]] = HashedToken(found[1], found[3])
    return tokens, errors


def hash_token(token_id: str, secret: str) -> str:
    """Return what the file has of a token's secret."""
    return hmac.new(token_id.encode(), secret.encode(), hashlib.sha256).hexdigest()


def add_token(path: Path, owner: str) -> str:
    """Add a new token to the file, which is made if need be, and return it: it cannot be read from the file."""
    check_name("owner", owner)
    if owner != owner.strip() or owner.startswith("#"):
        raise InputError(f"an owner's name begins and ends with no space, and not with #: not {shown(owner)}")
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    try:
        before = path.read_bytes()[-1:] if path.exists() else b"\n"
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(number, "a", encoding="utf-8") as file:
            separator = "" if before in (b"\n", b"") else "\n"
            file.write(f"{separator}{owner}:{token_id}:{hash_token(token_id, secret)}\n")
    except OSError as error:
        raise InputError(f"`token_file` {path} cannot be written ({error.strerror}): name another file") from error
    return f"kg_{token_id}_{secret}"


# --- cookies, which stand for a token until they expire or its line is removed


def load_cookie_key(path: Path) -> bytes:
    """Return the key that signs cookies, from a file that is made if need be."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
        raise InputError(f"{path} has no key of {KEY_BYTES} bytes: remove it, and a new one is made") from None
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(number, "wb") as file:
        file.write(key)
    return key


def make_cookie(key: bytes, token_id: str, expires: float) -> str:
    """Return a signed cookie that stands for a token until a time, in seconds since 1970."""
    content = f"{token_id}.{expires:.0f}"
    return f"{content}.{_sign(key, content)}"


def read_cookie(key: bytes, cookie: str, now: float) -> str | None:
    """Return the id of the token that a cookie stands for; None for one that has expired, or that is none of ours."""
    found = COOKIE.fullmatch(cookie)
    if found is None or not hmac.compare_digest(_sign(key, f"{found[1]}.{found[2]}"), found[3]):
        return None
    return found[1] if now < int(found[2]) else None


def _sign(key: bytes, content: str) -> str:
    return hmac.new(key, b"cookie:" + content.encode(), hashlib.sha256).hexdigest()
