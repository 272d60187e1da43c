"""`kineograph reproduce`: a paper's comparison on the pocket world, with its claims and whether they hold."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from kineograph.errors import InputError
from kineograph.evaluation import text2video_zero
from kineograph.evaluation.protocol import held_out_cases, identifier
from kineograph.evaluation.report import Report, write
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models.model import Model
from kineograph.models.origin import origin

PAPERS = {"text2video-zero": text2video_zero}
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

    cases: how many held-out prompts; `QUICK_CASES` is a tenth.
    steps: num_inference_steps of every video, the default unless given; recorded in the report.
    on_video: called with (videos measured, videos in all).
    Every video's numbers go to `out/paper/cases.jsonl` at once, so that a run that was stopped goes on where it was;
    those of other weights or settings are passed over.
    Raises InputError for an unknown paper, or no cases.
    """
    check(paper, cases)
    study, folder = PAPERS[paper], Path(out) / paper
    folder.mkdir(parents=True, exist_ok=True)
    asked = replace(study.DEFAULT, num_inference_steps=steps or study.DEFAULT.num_inference_steps)
    about = {**origin(model), "witnesses": dict(witnesses.weights), "settings": asdict(asked)}
    stamp = {"protocol": identifier(about), "commit": commit()}
    chosen, made = held_out_cases(cases), []
    for record in study.records(model, witnesses, chosen, asked, folder, stamp):
        made.append(record)
        if on_video:
            on_video(len(made), len(study.ARMS) * cases)
    command = f"kineograph reproduce {paper} --cases {cases}{f' --num-inference-steps {steps}' if steps else ''}"
    commits = ", ".join(sorted({record["commit"] for record in made}))
    pictures = {
        case.prompt: {arm: f"{paper}/{study.strip(case.number, arm)}" for arm in study.ARMS}
        for case in chosen[: study.SHOWN]
    }
    ran = {"command": command, "commit": commits, "cases": cases, **about}
    report = Report(paper, ran, study.claims(made), study.table(made), pictures)
    write(report, Path(out))
    return report


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
