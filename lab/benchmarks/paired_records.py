"""Paired comparison of a study's records: `python lab/benchmarks/paired_records.py BEFORE PROTOCOL AFTER PROTOCOL ARM`.

BEFORE and AFTER are record files of `kineograph reproduce`. For the videos of an arm that are in both, it prints each
metric before and after, and the mean difference with its standard error over the videos.
"""

import sys
from pathlib import Path

import numpy as np

from kineograph.metrics.distances import mean
from kineograph_lab.studies.protocol import Record, load_records
from kineograph_lab.studies.study import metric_values


def main(before_file: str, before_protocol: str, after_file: str, after_protocol: str, arm: str) -> None:
    both = load_records(Path(before_file), before_protocol), load_records(Path(after_file), after_protocol)
    cases = set.intersection(*({record["case"] for record in records if record["arm"] == arm} for records in both))
    if not cases:
        sys.exit(f"no video of {arm!r} is in both: check the files, the protocols and the arm's name")
    before, after = ([record for record in records if record["case"] in cases] for records in both)
    print(f"{len(cases)} videos of {arm!r}")
    for name in _metric_names(before[0]):
        values = metric_values(before, arm, name), metric_values(after, arm, name)
        if len(values[0]) == len(values[1]) == len(cases):
            print(f"{name}: {mean(values[0])}, now {mean(values[1])}, by {mean(np.subtract(*values[::-1]).tolist())}")


def _metric_names(record: Record) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, float)]


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
