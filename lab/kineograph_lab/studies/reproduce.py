"""`kineograph reproduce`: run the studies of a paper and report its claims."""

from __future__ import annotations

import json
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.models.loading.provenance import collect_provenance, fingerprints
from kineograph.models.model import Model
from kineograph.request import SharedOptions
from kineograph_lab.studies.freenoise import long_videos as freenoise_videos
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import (
    Protocol,
    Record,
    declare_protocol,
    find_protocol,
    lock_protocol,
    read_protocols,
)
from kineograph_lab.studies.report import Report, correct_report, write_report
from kineograph_lab.studies.sample import ENGINE
from kineograph_lab.studies.splits import TEST, Split
from kineograph_lab.studies.still_moving import baselines, motion_scales
from kineograph_lab.studies.study import (
    Analysis,
    NotTrainedError,
    Study,
    read_study_records,
    run_study,
    summarise_study,
)
from kineograph_lab.studies.text2video_zero import ablation, controlnet, dreambooth, editing, smoothing
from kineograph_lab.studies.video_elevator import personalised, two_models
from kineograph_lab.studies.videocrafter1 import image_to_video, joint_training, text_to_video
from kineograph_lab.studies.vidrd import degraded_videos, long_videos, pan_and_zoom, temporal_decoder
from kineograph_lab.studies.weights import MODEL_FILES, hash_models

MakeStudy = Callable[[Model, Judges, int, int | None], Study]

# paper -> the analysis of each study, which needs its records alone, and the function that prepares to sample and measure
PAPERS: Mapping[str, Sequence[tuple[Analysis, MakeStudy]]] = {
    "text2video-zero": (
        (ablation.ANALYSIS, ablation.ablation_study),
        (controlnet.ANALYSIS, controlnet.controlnet_study),
        (dreambooth.ANALYSIS, dreambooth.dreambooth_study),
        (editing.ANALYSIS, editing.editing_study),
        (smoothing.ANALYSIS, smoothing.smoothing_study),
    ),
    "videocrafter1": (
        (text_to_video.ANALYSIS, text_to_video.text_to_video_study),
        (image_to_video.ANALYSIS, image_to_video.image_to_video_study),
        (joint_training.ANALYSIS, joint_training.joint_training_study),
    ),
    "video-elevator": (
        (two_models.ANALYSIS, two_models.two_models_study),
        (personalised.ANALYSIS, personalised.personalised_study),
    ),
    "vidrd": (
        (long_videos.ANALYSIS, long_videos.long_videos_study),
        (long_videos.ABLATION, long_videos.long_videos_ablation),
        (degraded_videos.ANALYSIS, degraded_videos.fvd_study),
        (temporal_decoder.RECONSTRUCTION, temporal_decoder.reconstruction_study),
        (temporal_decoder.GENERATION, temporal_decoder.decoder_generation_study),
        (pan_and_zoom.ANALYSIS, pan_and_zoom.pan_and_zoom_study),
    ),
    "still-moving": (
        (baselines.ANALYSIS, baselines.customisation_study),
        (baselines.ABLATION, baselines.customisation_ablation),
        (motion_scales.ANALYSIS, motion_scales.motion_scale_study),
        (motion_scales.SPACE_TIME_ANALYSIS, motion_scales.space_time_motion_scale_study),
    ),
    "long-videos": ((freenoise_videos.ANALYSIS, freenoise_videos.three_methods_study),),
}
MODELS = {
    "text2video-zero": "pocket",
    "videocrafter1": "pocket-video",
    "video-elevator": "pocket",
    "vidrd": "pocket-video",
    "still-moving": "pocket-video",
    "long-videos": "pocket-video",
}
CASES, QUICK_CASES = 100, 10
RESULTS = Path("docs/results")

OnVideo = Callable[[int, int], None]


def reproduce(
    paper: str,
    model: Model,
    judges: Judges,
    *,
    cases: int = CASES,
    steps: int | None = None,
    split: Split = TEST,
    out: str | Path = RESULTS,
    on_video: OnVideo | None = None,
) -> Report:
    """Measure a paper's claims and write `out/<paper>.md` and `out/<paper>.json`.

    Every video's metrics are appended to a file in `out/<paper>` at once, so that a run that was stopped resumes there;
    records of other weights, settings or versions of code are ignored.

    Args:
        cases: held-out cases of each study; `QUICK_CASES` is a tenth.
        steps: num_inference_steps of every video, by default each study's own; recorded in the report.
        split: of the cases. Look at "development" while you change anything, at "test" when all is decided.
        on_video: called with (videos measured, videos in all).

    Raises InputError for an unknown paper, or no cases.
    """
    check_reproducible(paper, cases)
    folder = Path(out) / paper
    studies = [
        prepare_study(study, folder, model, judges, split)
        for study in available_studies(paper, model, judges, cases, steps, split)
    ]
    total, done = sum(len(each.study.arms) * len(each.study.cases) for each in studies), 0
    for each in studies:
        lock_study(each, folder)
        for _ in run_study(each.study, folder, each.stamp):
            done += 1
            if on_video:
                on_video(done, total)
    command = f"kineograph reproduce {paper} --cases {cases}{f' --num-inference-steps {steps}' if steps else ''}"
    about = {"command": f"{command} --split {split}", "cases": cases}
    return report_measured(paper, about, model, judges, studies, Path(out))


