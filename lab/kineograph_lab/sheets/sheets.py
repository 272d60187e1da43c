"""`kineograph sheets`: contact sheets of the built-in models, with a page that lists them."""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from kineograph.errors import InputError, InputWarning, check_integer, load_json
from kineograph.generation.check import complete
from kineograph.media.files import check_writable, file_sha256, json_sha256, replace_atomically
from kineograph.models.pocket import WEIGHTS
from kineograph_lab.sheets.layout import SheetRow, draw_sheets
from kineograph_lab.sheets.page import COUNTS, format_sheets_page, load_counts
from kineograph_lab.sheets.prompts import MAX_COUNT, SheetCase, sample_sheet_cases
from kineograph_lab.sheets.sets import SETS, LoadNamed, Options, SheetSet, choose_sets, load_named

RECORDS, PAGE = "sheets.json", "README.md"
QUICK_COUNT, QUICK_OPTIONS = 2, {"num_inference_steps": 4}
QUALITY = 40  # of JPEG; all sheets together are a quarter smaller than at 62, where images look the same
ID_LENGTH = 12
PER_CASE = ("prompt", "seed", "frames_sha256", "control", "read")  # settings that differ between the videos of a set

OnCase = Callable[[str, int, int], None]  # (name of the set, finished cases, all cases)


def make_sheets(
    names: Sequence[str] = (),
    *,
    out: str | Path,
    count: int | None = None,
    options: Options | None = None,
    command: str = "kineograph sheets",
    on_case: OnCase = lambda name, done, total: None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the sheets of sets, `RECORDS` and `PAGE` into a folder; return the records of all sets in it.

    A set is passed over if the folder has its sheets of the same weights, options and number.

    Args:
        names: of sets, see `choose_sets`.
        out: the folder; sheets of other sets in it stay.
        count: images or videos of each set, by default the set's own number.
        options: of each call, beside the defaults.
        command: stated in the records.
        on_case: called after each image or video.
        log: called with a line on each set.

    Raises:
        InputError: an unknown set, a number of cases out of range, or a file in the folder that is not of this command.
        OSError: the folder cannot be written.
    """
    chosen, folder = choose_sets(names), Path(out)
    if count is not None:
        check_integer("`count`", count, 1, MAX_COUNT)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`out` is a folder, and {folder} is a file: name another one")
    check_writable(folder / PAGE)
    records = load_sheet_records(folder / RECORDS)
    load_counts(folder / COUNTS, [*SETS])
    load = cache(load_named)
    for name in chosen:
        identity = identify_set(SETS[name], WEIGHTS, count, options)
        known = records.get(name)
        if known and known["id"] == identity["id"] and all((folder / sheet).is_file() for sheet in known["sheets"]):
            log(f"{name}: there already")
            continue
        log(f"{name}: {identity['count']} of {', '.join(SETS[name].commands)}")
        records.pop(name, None)
        _write_records(records, folder)  # without the set, whose sheets are replaced one by one
        record = _make_set(name, identity, load, folder, on_case)
        for sheet in folder.iterdir():  # of an earlier, larger set
            if re.fullmatch(rf"{name}-\d+\.jpg", sheet.name) and sheet.name not in record["sheets"]:
                sheet.unlink()
        for text in dict.fromkeys(text for case in record["cases"] for text in case["warnings"]):
            log(f"{name}: {text}")
        records[name] = {**record, "command": command}
        _write_records(records, folder)
    _write_records(records, folder)  # with today's page and counts
    return records


def identify_set(
    each: SheetSet, weights: Path, count: int | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Return what the sheets of a set depend on, and `id`, a short digest of it.

    weights   what `sha256sum FILES | sha256sum` prints for `files` in the folder `weights`; prompts and seeds follow from it
    defaults  digest of the models' configurations and of the defaults of all options
    """
    files = sorted(
        file.relative_to(weights).as_posix()
        for part in each.weights
        for file in (weights / part).rglob("*.safetensors")
    )
    configurations = {file.relative_to(weights).as_posix(): file_sha256(file) for file in weights.rglob("*.json")}
    listing = "".join(f"{file_sha256(weights / file)}  {file}\n" for file in files)
    identity = {
        "title": each.title,
        "commands": [*each.commands],
        "count": each.count if count is None else count,
        "options": dict(options or {}),
        "files": files,
        "weights": hashlib.sha256(listing.encode()).hexdigest(),
        "defaults": json_sha256(configurations | {"options": repr(sorted(complete({}).items()))}),
    }
    return {"id": json_sha256(identity)[:ID_LENGTH], **identity}


def _make_set(name: str, identity: Mapping[str, Any], load: LoadNamed, folder: Path, on_case: OnCase) -> dict[str, Any]:
    """Generate a set, write its sheets, and return its record."""
    began, total, chosen = time.monotonic(), identity["count"], SETS[name]
    options: Options = identity["options"]
    rows, cases, first = list[SheetRow](), list[dict[str, Any]](), dict[str, Any]()
    for case in sample_sheet_cases(identity["weights"], name, total, chosen.sample_prompt):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InputWarning)
            video = chosen.generate(load, case, options)
        first = first or {key: value for key, value in video.settings.items() if key not in PER_CASE}
        text = f"{video.label}: {case.prompt.text}" if video.label else case.prompt.text
        rows.append(SheetRow(case.number, text, video.frames, video.above, video.first))
        known = {
            "frames_sha256": video.settings.get("frames_sha256"),
            "warnings": [str(each.message) for each in caught],
        }
        cases.append({**_case_as_json(case), **known})
        on_case(name, case.number, total)
    sheets = draw_sheets(rows)
    files = [f"{name}-{number}.jpg" for number in range(1, len(sheets) + 1)]
    for file, sheet in zip(files, sheets, strict=True):
        _write_sheet(sheet, folder / file)
    return {
        **identity,
        "sheets": files,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "minutes": round((time.monotonic() - began) / 60, 2),
        "settings": first,
        "cases": cases,
    }


