"""Earlier protocol ids of records, from git: `python lab/benchmarks/restamped_records.py docs/results/*/*.jsonl`.

Some records were given a new protocol id by hand, without being measured again. For each record of a file, this command
finds the ids that the same numbers had in earlier commits of the file, and writes them into the record as
"earlier_protocols", a list of [id, first commit], where there are any. Nothing else changes; the reports say the count.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kineograph.media.files import replace_atomically
from kineograph_lab.studies.protocol import EARLIER, Record, parse_record

ADDED_LATER = {"prompt", "protocol", "commit", "cluster", EARLIER}


def main(*files: str) -> None:
    for file in map(Path, files):
        ids = _ids_in_history(file)
        records = [record for record in map(parse_record, file.read_text().splitlines()) if record]
        for record in records:
            earlier = [[*pair] for pair in ids[_key(record)].items() if pair[0] != record["protocol"]]
            record.pop(EARLIER, None)
            if earlier:
                record[EARLIER] = earlier
        text = "".join(json.dumps(record) + "\n" for record in records)
        if any(EARLIER in record for record in records):
            with replace_atomically(file) as part:
                part.write_text(text)
        print(f"{file}: {sum(EARLIER in record for record in records)} of {len(records)} records had another id")


def _ids_in_history(file: Path) -> dict[tuple, dict[str, str]]:
    """Return the protocol ids of each record's numbers, with the first commit that has it, oldest first."""
    ids: dict[tuple, dict[str, str]] = defaultdict(dict)
    for commit in _git("log", "--reverse", "--diff-filter=AM", "--format=%h", "--", str(file)).split():
        for record in map(parse_record, _git("show", f"{commit}:./{file}").splitlines()):
            if record:
                ids[_key(record)].setdefault(record["protocol"], commit)
    return ids


def _key(record: Record) -> tuple:
    """Return what a measurement again would change: the commit that measured, at least."""
    return record["arm"], record["case"], record["commit"], *sorted(_numbers(record))


def _numbers(record: Record) -> Iterator[float]:
    """Yield all measured numbers, whatever their names were at the time."""
    for name, value in record.items():
        if name not in ADDED_LATER and isinstance(value, float):
            yield round(value, 9)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
