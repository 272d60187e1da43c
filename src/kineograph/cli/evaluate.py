"""`kineograph evaluate`: scores of folders of videos."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json, file_option

if TYPE_CHECKING:
    from kineograph.metrics.statistics import Estimate

metric_option = partial(typer.Option, rich_help_panel="Metrics")


def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Folders of videos to measure and compare.")],
    against: Annotated[
        Path | None, typer.Option(show_default=False, help="A folder of real videos, for FVD and KVD.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            show_default="those that Kineograph wrote into the videos",
            help="A .csv or .jsonl file with columns for file and prompt.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            show_default="each video is independent",
            help="The column of the --prompts file whose value videos share that depend on one another, such as those "
            "of one trained LoRA. Errors are then those of a sample of clusters.",
        ),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        metric_option(
            show_default="pocket if kineograph-lab is installed, else clip",
            help="Network whose features are compared: clip:PATH or videomae:PATH (folders or hub ids), "
            "torchscript:FILE; or, for videos of the built-in models alone, clip and pocket. May be repeated.",
        ),
    ] = None,
    images: Annotated[
        Path | None, metric_option(show_default=False, help="A folder of images of a subject or a style, for CLIP-I.")
    ] = None,
    fps: Annotated[
        float | None,
        metric_option(min=0.1, show_default="each video's own", help="Frames per second at which the videos are read."),
    ] = None,
    device: Annotated[
        str | None,
        metric_option(show_default="the fastest here", help="cpu, cuda, cuda:1, mps; see kineograph doctor."),
    ] = None,
    compare_with: Annotated[
        Path | None, file_option(show_default=False, help="A .json report of an earlier run.")
    ] = None,
    ignore_protocol: Annotated[
        list[str] | None,
        file_option(show_default=False, help="A score to compare although its protocols differ; may be repeated."),
    ] = None,
    output: Annotated[Path, file_option("--output", "-o", help="The folder for the report.")] = Path("report"),
    json: Json = False,
) -> None:
    """Measure videos: FVD, KVD, IS, CLIP-T, CLIP-I, frame consistency, warp error, motion, with 95 % intervals.

    Writes a .json file for each folder, report.md, and index.html with the videos side by side. Each score carries the
    id of its protocol (extractor, resize, frames, number of videos, prompts). Scores with different ids cannot be
    compared.
    """
    from kineograph.errors import InputError
    from kineograph.media.files import check_writable

    if cluster is not None and prompts is None:
        raise InputError("--cluster names a column of the file of --prompts: give that file too")
    check_writable(output / "index.html")
    terminal.print_message("loading the metrics")
    from kineograph.metrics import evaluate as evaluation
    from kineograph.metrics.collection import read_clusters, read_prompts
    from kineograph.metrics.extractors import load_metrics
    from kineograph.metrics.report import compare_scores, read_scores, scores_by_name
    from kineograph.models.placement import choose_placement

    terminal.hide_loading_bars()
    by_file = read_prompts(prompts) if prompts else None
    clusters = read_clusters(prompts, cluster) if prompts and cluster else None
    earlier = read_scores(compare_with) if compare_with else None  # before the file may be overwritten
    extractors, metrics = load_metrics(extractor, images=images, device=choose_placement(device).device)
    with terminal.progress_bar("measuring") as on_video:
        evaluations = evaluation.evaluate(
            folders, extractors=extractors, metrics=metrics, against=against, prompts=by_file,
            clusters=clusters, fps=fps, on_video=on_video,
        )  # fmt: skip
    path = evaluation.write_reports(evaluations, output)
    for each in evaluations:
        for score in each.scores:
            terminal.print_message(
                f"{each.name}  {score.name}: {score.value} (n = {score.count}"
                f"{_of_clusters(score.value)}, protocol {score.protocol})"
            )
        if earlier is None:
            continue
        for row in compare_scores(scores_by_name(each.as_json()), earlier, ignore_protocol or ()):
            terminal.print_message(
                f"{each.name} and {compare_with}  {row.name}: {row.ours} and {row.theirs}, difference {row.difference}"
            )
    if json:
        terminal.print_json({"path": str(path), "sets": [each.as_json() for each in evaluations]})
    else:
        terminal.print_path(path)


def _of_clusters(estimate: Estimate) -> str:
    return "" if estimate.clusters == estimate.count else f" in {estimate.clusters} clusters"
