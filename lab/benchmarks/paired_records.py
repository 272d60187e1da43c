"""Paired comparison of a study's records: `paired_records.py BEFORE PROTOCOL AFTER PROTOCOL ARM CASES_PER_CLUSTER`.

BEFORE and AFTER are record files of `kineograph reproduce`. For the videos of an arm that are in both, it prints each
metric before and after, and the mean difference. Errors are over clusters of so many consecutive cases: 10 for
Still-Moving, where an item has ten videos.
"""

import sys
from pathlib import Path

from kineograph_lab.studies.protocol import Record, load_records
from kineograph_lab.studies.study import metric_values


def main(before_file: str, before_protocol: str, after_file: str, after_protocol: str, arm: str, size: str) -> None:
    both = load_records(Path(before_file), before_protocol), load_records(Path(after_file), after_protocol)
    cases = set.intersection(*({record["case"] for record in records if record["arm"] == arm} for records in both))
    if not cases:
        sys.exit(f"no video of {arm!r} is in both: check the files, the protocols and the arm's name")
    before, after = (
        [{**record, "cluster": record["case"] // int(size)} for record in records if record["case"] in cases]
        for records in both
    )
    print(f"{len(cases)} videos of {arm!r}")
    for name in _metric_names(before[0]):
        earlier, now = metric_values(before, arm, name), metric_values(after, arm, name)
        if len(earlier.values) == len(now.values) == len(cases):
            print(f"{name}: {earlier.mean}, now {now.mean}, by {now.minus(earlier).mean}")


def _metric_names(record: Record) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, float)]


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    main(*sys.argv[1:])
