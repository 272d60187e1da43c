"""The queue's SQLite file: its tables, their migrations, and transactions.

The file is opened by processes of one host only: SQLite's write-ahead log needs their common memory.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kineograph.errors import InputError

BUSY_SECONDS = 30.0  # longest wait for another process's transaction

# The statements that lead from each version of the tables to the next: the number of entries is the newest version.
MIGRATIONS = (
    """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled')),
    command TEXT NOT NULL,
    model TEXT NOT NULL,
    options TEXT NOT NULL,
    metadata TEXT NOT NULL,
    priority INTEGER NOT NULL,
    source_id TEXT,
    idempotency_key TEXT,
    request TEXT NOT NULL, -- SHA-256 of what was submitted, which an idempotency key stands for
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    passes INTEGER NOT NULL DEFAULT 0, -- times that later jobs were preferred
    lease_owner TEXT,
    lease_start REAL, -- of the monotonic clock, which starts anew with the host
    lease_end REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    paused INTEGER NOT NULL DEFAULT 0,
    starred INTEGER NOT NULL DEFAULT 0,
    progress REAL NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    expires_at REAL,
    deleted_at REAL,
    error_code TEXT,
    error_message TEXT,
    result TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, idempotency_key),
    CHECK ((state = 'in_progress') = (lease_owner IS NOT NULL)),
    CHECK ((state = 'completed') = (result IS NOT NULL)),
    CHECK ((state = 'failed') = (error_code IS NOT NULL)),
    CHECK ((state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, priority DESC, number);
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    last_claim INTEGER NOT NULL -- number of the claim that last took a job of this owner
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job_id, number);
CREATE TRIGGER events_are_append_only BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TABLE limits (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL -- JSON
) STRICT;
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    models TEXT NOT NULL, -- those that are loaded, as a list in JSON
    seen REAL NOT NULL -- of the monotonic clock
) STRICT;
""",
    """
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_at REAL NOT NULL,
    first_event INTEGER NOT NULL -- number of the last event before it
) STRICT;
CREATE INDEX webhooks_by_owner ON webhooks (owner);
CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    message_id TEXT NOT NULL,
    body TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL
) STRICT;
CREATE INDEX deliveries_by_webhook ON deliveries (webhook_id);
CREATE INDEX deliveries_by_time ON deliveries (next_at);
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    number INTEGER NOT NULL -- of the last event that was read
) STRICT;
""",
)


@dataclass(frozen=True)
class Database:
    """Connections to the queue's file: threads take one that is idle, or open another."""

    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    idle: list[sqlite3.Connection] = field(default_factory=list, repr=False)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for statements that read."""
        with self.lock:
            connection = self.idle.pop() if self.idle else None
        connection = connection or self._connect()
        try:
            yield connection
        finally:
            with self.lock:
                self.idle.append(connection)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write within the block, alone: other processes' writes wait. An exception leaves everything as it was."""
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have ended it
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections, none of which is in use."""
        with self.lock:
            while self.idle:
                self.idle.pop().close()

    def _connect(self) -> sqlite3.Connection:
        # autocommit outside of `transaction`; one thread at a time has the connection
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a job that was accepted outlives a loss of power
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def migrate(self) -> None:
        """Bring the tables to the newest version. Raises InputError for another file, and one of a newer version."""
        try:
            with self.transaction() as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > len(MIGRATIONS):
                    raise InputError(
                        f"{self.path} is of a newer version of Kineograph (tables {version}, this one reads "
                        f"{len(MIGRATIONS)}): update this installation, or name another folder"
                    )
                for script in MIGRATIONS[version:]:
                    for statement in split_statements(script):
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        except sqlite3.DatabaseError as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):  # locked, or a full disk
                raise
            raise InputError(f"{self.path} is no queue of Kineograph ({error}): name another folder") from error


def split_statements(script: str) -> Iterator[str]:
    """Yield the statements of a script, which `executescript` would run outside of the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
