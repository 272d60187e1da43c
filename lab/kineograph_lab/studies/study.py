"""A study: cases, arms that generate their videos, metrics of the videos, and claims about the metrics."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.errors import InputError
from kineograph.media.files import file_sha256
from kineograph.metrics.features import Frames
from kineograph.metrics.statistics import Estimate
from kineograph_lab.studies.claims import Claim, Values
from kineograph_lab.studies.protocol import (
    Case,
    Protocol,
    Record,
    append_record,
    describe_records,
    last_protocol,
    load_records,
    recorded_cluster,
)
from kineograph_lab.studies.report import StudyReport
from kineograph_lab.studies.splits import DEVELOPMENT, Split

CASES_WITH_IMAGES = range(3)  # numbers of the cases whose frames go into the report

# Metrics of many studies, with their names in the report's table.
PROMPT_ROWS = {
    "thing": "frames with the prompt's subject",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
}
COMMON_ROWS = {
    **PROMPT_ROWS,
    "always the same": "videos with one subject and colour throughout",
    "individual": "similarity of the individual to the first frame's",
    "text": "CLIP score (100 cos)",
}

GenerateClips = Callable[[Sequence[Case]], Sequence[Frames]]
# Metrics of all videos of an arm together: records -> row of the table -> arm -> value
SetMetrics = Callable[[Sequence[Record]], Mapping[str, Mapping[str, Estimate]]]


def all_frames(frames: Frames) -> Frames:
    """Return the frames unchanged."""
    return frames


def every_third_frame(frames: Frames) -> UInt8[np.ndarray, "third h w 3"]:
    """Return frames 0, 3, 6, ..."""
    return frames[::3]


def nothing_trained(arm: str, case: Case) -> Sequence[Path]:
    """Return no files: no network is trained for a case."""
    return []


def no_set_metrics(records: Sequence[Record]) -> Mapping[str, Mapping[str, Estimate]]:
    """Return no metrics: every video of the study is measured by itself."""
    return {}


class NotTrainedError(InputError):
    """A network that a study needs, and that is not shipped, has not been trained on this machine."""


def not_trained_error(file: Path, *stages: str) -> NotTrainedError:
    """Return the error for a missing weight file that these stages of the training recipe write."""
    command = f"python -m kineograph_lab.recipe.run --from-shipped --stages {','.join(stages)}"
    return NotTrainedError(f"there is no {file}: train it first, by {command}")


class Analysis(NamedTuple):
    """What a study reports from its records alone, without any network.

    name              base name of its record and image files
    title             heading of its section in the report
    cases             (count, split) -> at most so many cases
    state_claims      records -> claims
    rows              metric -> its name in the table
    models            names of `weights.MODEL_FILES`: all networks beside the model that is given and the judges
    options           TypedDicts of the options that the videos depend on, beside those of all methods
    cases_with_images numbers of the cases whose frames go into the report
    set_metrics       further rows of the table, of all videos of an arm together
    """

    name: str
    title: str
    cases: Callable[[int, Split], Sequence[Case]]
    state_claims: Callable[[Sequence[Record]], list[Claim]]
    rows: Mapping[str, str]
    models: Sequence[str] = ()
    options: Sequence[type] = ()
    cases_with_images: Collection[int] = CASES_WITH_IMAGES
    set_metrics: SetMetrics = no_set_metrics


class Study(NamedTuple):
    """One comparison of a paper.

    settings      all that its numbers depend on besides the model and the judges
    arms          functions that generate the videos of some consecutive cases
    measure       named metrics of a video of a case, and the features that `set_metrics` reads
    batch_size    cases that are generated together
    select_frames frames of a video that are shown in the report
    trained       (arm, case) -> weight files that were trained for the video; their hashes are recorded
    """

    analysis: Analysis
    settings: Mapping[str, Any]
    cases: Sequence[Case]
    arms: Mapping[str, GenerateClips]
    measure: Callable[[Frames, Case], Mapping[str, Any]]
    batch_size: int = 1
    select_frames: Callable[[Frames], Frames] = all_frames
    trained: Callable[[str, Case], Sequence[Path]] = nothing_trained


def run_study(study: Study, folder: Path, stamp: Record) -> Iterator[Record]:
    """Yield a record of every case and arm, those of an earlier run first; append each new one to the study's file.

    stamp: fields added to every record; records of an earlier run are used if their "protocol" is the same.
    """
    wanted = {(arm, case.number) for arm in study.arms for case in study.cases}
    earlier = recorded_pairs(study.analysis, folder, stamp["protocol"])
    yield from (record for key, record in earlier.items() if key in wanted)
    for batch in missing_batches(study, earlier):
        yield from measure_batch(study, batch, folder, stamp)


def recorded_pairs(analysis: Analysis, folder: Path, protocol: str) -> dict[tuple[str, int], Record]:
    """Return a study's records of a protocol by arm and number of the case."""
    records = load_records(records_file(analysis, folder), protocol)
    return {(each["arm"], each["case"]): each for each in records}


