"""`kineograph data`: raw footage becomes shards of captioned clips."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json

if TYPE_CHECKING:  # whoever only asks for help does not wait
    from kineograph.curation.settings import DataSettings

SHOWN = 5  # names in a message
BAD = ("broken", "left out", "caption")  # reasons that are named one by one
NOTHING = 1  # the status when no clip got through


def curate(
    settings: Annotated[Path, typer.Argument(help="A YAML file, such as examples/data.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(show_default=False, help="Settings in place of the file's: cuts.longest=4."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is and what is wrong with it; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Cut films into clips, sift, clean and caption them, and make pictures move: shards to train on.

    The folder of the shards goes to stdout, all else to stderr. The same command goes on with a run that was stopped;
    on a Ray cluster it is RAY_ADDRESS=auto kineograph data SETTINGS. See docs/data.md.
    """
    from kineograph.curation.packing import read_dropped, read_manifest
    from kineograph.curation.run import prepare
    from kineograph.curation.settings import DataSettings
    from kineograph.training import load_settings

    chosen = load_settings(settings, DataSettings, overrides or [])
    if dry_run:
        _tell_plan(chosen, json)
        return
    terminal.hide_loading_bars()
    stage = ""
    with terminal.progress_bar("preparing") as tell, closing(prepare(chosen)) as steps:
        for reached in steps:
            if reached.stage != stage:
                stage = reached.stage
                terminal.print_message(f"{stage}: {reached.total} to do")
            tell(reached.done, reached.total)
    manifest = read_manifest(chosen.output.expanduser())
    if json:
        terminal.print_json({"path": str(chosen.output), **manifest})
    else:
        drops = read_dropped(chosen.output.expanduser())
        _tell(manifest, [f"{drop.file} ({drop.told})" for drop in drops if drop.why in BAD])
        print(chosen.output)
    if not manifest["clips"]:
        raise SystemExit(NOTHING)


def _tell(manifest: Mapping[str, Any], bad: list[str]) -> None:
    files, dropped = manifest["files"], manifest["dropped"]
    terminal.print_message(
        f"{manifest['clips']} clips of {manifest['seconds']:.0f} seconds in {len(manifest['shards'])} shards, from "
        f"{files['videos']} videos and {files['pictures']} pictures, {files['broken']} of which are broken"
    )
    if dropped:
        terminal.print_message(
            f"dropped: {', '.join(f'{count} {why}' for why, count in dropped.items())}; see dropped.jsonl"
        )
    if bad:
        terminal.print_message(f"cannot be used: {_some(bad)}")
    if manifest["without_caption"]:
        terminal.print_message(f"{manifest['without_caption']} clips have no caption: set captions, or give labels")
    if not manifest["clips"]:
        terminal.print_message("no clip got through: dropped.jsonl says why for each")


def _tell_plan(settings: DataSettings, json: bool) -> None:
    from kineograph.curation.run import check, done_before
    from kineograph.curation.sources import find

    placed = settings.model_copy(update={"output": settings.output.expanduser().absolute()})
    check(placed)
    found = find(placed)
    videos = sum(unit.kind == "video" for unit in found.units)
    told: dict[str, Any] = {
        "videos": videos,
        "pictures": len(found.units) - videos,
        "labelled": sum(bool(unit.label) for unit in found.units),
        "bytes": sum(unit.size for unit in found.units),
        "done": done_before(found, placed),
        "problems": [f"{name} {reason}" for name, reason in found.problems],
    }
    if json:
        terminal.print_json(told)
        return
    terminal.print_message(
        f"{told['videos']} videos and {told['pictures']} pictures, {told['bytes'] / 1e6:.1f} MB; "
        f"{told['labelled']} have a label, {told['done']} are cut already"
    )
    if found.problems:
        terminal.print_message(f"{len(found.problems)} are left out: {_some(told['problems'])}")


def _some(texts: list[str]) -> str:
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more
