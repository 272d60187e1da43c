"""The laboratory's commands: `reproduce` measures the papers' claims, `bench` speed; `sheets` draws contact sheets."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json
from kineograph.errors import InputError

if TYPE_CHECKING:
    from kineograph_lab.bench.setting import Engine
    from kineograph_lab.studies.report import Report
    from kineograph_lab.studies.splits import Split

ALL = "all"  # in place of a paper


def reproduce(
    paper: Annotated[
        str,
        typer.Argument(
            help="The paper: text2video-zero, videocrafter1, video-elevator, vidrd, still-moving; or long-videos: "
            "FreeNoise, sliding windows and VidRD compared; or all: the studies of all these, the most informative cases "
            "first.",
            show_default=False,
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the cases.")] = False,
    cases: Annotated[
        int | None, typer.Option(show_default="100, or 10 with --quick", help="Held-out cases of each study.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, show_default="each study's own", help="Sampling steps of each video.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Prompts, subjects and styles: test, which no tuning has seen; or development, to look at while you change "
            "anything."
        ),
    ] = "test",
    hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default="until all is measured",
            help="With all: begin no case after so many hours; 0 says only what is there and what is left. The next cases are always "
            "those of the study that has the least share of the cases that its claims need, so first of studies without "
            "records of the present weights, settings and code; of equal shares, the cheaper ones. A claim needs as many "
            "cases as should decide it, by the error of its earlier records.",
        ),
    ] = None,
    from_records: Annotated[
        bool, typer.Option("--from-records", help="Sample nothing: compute the report again from its records.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder for the report.")] = Path("docs/results"),
    json: Json = False,
) -> None:
    """Measure a paper's claims on the built-in models, whose small rendered world is known, with standard errors.

    Writes PAPER.md, PAPER.json and images to the folder. The same command resumes a run that was stopped.
    """
    if split not in ("development", "test"):
        raise InputError(f"--split is development or test, not {split!r}")
    if paper == ALL:
        if from_records:
            raise InputError("--from-records computes the report of one paper: name it")
        _reproduce_all(cases, quick, num_inference_steps, cast("Split", split), hours, out, json)
        return
    if hours is not None:
        raise InputError(f"--hours goes with {ALL}: kineograph reproduce {ALL} --hours {hours:g}")
    if from_records:
        from kineograph_lab.studies.reproduce import report_from_records

        _print_report(report_from_records(paper, out), out, json)
        return
    terminal.print_message("loading the pocket model and its judge")
    from kineograph.models.loading.load import load
    from kineograph_lab.studies import reproduce as study
    from kineograph_lab.studies.judges import load_pocket_judges

    count = cases if cases is not None else study.QUICK_CASES if quick else study.CASES
    study.check_reproducible(paper, count)
    terminal.hide_loading_bars()
    model, judges = load(study.MODELS[paper]), load_pocket_judges()
    with terminal.progress_bar("measuring") as on_video:
        report = study.reproduce(
            paper, model, judges, cases=count, steps=num_inference_steps, split=cast("Split", split), out=out,
            on_video=on_video,
        )  # fmt: skip
    _print_report(report, out, json)


def _reproduce_all(
    cases: int | None, quick: bool, steps: int | None, split: Split, hours: float | None, out: Path, json: bool
) -> None:
    """Say what there is to measure, measure it until the hours are over, and write the reports."""
    terminal.print_message("loading all models and the judge")
    from kineograph_lab.studies import reproduce as study
    from kineograph_lab.studies import schedule
    from kineograph_lab.studies.judges import load_pocket_judges

    terminal.hide_loading_bars()
    count = cases if cases is not None else study.QUICK_CASES if quick else study.CASES
    judges = load_pocket_judges()
    studies = schedule.schedule_studies(judges, cases=count, steps=steps, split=split, out=out)
    for line in schedule.describe_schedule(studies, hours):
        terminal.print_message(line)
    if hours == 0:
        return
    try:
        schedule.measure_scheduled(studies, hours=hours, log=terminal.print_message)
    finally:  # a stop by Ctrl-C included
        command = f"kineograph reproduce {ALL} --cases {count} --split {split}"
        for report in schedule.report_scheduled(studies, judges, command=command, cases=count, out=out):
            _print_report(report, out, json)


def _print_report(report: Report, out: Path, json: bool) -> None:
    from kineograph_lab.studies.report import claim_as_json

    for claim in report.claims:
        mark = "holds" if claim.holds else "FAILS"
        terminal.print_message(
            f"{mark}  {claim.name}: {claim.value:.3f} ± {claim.error:.3f} (n = {claim.count}, {claim.bar}; "
            f"{claim.clusters} clusters, p = {claim.p:.2g}, corrected {claim.p_corrected:.2g})"
        )
    path = out / f"{report.paper}.md"
    if json:
        terminal.print_json({"path": str(path), "claims": [claim_as_json(claim) for claim in report.claims]})
    else:
        terminal.print_path(path)


def bench(
    rows: Annotated[
        list[str] | None,
        typer.Option(
            show_default="all for this machine",
            help="A row, or the start of the names of several: text2video-zero, controlnet, animatediff, training, "
            "end-to-end, network, memory, first-video, gpu. May be given several times, or with commas.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(show_default="openvino where it is installed", help="What computes our side: torch or openvino."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Pairs of timed runs.")] = 6,
    prompts: Annotated[int, typer.Option(help="Prompts of the rows of equal quality.")] = 40,
    seeds: Annotated[int, typer.Option(help="Videos of each prompt.")] = 1,
    preset: Annotated[str, typer.Option(help="Preset of our side in the rows of equal quality.")] = "quality",
    minutes: Annotated[
        float | None, typer.Option(min=0, show_default="until all is measured", help="Begin no row after so long.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, which only show that a row works.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Pass over rows that the file has, of the same settings and machine.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for speed.json, written after each row, and speed.md; its other rows stay.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure speed and memory beside diffusers and other programs, with the same weights."""
    if engine not in (None, "torch", "openvino"):
        raise InputError(f"--engine is torch or openvino, not {engine!r}")
    names = [name for each in rows or () for name in each.split(",")]
    terminal.hide_loading_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    from kineograph_lab.bench import bench as table
    from kineograph_lab.bench.report import format_report

    measured = table.bench(
        names, engine=cast("Engine | None", engine), repeats=repeats, prompts=prompts, seeds=seeds, preset=preset, minutes=minutes, quick=quick,
        resume=resume, out=out, command=shlex.join(["kineograph", *sys.argv[1:]]), log=terminal.print_message,
    )  # fmt: skip
    if json:
        terminal.print_json({"rows": measured})
    else:
        print(format_report(measured, {}))


