"""A study: cases, arms that generate their videos, metrics of the videos, and claims about the metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.errors import InputError
from kineograph.metrics.distances import Mean, mean
from kineograph.metrics.features import Frames
from kineograph_lab.studies.protocol import Case, Record, append_record, load_records
from kineograph_lab.studies.report import Claim, StudyReport

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
SetMetrics = Callable[[Sequence[Record]], Mapping[str, Mapping[str, Mean]]]


def all_frames(frames: Frames) -> Frames:
    """Return the frames unchanged."""
    return frames


def every_third_frame(frames: Frames) -> UInt8[np.ndarray, "third h w 3"]:
    """Return frames 0, 3, 6, ..."""
    return frames[::3]


def no_set_metrics(records: Sequence[Record]) -> Mapping[str, Mapping[str, Mean]]:
    """Return no metrics: every video of the study is measured by itself."""
    return {}


class NotTrainedError(InputError):
    """A network that a study needs, and that is not shipped, has not been trained on this machine."""


def not_trained_error(file: Path, *stages: str) -> NotTrainedError:
    """Return the error for a missing weight file that these stages of the training recipe write."""
    command = f"python -m kineograph_lab.recipe.run --from-shipped --stages {','.join(stages)}"
    return NotTrainedError(f"there is no {file}: train it first, by {command}")


class Study(NamedTuple):
    """One comparison of a paper.

    name              base name of its record and image files
    title             heading of its section in the report
    settings          all that its numbers depend on besides the model and the judges
    arms              functions that generate the videos of some consecutive cases
    measure           named metrics of a video of a case, and the features that `set_metrics` reads
    state_claims      records -> claims
    rows              metric -> its name in the table
    batch_size        cases that are generated together
    cases_with_images numbers of the cases whose frames go into the report
    select_frames     frames of a video that are shown there
    set_metrics       further rows of the table, of all videos of an arm together
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    cases: Sequence[Case]
    arms: Mapping[str, GenerateClips]
    measure: Callable[[Frames, Case], Mapping[str, Any]]
    state_claims: Callable[[Sequence[Record]], list[Claim]]
    rows: Mapping[str, str]
    batch_size: int = 1
    cases_with_images: Collection[int] = CASES_WITH_IMAGES
    select_frames: Callable[[Frames], Frames] = all_frames
    set_metrics: SetMetrics = no_set_metrics


def run_study(study: Study, folder: Path, stamp: Record) -> Iterator[Record]:
    """Yield a record of every case and arm, those of an earlier run first; append each new one to the study's file.

    stamp: fields added to every record; records of an earlier run are used if their "protocol" is the same.
    """
    file = folder / f"{study.name}.jsonl"
    wanted = {(arm, case.number) for arm in study.arms for case in study.cases}
    earlier = {(each["arm"], each["case"]): each for each in load_records(file, stamp["protocol"])}
    yield from (record for key, record in earlier.items() if key in wanted)
    for start in range(0, len(study.cases), study.batch_size):
        batch = study.cases[start : start + study.batch_size]
        for arm, generate_clips in study.arms.items():
            if all((arm, case.number) in earlier for case in batch):
                continue
            for case, frames in zip(batch, generate_clips(batch), strict=True):
                if (arm, case.number) in earlier:
                    continue
                record = {**stamp, "arm": arm, "case": case.number, "prompt": case.prompt}
                record |= study.measure(frames, case)
                if case.number in study.cases_with_images:
                    side_by_side = np.concatenate(list(study.select_frames(frames)), axis=1)
                    Image.fromarray(side_by_side).save(folder / image_file_name(study, case, arm))
                append_record(file, record)
                yield record


def image_file_name(study: Study, case: Case, arm: str) -> str:
    """Return the name of the image file with frames of a case side by side."""
    return f"{study.name}-{case.number}-{arm.replace(' ', '-')}.png"


def summarise_study(study: Study, records: Sequence[Record], folder: Path) -> StudyReport:
    """Return a study's section of the report; `folder` holds its images, relative to the report."""
    images = {
        case.prompt: {arm: str(folder / image_file_name(study, case, arm)) for arm in study.arms}
        for case in study.cases
        if case.number in study.cases_with_images
    }
    table = {
        row: {arm: mean(metric_values(records, arm, metric)) for arm in study.arms}
        for metric, row in study.rows.items()
    }
    return StudyReport(study.title, study.state_claims(records), {**table, **study.set_metrics(records)}, images)


def metric_values(records: Sequence[Record], arm: str, metric: str) -> list[float]:
    """Return a metric of an arm, of all cases that have it, in the order of the cases."""
    ordered = sorted((record for record in records if record["arm"] == arm), key=lambda record: record["case"])
    return [record[metric] for record in ordered if metric in record]
