"""`kineograph curate`: make shards of captioned clips from raw footage."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json
from kineograph.errors import expand_user

if TYPE_CHECKING:  # `--help` does not wait for it
    from kineograph.curation.settings import CurationSettings

LISTED_REASONS = ("broken", "left out", "caption")  # files dropped for these are listed by name
NO_CLIPS = 1  # exit status


def curate(
    settings: Annotated[Path, typer.Argument(help="A YAML file, such as examples/curate.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(show_default=False, help="Settings that replace those of the file: cuts.longest=4."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sources and their problems; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Make training data from videos and images: cut, filter, clean and caption clips; pan and zoom over images.

    Prints the folder of the result, tar files in webdataset's layout, on stdout, messages on stderr. The same command
    resumes a run that was stopped.
    On a Ray cluster: RAY_ADDRESS=auto kineograph curate SETTINGS. See docs/curation.md.
    """
    from kineograph.curation.packing import read_dropped, read_manifest
    from kineograph.curation.run import curate_dataset
    from kineograph.curation.settings import CurationSettings
    from kineograph.training import load_settings

    chosen = load_settings(settings, CurationSettings, overrides or [])
    if dry_run:
        _print_sources(chosen, json)
        return
    terminal.hide_loading_bars()
    stage = ""
    with terminal.progress_bar("curating") as show, closing(curate_dataset(chosen)) as steps:
        for reached in steps:
            if reached.stage != stage:
                stage = reached.stage
                terminal.print_message(f"{stage}: {reached.total} to do")
            show(reached.done, reached.total)
    manifest = read_manifest(expand_user(chosen.output))
    if json:
        terminal.print_json({"path": str(chosen.output), **manifest})
    else:
        drops = read_dropped(expand_user(chosen.output))
        _print_summary(manifest, [f"{drop.file} ({drop.detail})" for drop in drops if drop.reason in LISTED_REASONS])
        terminal.print_path(chosen.output)
    if not manifest["clips"]:
        raise SystemExit(NO_CLIPS)


def _print_summary(manifest: Mapping[str, Any], bad: list[str]) -> None:
    files, dropped = manifest["files"], manifest["dropped"]
    terminal.print_message(
        f"{manifest['clips']} clips of {manifest['seconds']:.0f} seconds in {len(manifest['shards'])} shards, from "
        f"{files['videos']} videos and {files['pictures']} images, of which {files['broken']} are broken"
    )
    if dropped:
        terminal.print_message(
            f"dropped: {', '.join(f'{count} {why}' for why, count in dropped.items())}; see dropped.jsonl"
        )
    if bad:
        terminal.print_message(f"cannot be used: {terminal.join_first(bad)}")
    if manifest["without_caption"]:
        terminal.print_message(f"{manifest['without_caption']} clips have no caption: set `captions`, or give labels")
    if not manifest["clips"]:
        terminal.print_message("no clip passed the filters: dropped.jsonl gives the reason for each")


def _print_sources(settings: CurationSettings, json: bool) -> None:
    from kineograph.curation.run import check_output, count_finished
    from kineograph.curation.sources import list_sources

    resolved = settings.model_copy(update={"output": expand_user(settings.output).absolute()})
    check_output(resolved)
    listing = list_sources(resolved)
    videos = sum(file.kind == "video" for file in listing.files)
    counts: dict[str, Any] = {
        "videos": videos,
        "pictures": len(listing.files) - videos,
        "labelled": sum(bool(file.label) for file in listing.files),
        "bytes": sum(file.size for file in listing.files),
        "done": count_finished(listing, resolved),
        "problems": [f"{name} {reason}" for name, reason in listing.problems],
    }
    if json:
        terminal.print_json(counts)
        return
    terminal.print_message(
        f"{counts['videos']} videos and {counts['pictures']} images, {counts['bytes'] / 1e6:.1f} MB; "
        f"{counts['labelled']} have a label, {counts['done']} are cut already"
    )
    if listing.problems:
        terminal.print_message(f"{len(listing.problems)} are left out: {terminal.join_first(counts['problems'])}")
