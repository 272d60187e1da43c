"""`kineograph inspect` and `kineograph replay`: what a file says about itself, and the same video again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from kineograph.cli import terminal
from kineograph.cli.options import MODEL, Device, Json, Output, Overwrite
from kineograph.cli.output import choose_writer, report_video
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video, open_video
from kineograph.request import Request

File = Annotated[Path, typer.Argument(help="A video that Kineograph wrote, or a folder of its pngs.")]


def inspect(
    file: File,
    sheet: Annotated[
        Path | None, typer.Option(show_default=False, help="Also write up to 16 of its frames as one .png.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the settings that a video carries: what made it, and with what."""
    video = open_video(file)
    count, height, width, _ = video.frames.shape
    shape = {"frames": count, "height": height, "width": width, "fps": video.fps}
    if sheet:
        picture = np.asarray(video.contact_sheet())[None]
        terminal.print_message(f"wrote {Video(picture, video.fps, video.settings).save(sheet)}")
    if json:
        terminal.print_json({"path": str(file), **shape, "settings": dict(video.settings)})
        return
    terminal.print_message(f"{file}: {count} frames of {width} x {height}, {video.fps:g} a second")
    if video.settings:
        terminal.console().print(_table(video.settings))
    else:
        terminal.print_message(
            "It carries no settings: Kineograph did not make it, or a program that passed it on dropped them."
        )


def replay(
    file: File,
    output: Output = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", rich_help_panel=MODEL, show_default="the one recorded")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a video again from the settings that it carries, and say whether every pixel is the same.

    Ends with status 1 when it is not, and names what has changed since: versions, machine, weights.
    """
    settings = read_settings(file)
    write = choose_writer(output, Request.from_settings(settings), overwrite)
    began = time.monotonic()
    from kineograph import generation
    from kineograph.models.loading.load import load

    terminal.hide_loading_bars()
    loaded = load(model, device=device) if model else generation.load_recorded_model(settings, device=device)
    with terminal.progress_bar("drawing") as tell:
        video = generation.replay(file, model=loaded, on_step=lambda step: tell(step.done, step.total))
    identical = video.settings["frames_sha256"] == settings["frames_sha256"]
    terminal.print_message("identical: every pixel is the same" if identical else "not identical")
    report_video(video, write(video), json, {"identical": identical, "seconds": round(time.monotonic() - began, 1)})
    if not identical:
        raise typer.Exit(1)


def _table(settings: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(settings):
        table.add_row(escape(name), escape(value))
    return table


def _lines(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield (
                f"{prefix}{name}",
                str(value) if str(value).isprintable() else repr(value),
            )  # no file drives a terminal