class PreparedStudy(NamedTuple):
    """A study with its protocol, and the fields of its records that are the same for all.

    stamp: id of the protocol, split, commit and machine.
    """

    study: Study
    protocol: Protocol
    stamp: Record


def prepare_study(study: Study, folder: Path, model: Model, judges: Judges, split: Split) -> PreparedStudy:
    """Return the study with its protocol, whose id is that of an earlier run if nothing changed since."""
    analysis = study.analysis
    protocol = declare_protocol(
        _hash_model(model) | hash_models(analysis.models) | dict(judges.weight_hashes), study.settings,
        (SharedOptions, *analysis.options),
        {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type, "engine": ENGINE}, split,
    )  # fmt: skip
    number = find_protocol(protocol, read_protocols(folder, analysis.name))
    machine = machine_kind(model.device.type)
    stamp = {"protocol": number, "split": split, "commit": current_commit(), "machine": machine}
    return PreparedStudy(study, protocol, stamp)


def _hash_model(model: Model) -> dict[str, dict[str, str]]:
    """Return the hashes of a model's weight files, or of its weights in memory if it was changed since or has no files."""
    source = str(model.settings.get("source", ""))
    as_in_files = model.settings.keys() == {"source"} and (source in MODEL_FILES or expand_user(source).exists())
    return hash_models([source]) if as_in_files else {model.name: fingerprints(model)}


def lock_study(prepared: PreparedStudy, folder: Path) -> None:
    """Write a study's protocol to its file, before its first record is measured."""
    lock_protocol(folder, prepared.study.analysis.name, prepared.stamp["protocol"], prepared.protocol)


def report_measured(
    paper: str, about: Mapping[str, Any], model: Model, judges: Judges, studies: Sequence[PreparedStudy], out: Path
) -> Report:
    """Write the report of studies that ran just now, and of the paper's others from their earlier records."""
    settings = {each.study.analysis.name: dict(each.study.settings) for each in studies}
    protocols = {each.study.analysis.name: each.stamp["protocol"] for each in studies}
    about = {**about, **collect_provenance(model), "witnesses": dict(judges.weight_hashes), "settings": settings}
    return _write_report(paper, about, protocols, out)


def report_from_records(paper: str, out: str | Path = RESULTS) -> Report:
    """Compute a paper's report from its records and write it again, without loading any model.

    Of each study, the records are those of the protocol that was measured last. Command, model, machine and settings are
    those of the earlier report.

    Raises InputError if there is no earlier report.
    """
    check_reproducible(paper, 1)
    file = Path(out) / f"{paper}.json"
    if not file.exists():
        raise InputError(f"there is no {file}: measure the videos first, by kineograph reproduce {paper}")
    earlier = json.loads(file.read_text())
    computed = ("commit", "paper", "claims", "parts")  # by this function or, in earlier reports, from the records
    return _write_report(paper, {name: earlier[name] for name in earlier if name not in computed}, {}, Path(out))


def _write_report(paper: str, about: Mapping[str, Any], protocols: Mapping[str, str], out: Path) -> Report:
    """Write the report of all studies that have records; `protocols` are those of the studies that ran just now."""
    study_reports, folder = [], out / paper
    for analysis, _ in PAPERS[paper]:
        present = protocols.get(analysis.name)
        records = read_study_records(analysis, folder, about["cases"], present) if present else []
        records = records or read_study_records(analysis, folder, about["cases"])
        if records:
            protocol = read_protocols(folder, analysis.name).get(records[0]["protocol"], {})
            study_reports.append(summarise_study(analysis, records, Path(paper), protocol))
    report = correct_report(Report(paper, about, study_reports))
    write_report(report, out)
    return report


def available_studies(
    paper: str, model: Model, judges: Judges, cases: int, steps: int | None, split: Split
) -> Iterator[Study]:
    """Yield the paper's studies; warn of those whose networks were not trained on this machine, and leave them out."""
    for analysis, make_study in PAPERS[paper]:
        try:
            study = make_study(model, judges, cases, steps)
        except NotTrainedError as error:
            text = f"a study is not measured, and reported from its records if there are any: {error}"
            warnings.warn(text, InputWarning, stacklevel=3)
        else:
            yield study._replace(cases=analysis.cases(cases, split))


def check_reproducible(paper: str, cases: int) -> None:
    """Raise InputError for an unknown paper, or no cases."""
    if paper not in PAPERS:
        raise InputError(f"there is nothing to reproduce of {paper!r}: expected {' or '.join(PAPERS)}")
    if cases < 1:
        raise InputError(f"expected at least 1 case, got {cases}")


def current_commit() -> str:
    """Return the commit of this code, with "-dirty" if files differ from it; "unknown" outside of a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def machine_kind(device: str) -> str:
    """Return processor and threads, or the GPU: seconds are compared on machines of one kind."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"