def missing_batches(study: Study, recorded: Collection[tuple[str, int]]) -> list[Sequence[Case]]:
    """Return the batches of cases of which at least one record is missing."""
    size = study.batch_size
    batches = [study.cases[start : start + size] for start in range(0, len(study.cases), size)]
    return [
        batch for batch in batches if any((arm, case.number) not in recorded for arm in study.arms for case in batch)
    ]


def measure_batch(study: Study, batch: Sequence[Case], folder: Path, stamp: Record) -> Iterator[Record]:
    """Yield the missing records of a batch of cases, each after it was appended to the study's file."""
    recorded, analysis = recorded_pairs(study.analysis, folder, stamp["protocol"]), study.analysis
    for arm, generate_clips in study.arms.items():
        missing = [case for case in batch if (arm, case.number) not in recorded]
        if not missing:
            continue
        started = time.monotonic()
        clips = generate_clips(batch)  # all, since a batch has one seed
        seconds = (time.monotonic() - started) / len(missing)
        for case, frames in zip(batch, clips, strict=True):
            if case not in missing:
                continue
            started = time.monotonic()
            record = {**stamp, "arm": arm, "case": case.number, "prompt": case.prompt, "cluster": cluster_of(case)}
            if trained := study.trained(arm, case):
                record["trained"] = {f"{file.parent.name}/{file.name}": file_sha256(file) for file in trained}
            record |= study.measure(frames, case)
            record["seconds"] = round(seconds + time.monotonic() - started, 3)
            if case.number in analysis.cases_with_images:
                side_by_side = np.concatenate(list(study.select_frames(frames)), axis=1)
                Image.fromarray(side_by_side).save(folder / image_file_name(analysis, case, arm))
            append_record(records_file(analysis, folder), record)
            yield record


def records_file(analysis: Analysis, folder: Path) -> Path:
    """Return the file of a study's records."""
    return folder / f"{analysis.name}.jsonl"


def cluster_of(case: Case) -> int:
    """Return the number of the case's cluster."""
    return case.number if case.cluster is None else case.cluster


def image_file_name(analysis: Analysis, case: Case, arm: str) -> str:
    """Return the name of the image file with frames of a case side by side."""
    return f"{analysis.name}-{case.number}-{arm.replace(' ', '-')}.png"


def read_study_records(analysis: Analysis, folder: Path, count: int, protocol: str | None = None) -> list[Record]:
    """Return the records of up to `count` cases of a study, with their clusters, one for each arm and case.

    Cases that lack an arm, since the run was stopped there, are left out.

    protocol: of the records; by default that of the last one in the file.
    """
    every = recorded_pairs(analysis, folder, protocol or last_protocol(records_file(analysis, folder)))
    if not every:
        return []
    split: Split = next(iter(every.values())).get("split", DEVELOPMENT)
    clusters = {case.number: cluster_of(case) for case in analysis.cases(count, split)}
    arms_of = defaultdict[int, set[str]](set)
    for arm, number in every:
        arms_of[number].add(arm)
    arms = {arm for number in clusters for arm in arms_of[number]}
    return [
        {**record, "cluster": clusters[number]}
        for (_, number), record in every.items()
        if number in clusters and arms_of[number] == arms
    ]


def summarise_study(
    analysis: Analysis, records: Sequence[Record], folder: Path, protocol: Protocol | None = None
) -> StudyReport:
    """Return a study's section of the report; its table has no row for a metric that no record has.

    Args:
        folder: of its images, relative to the report.
        protocol: of the records, if it is known.
    """
    split: Split = records[0].get("split", DEVELOPMENT)
    arms, numbers = list(dict.fromkeys(each["arm"] for each in records)), {each["case"] for each in records}
    images = {
        case.prompt: {arm: str(folder / image_file_name(analysis, case, arm)) for arm in arms}
        for case in analysis.cases(1 + max(analysis.cases_with_images), split)
        if case.number in numbers and case.number in analysis.cases_with_images
    }
    means = {
        row: {arm: metric_values(records, arm, metric).mean for arm in arms} for metric, row in analysis.rows.items()
    }
    table = {row: cells for row, cells in means.items() if any(each.count for each in cells.values())}
    claims = [replace(claim, study=analysis.name) for claim in analysis.state_claims(records)]
    provenance = describe_records(records, protocol or {})
    return StudyReport(analysis.title, claims, {**table, **analysis.set_metrics(records)}, images, provenance)


def metric_values(records: Sequence[Record], arm: str, metric: str) -> Values:
    """Return a metric of an arm, of all cases that have it, in the order of the cases."""
    return computed_values([record for record in records if metric in record], arm, lambda record: record[metric])


def computed_values(records: Sequence[Record], arm: str, compute: Callable[[Record], float]) -> Values:
    """Return a number computed from each record of an arm, in the order of the cases."""
    found = sorted((record for record in records if record["arm"] == arm), key=lambda record: record["case"])
    return Values(
        tuple(map(compute, found)),
        tuple(each["case"] for each in found),
        tuple(recorded_cluster(each) for each in found),
    )
