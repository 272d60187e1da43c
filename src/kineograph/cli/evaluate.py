"""`kineograph evaluate`: what folders of videos score, and by which protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kineograph.cli import terminal
from kineograph.cli.options import FILE, Device, Json

WITH = "What is measured with"


def evaluate(
    folders: Annotated[list[Path], typer.Argument(help="Folders of videos; several stand side by side.")],
    against: Annotated[
        Path | None, typer.Option(show_default=False, help="A folder of real videos, for FVD and KVD.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            show_default="those that videos of Kineograph's carry", help="A .csv or .jsonl of file and prompt."
        ),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=WITH,
            show_default="pocket",
            help="pocket, clip:PATH, videomae:PATH (folders or hub ids) or torchscript:FILE; may be repeated.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(rich_help_panel=WITH, show_default=False, help="Pictures of a subject or a style, for CLIP-I."),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(rich_help_panel=WITH, min=0.1, show_default="each video's own", help="Frames read a second."),
    ] = None,
    device: Device = None,
    beside: Annotated[
        Path | None, typer.Option(rich_help_panel=FILE, show_default=False, help="An earlier .json to compare with.")
    ] = None,
    across: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=FILE, show_default=False, help="A score to compare although protocols differ."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", rich_help_panel=FILE, help="The folder to write to.")
    ] = Path("report"),
    json: Json = False,
) -> None:
    """Measure videos: FVD, IS, CLIP-T, CLIP-I, frame consistency, warp error, motion.

    Writes a .json of each folder, report.md, and index.html with the videos side by side. Each score carries the id of
    its protocol (extractor, resize, frames, how many videos, prompts): those with different ids cannot be compared.
    """
    from kineograph.media.files import check_folder

    check_folder(output / "index.html")
    terminal.say("loading what measures")
    from kineograph.metrics import evaluate as evaluation
    from kineograph.metrics.collection import read_prompts
    from kineograph.metrics.extractors import POCKET
    from kineograph.metrics.report import by_name, read_scores, side_by_side
    from kineograph.models.placement import choose_placement

    terminal.quiet_loading()
    told = read_prompts(prompts) if prompts else None
    earlier = read_scores(beside) if beside else None  # before it may be written over
    extractors, gauges = evaluation.instruments(
        extractor or [POCKET], pictures=pictures, device=choose_placement(device).device
    )
    with terminal.counted("measuring") as on_video:
        found = evaluation.evaluate(
            folders, extractors=extractors, gauges=gauges, against=against, prompts=told, fps=fps, on_video=on_video
        )
    path = evaluation.write(found, output)
    for each in found:
        for score in each.scores:
            terminal.say(f"{each.name}  {score.name}: {score.value} (n = {score.count}, protocol {score.protocol})")
        for row in side_by_side(by_name(each.as_json()), earlier, across or ()) if earlier is not None else ():
            terminal.say(
                f"{each.name} beside {beside}  {row.name}: {row.ours} and {row.theirs}, {row.difference} apart"
            )
    if json:
        terminal.answer({"path": str(path), "sets": [each.as_json() for each in found]})
    else:
        print(path)
