"""What a change did to a study: `python benchmarks/paired_records.py BEFORE PROTOCOL NOW PROTOCOL ARM`.

BEFORE and NOW are files of records that `kineograph reproduce` left. Of an arm's videos that both have: each number
before and now, and the mean difference with its standard error over the videos.
"""

import sys
from pathlib import Path

import numpy as np

from kineograph.metrics.distances import mean
from kineograph_lab.studies.protocol import Record, kept
from kineograph_lab.studies.study import column


def main(before: str, old: str, now: str, new: str, arm: str) -> None:
    pair = kept(Path(before), old), kept(Path(now), new)
    cases = set.intersection(*({record["case"] for record in made if record["arm"] == arm} for made in pair))
    if not cases:
        sys.exit(f"no video of {arm!r} is in both: check the files, the protocols and the arm's name")
    one, other = ([record for record in made if record["case"] in cases] for made in pair)
    print(f"{len(cases)} videos of {arm!r}")
    for name in _numbers(one[0]):
        values = column(one, arm, name), column(other, arm, name)
        if len(values[0]) == len(values[1]) == len(cases):
            print(f"{name}: {mean(values[0])}, now {mean(values[1])}, by {mean(np.subtract(*values[::-1]).tolist())}")


def _numbers(record: Record) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, float)]


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