def _case_as_json(case: SheetCase) -> dict[str, Any]:
    prompt = case.prompt
    values: dict[str, Any] = {
        "number": case.number,
        "seed": case.seed,
        "prompt": prompt.text,
        "named": dict(prompt.named),
    }
    if prompt.image_prompt:
        values["image_prompt"] = prompt.image_prompt
    elif prompt.shot is not None:
        values["rendered"] = asdict(prompt.shot)
    return values


def _write_sheet(sheet: Image.Image, file: Path) -> None:
    with replace_atomically(file) as part:
        sheet.save(part, "JPEG", quality=QUALITY, optimize=True, progressive=True)


def load_sheet_records(file: Path) -> dict[str, Any]:
    """Return the records of the sets in a folder's `RECORDS`; none if there is no such file.

    Raises:
        InputError: the file holds something else.
    """
    if not file.exists():
        return {}
    found = load_json(file)
    records = found.get("sets") if isinstance(found, dict) else None
    if not isinstance(records, dict) or not all(map(_is_record, records.values())):
        raise InputError(f"{file} is not a file of kineograph sheets: name another folder")
    return {name: record for name, record in records.items() if name in SETS}


def _is_record(value: object) -> bool:
    """Return True for an object with the values that the page shows."""
    types = {"id": str, "count": int, "title": str, "weights": str, "options": dict, "commands": list, "sheets": list}
    if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in types.items()):
        return False
    return all(isinstance(text, str) for text in (*value["commands"], *value["sheets"]))


def _write_records(records: Mapping[str, Any], folder: Path) -> None:
    """Write `RECORDS`, in the table's order, and `PAGE`."""
    ordered = {name: records[name] for name in SETS if name in records}
    _write_text(folder / RECORDS, json.dumps({"sets": ordered}, indent=1, ensure_ascii=False) + "\n")
    _write_text(folder / PAGE, format_sheets_page(ordered, load_counts(folder / COUNTS, [*SETS])))


def _write_text(file: Path, text: str) -> None:
    with replace_atomically(file) as part:
        part.write_text(text)
