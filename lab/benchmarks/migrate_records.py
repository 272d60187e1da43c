"""Protocols of records that have none, as stale ones: `python lab/benchmarks/migrate_records.py docs/results`.

Records of before December 2026 have ids that hashed the model's weights, library versions, machine and settings, but no
versions of code. For each of them this command writes what the report says of it to the study's file of protocols, with
today's defaults, and marks it stale with the reasons. The records themselves stay as they are.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint, fingerprints
from kineograph.request import SharedOptions
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies.protocol import (
    STALE,
    last_protocol,
    lock_protocol,
    option_defaults,
    read_protocols,
)
from kineograph_lab.studies.reproduce import MODELS, PAPERS
from kineograph_lab.studies.splits import DEVELOPMENT
from kineograph_lab.studies.study import Analysis, records_file

LORAS = {"specialised", "video-elevator-personalised"}
ADAPTERS = {"still-moving", "still-moving-ablation"}


def main(results: str) -> None:
    for paper, studies in PAPERS.items():
        report = json.loads((Path(results) / f"{paper}.json").read_text())
        changed = ", ".join(_changed_weights(paper, report))
        for analysis, _ in studies:
            folder = Path(results) / paper
            number = last_protocol(records_file(analysis, folder))
            if number and number not in read_protocols(folder, analysis.name):
                lock_protocol(folder, analysis.name, number, _stale_protocol(paper, report, analysis, changed))
                print(f"{paper}/{analysis.name}: {number}")


def _stale_protocol(paper: str, report: Mapping[str, Any], analysis: Analysis, changed: str) -> dict[str, Any]:
    model = report["model"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    reasons = ["the protocol has no versions of sampler, metric and world code", *_unrecorded(analysis)]
    reasons += [f"other weights are used now ({changed})"] if changed else []
    return {
        "models": {"in memory": {**model["weights"], **report["witnesses"]}},
        "settings": report["settings"].get(analysis.name),
        "defaults": option_defaults((SharedOptions, *analysis.options)),
        "versions": None,
        "numbers": {"dtype": model["dtype"], "device": model["device"]},
        "split": DEVELOPMENT,
        "migrated_from": f"{paper}.json; the defaults are those of commit {commit.strip()}, later than the records",
        STALE: f"Stale: {'; '.join(reasons)}. Measured on the development split, which tuning has seen.",
    }


def _unrecorded(analysis: Analysis) -> Iterator[str]:
    """Yield what the protocol says nothing of, though the videos depend on it."""
    names = [name for name in analysis.models if name.startswith("controlnet")]
    names += ["the LoRAs"] if analysis.name in LORAS else []
    names += ["the trained adapters"] if analysis.name in ADAPTERS else []
    if names:
        yield f"nor the weights of {', '.join(names)}"


def _changed_weights(paper: str, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the networks whose weights are others now than the report's."""
    model = load(MODELS[paper], dtype=report["model"]["dtype"], device="cpu")
    now = {**fingerprints(model), "judge": fingerprint(load_judge().eye)}
    before = {**report["model"]["weights"], **report["witnesses"]}
    yield from (name for name, sha256 in now.items() if before.get(name) != sha256)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
