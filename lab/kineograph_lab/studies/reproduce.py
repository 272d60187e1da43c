"""`kineograph reproduce`: a paper's comparison on the pocket world, with its claims and whether they hold."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kineograph.errors import InputError, InputWarning
from kineograph.media.metadata import settings_id
from kineograph.models.loading.provenance import collect_provenance
from kineograph.models.model import Model
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.report import Report, write
from kineograph_lab.studies.still_moving import baselines, motion_scales, space_time
from kineograph_lab.studies.study import Study, Untrained, part, records
from kineograph_lab.studies.text2video_zero import ablation, controlled, dreambooth, editing, smoothing
from kineograph_lab.studies.video_elevator import personalised, two_models
from kineograph_lab.studies.videocrafter1 import image_to_video, joint_training, text_to_video
from kineograph_lab.studies.vidrd import degraded_videos, long_videos, pan_and_zoom, temporal_decoder

Make = Callable[[Model, Witnesses, int, int | None], Study]

PAPERS: Mapping[str, Sequence[Make]] = {
    "text2video-zero": (
        ablation.studied, controlled.studied, dreambooth.studied, editing.studied, smoothing.studied,
    ),
    "videocrafter1": (text_to_video.studied, image_to_video.studied, joint_training.studied),
    "video-elevator": (two_models.studied, personalised.studied),
    "vidrd": (
        long_videos.studied, long_videos.ablated, degraded_videos.studied, temporal_decoder.filmed,
        temporal_decoder.drawn, pan_and_zoom.studied,
    ),
    "still-moving": (baselines.studied, baselines.ablated, motion_scales.studied, space_time.studied),
}  # fmt: skip
MODELS = {
    "text2video-zero": "pocket",
    "videocrafter1": "pocket-video",
    "video-elevator": "pocket",
    "vidrd": "pocket-video",
    "still-moving": "pocket-video",
}
CASES, QUICK_CASES = 100, 10
RESULTS = Path("docs/results")

OnVideo = Callable[[int, int], None]


def reproduce(
    paper: str,
    model: Model,
    witnesses: Witnesses,
    *,
    cases: int = CASES,
    steps: int | None = None,
    out: str | Path = RESULTS,
    on_video: OnVideo | None = None,
) -> Report:
    """Measures a paper's claims and writes `out/paper.md` and `out/paper.json`.

    cases: how many held-out cases of each study; `QUICK_CASES` is a tenth.
    steps: num_inference_steps of every video, each study's own unless given; recorded in the report.
    on_video: called with (videos measured, videos in all).
    Every video's numbers go to a file in `out/paper` at once, so that a run that was stopped goes on where it was;
    those of other weights or settings are passed over.
    Raises InputError for an unknown paper, or no cases.
    """
    check(paper, cases)
    folder = Path(out) / paper
    folder.mkdir(parents=True, exist_ok=True)
    studies = list(_studies(paper, model, witnesses, cases, steps))
    about = {**collect_provenance(model), "witnesses": dict(witnesses.weights)}
    total = sum(len(study.arms) * len(study.cases) for study in studies)
    parts, commits, done = [], set[str](), 0
    for study in studies:
        stamp = {"protocol": settings_id({**about, "settings": study.settings}), "commit": commit()}
        made = []
        for record in records(study, folder, stamp):
            made.append(record)
            commits.add(record["commit"])
            done += 1
            if on_video:
                on_video(done, total)
        parts.append(part(study, made, Path(paper)))
    command = f"kineograph reproduce {paper} --cases {cases}{f' --num-inference-steps {steps}' if steps else ''}"
    settings = {study.name: dict(study.settings) for study in studies}
    ran = {"command": command, "commit": ", ".join(sorted(commits)), "cases": cases, **about, "settings": settings}
    report = Report(paper, ran, parts)
    write(report, Path(out))
    return report


def _studies(paper: str, model: Model, witnesses: Witnesses, cases: int, steps: int | None) -> Iterator[Study]:
    """The paper's studies, but those of networks that are trained for them alone and are not there, which it says."""
    for make in PAPERS[paper]:
        try:
            yield make(model, witnesses, cases, steps)
        except Untrained as missing:
            warnings.warn(f"a study is left out: {missing}", InputWarning, stacklevel=3)


def check(paper: str, cases: int) -> None:
    """Raises InputError for an unknown paper, or no cases."""
    if paper not in PAPERS:
        raise InputError(f"there is nothing to reproduce of {paper!r}: expected {' or '.join(PAPERS)}")
    if cases < 1:
        raise InputError(f"expected at least 1 case, got {cases}")


def commit() -> str:
    """The commit of this code, marked "-dirty" when files differ from it; "unknown" outside of a checkout."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
