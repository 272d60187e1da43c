"""`kineograph reproduce`: run the studies of a paper and report its claims."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kineograph.errors import InputError, InputWarning
from kineograph.media.metadata import settings_id
from kineograph.models.loading.provenance import collect_provenance
from kineograph.models.model import Model
from kineograph_lab.studies.freenoise import long_videos as freenoise_videos
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.report import Report, correct_report, write_report
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
    out: str | Path = RESULTS,
    on_video: OnVideo | None = None,
) -> Report:
    """Measure a paper's claims and write `out/<paper>.md` and `out/<paper>.json`.

    Every video's metrics are appended to a file in `out/<paper>` at once, so that a run that was stopped resumes there;
    records of other weights or settings are ignored.

    Args:
        cases: held-out cases of each study; `QUICK_CASES` is a tenth.
        steps: num_inference_steps of every video, by default each study's own; recorded in the report.
        on_video: called with (videos measured, videos in all).

    Raises InputError for an unknown paper, or no cases.
    """
    check_reproducible(paper, cases)
    folder = Path(out) / paper
    folder.mkdir(parents=True, exist_ok=True)
    studies = list(_available_studies(paper, model, judges, cases, steps))
    about = {**collect_provenance(model), "witnesses": dict(judges.weight_hashes)}
    total, done, protocols = sum(len(study.arms) * len(study.cases) for study in studies), 0, dict[str, str]()
    for study in studies:
        protocol = settings_id({**about, "settings": study.settings})
        protocols[study.analysis.name] = protocol
        for _ in run_study(study, folder, {"protocol": protocol, "commit": current_commit()}):
            done += 1
            if on_video:
                on_video(done, total)
    command = f"kineograph reproduce {paper} --cases {cases}{f' --num-inference-steps {steps}' if steps else ''}"
    settings = {study.analysis.name: dict(study.settings) for study in studies}
    return _write_report(
        paper, {"command": command, "cases": cases, **about, "settings": settings}, protocols, Path(out)
    )


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
    study_reports = []
    for analysis, _ in PAPERS[paper]:
        records = read_study_records(analysis, out / paper, about["cases"], protocols.get(analysis.name))
        if records:
            study_reports.append(summarise_study(analysis, records, Path(paper)))
    report = correct_report(Report(paper, about, study_reports))
    write_report(report, out)
    return report


def _available_studies(paper: str, model: Model, judges: Judges, cases: int, steps: int | None) -> Iterator[Study]:
    """Yield the paper's studies; warn of those whose networks were not trained on this machine, and leave them out."""
    for _, make_study in PAPERS[paper]:
        try:
            yield make_study(model, judges, cases, steps)
        except NotTrainedError as error:
            text = f"a study is not measured, and reported from its records if there are any: {error}"
            warnings.warn(text, InputWarning, stacklevel=3)


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
