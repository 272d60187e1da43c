"""Tables from outside, .csv or .jsonl: what each row says, or what is wrong with it and in which line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from kineograph.errors import InputError

Row = dict[str, str]


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Where each row stands, for messages, and its columns in lower case. Raises InputError when it cannot be read."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"{path} is neither a .csv nor a .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (_table if path.suffix.lower() == ".csv" else _objects)(path, file)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from error


def first(row: Row, columns: Sequence[str]) -> str:
    """The first of these columns that has something in it; nothing if none has."""
    return next((row[column] for column in columns if row.get(column)), "")


def _table(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    table = csv.DictReader(file)
    for row in table:
        named = {name.strip().lower(): (value or "").strip() for name, value in row.items() if name is not None}
        yield f"{path}, line {table.line_num}", named


def _objects(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, line)


def _object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}")
    return {str(name).strip().lower(): str(value).strip() for name, value in row.items()}