def sheets(
    sets: Annotated[
        list[str] | None,
        typer.Option(
            show_default="all",
            help="A set: images, image-model, video-model, image-to-video, edit, control, elevator, fox, clips. May be "
            "given several times, or with commas.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(show_default="48 images, 24 videos; 2 with --quick", help="Images or videos of each set."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps and videos, which only show that a set works.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="The folder for the sheets, sheets.json and README.md; other sets in it stay.")
    ] = Path("docs/results/sheets"),
    json: Json = False,
) -> None:
    """Generate contact sheets of the built-in models, of prompts and seeds that follow from the weights' SHA-256.

    Sheets of the same weights and options are not made again: the same command resumes a run that was stopped, and merges
    the counts of broken images and videos, counts.json in the folder, into the page.
    """
    names = [name for each in sets or () for name in each.split(",")]
    terminal.hide_loading_bars()
    from kineograph_lab.sheets import sheets as contact_sheets

    if quick and count is None:
        count = contact_sheets.QUICK_COUNT
    with terminal.progress_bar("generating") as on_case:
        records = contact_sheets.make_sheets(
            names, out=out, count=count, options=contact_sheets.QUICK_OPTIONS if quick else {},
            command=shlex.join(["kineograph", *sys.argv[1:]]),
            on_case=lambda name, done, total: on_case(done, total), log=terminal.print_message,
        )  # fmt: skip
    page = out / contact_sheets.PAGE
    if json:
        sheet_paths = {name: [str(out / sheet) for sheet in record["sheets"]] for name, record in records.items()}
        terminal.print_json({"path": str(page), "sheets": sheet_paths})
    else:
        terminal.print_path(page)
