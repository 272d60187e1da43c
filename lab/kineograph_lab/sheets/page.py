"""The page beside the contact sheets, from `sheets.json` and `counts.json` alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kineograph.errors import InputError, check_integer, load_json, shown
from kineograph_lab.sheets.prompts import MAX_COUNT

COUNTS = "counts.json"
LOOKS = 2  # times that each sheet is looked at, by different people or sessions
NOT_LOOKED_AT = "not looked at yet"
INTRODUCTION = """# Contact sheets

Images and videos of the built-in models by the plain commands, with the defaults of each model. Nobody chose the prompts
and seeds: they follow from the SHA-256 of the weights, by `kineograph_lab/sheets/prompts.py`. That SHA-256 is what
`sha256sum FILES | sha256sum` prints in the folder of the pocket model's weights, for the files that
[sheets.json](sheets.json) lists. It also has prompts, seeds, options and versions. Every 24 successive prompts show each of
the 24 kinds of subjects once.

An image or a video is broken if its anatomy is wrong (a part doubled, missing or detached), if a subject dissolves or turns
into another one, or if it jumps. `counts.json` beside this page has the numbers of the broken ones on the sheets, by two
looks: with `{"images": {"id": "0123456789ab", "broken": [[3, 17], [3]]}}` the first found 3 and 17, and the second 3. `id`
is that of the table: the counts of other sheets are not shown.
"""


def load_counts(file: Path, names: Collection[str]) -> dict[str, Any]:
    """Return the file's record of each set, none if there is no file. names: of the sets.

    Raises:
        InputError: the file holds something else.
    """
    if not file.exists():
        return {}
    found = load_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} is an object with a record of each set, not {shown(found)}")
    for name, record in found.items():
        if name not in names:
            raise InputError(f"{file} has a record of {name!r}: expected {', '.join(names)}")
        _check_record(f"{file}: {name}", record)
    return found


def _check_record(what: str, record: object) -> None:
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise InputError(f'{what} is {{"id": ID, "broken": [[NUMBER, ...], ...]}}, not {shown(record)}')
    looks = record.get("broken")
    if not isinstance(looks, list) or len(looks) > LOOKS or not all(isinstance(look, list) for look in looks):
        raise InputError(
            f"{what}: broken is a list of at most {LOOKS} looks, each a list of numbers, not {shown(looks)}"
        )
    for number in (number for look in looks for number in look):
        check_integer(f"{what}: the number of an image or a video", number, 1, MAX_COUNT)


def format_sheets_page(records: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Any]) -> str:
    """Return the page.

    records: of each set, as in `sheets.json`. counts: as of `load_counts`.
    """
    head = ("set", "number", *(f"broken, look {look}" for look in range(1, LOOKS + 1)), "id", "weights")
    table = [head, ("---",) * len(head)]
    for name, record in records.items():
        looks = [_format_look(record, counts.get(name), look) for look in range(LOOKS)]
        link = f"[{name}](#{name})"
        table.append((link, str(record["count"]), *looks, f"`{record['id']}`", f"`{record['weights'][:12]}...`"))
    lines = [INTRODUCTION, *(f"| {' | '.join(row)} |" for row in table)]
    for name, record in records.items():
        lines += ["", *_format_set(name, record)]
    return "\n".join(lines) + "\n"


def _format_look(record: Mapping[str, Any], counted: Mapping[str, Any] | None, look: int) -> str:
    """Return "2 of 48 (3, 17)": the number of broken images or videos, and their numbers on the sheets."""
    if counted is None or counted["id"] != record["id"] or len(counted["broken"]) <= look:
        return NOT_LOOKED_AT
    numbers = sorted({*counted["broken"][look]})
    return f"{len(numbers)} of {record['count']}" + (f" ({', '.join(map(str, numbers))})" if numbers else "")


def _format_set(name: str, record: Mapping[str, Any]) -> list[str]:
    options = "".join(f" --{option.replace('_', '-')} {value}" for option, value in record["options"].items())
    return [
        f"## {name}", "", f"{record['title']}.", "", "```sh",
        *(f"{command}{options}" for command in record["commands"]), "```",
        *(line for file in record["sheets"] for line in ("", f"![Sheet {file}]({file})")),
    ]  # fmt: skip
