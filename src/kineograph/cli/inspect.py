"""`kineograph inspect` and `kineograph replay`: show the settings of a video, and generate it again from them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kineograph.cli import terminal
from kineograph.cli.options import Device, Json, Output, Overwrite, model_option
from kineograph.cli.output import choose_writer, report_video
from kineograph.request import Request

File = Annotated[Path, typer.Argument(help="A video that Kineograph wrote: a file, or a folder of pngs.")]


def inspect(
    file: File,
    sheet: Annotated[
        Path | None, typer.Option(show_default=False, help="Also write up to 16 frames as one .png.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the settings that are stored in a video: options, model, versions."""
    import numpy as np

    from kineograph.media.video import Video, open_video

    video = open_video(file)
    count, height, width, _ = video.frames.shape
    shape = {"frames": count, "height": height, "width": width, "fps": video.fps}
    if sheet:
        image = np.asarray(video.contact_sheet())[None]
        terminal.print_message(f"wrote {Video(image, video.fps, video.settings).save(sheet)}")
    if json:
        terminal.print_json({"path": str(file), **shape, "settings": dict(video.settings)})
        return
    terminal.print_message(f"{file}: {count} frames of {width} x {height}, {video.fps:g} a second")
    if video.settings:
        terminal.console().print(_settings_table(video.settings))
    else:
        terminal.print_message(
            "It carries no settings: it was not made by Kineograph, or another program removed them."
        )


def replay(
    file: File,
    output: Output = None,
    model: Annotated[str | None, model_option("--model", "-m", show_default="the one recorded")] = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Generate a video again from its settings, and compare every pixel.

    If they differ, the status is 1, and the differences in versions, machine and weights are printed.
    """
    from kineograph.media.metadata import read_settings

    settings = read_settings(file)
    write = choose_writer(output, Request.from_settings(settings), overwrite)
    started = time.monotonic()
    from kineograph import generation
    from kineograph.models.loading.load import load

    terminal.hide_loading_bars()
    loaded = load(model, device=device) if model else generation.load_recorded_model(settings, device=device)
    with terminal.progress_bar("generating") as show:
        video = generation.replay(file, model=loaded, on_step=lambda step: show(step.done, step.total))
    identical = video.settings["frames_sha256"] == settings["frames_sha256"]
    terminal.print_message("identical: every pixel is the same" if identical else "not identical")
    report_video(video, write(video), json, {"identical": identical, "seconds": round(time.monotonic() - started, 1)})
    if not identical:
        raise typer.Exit(1)


def _settings_table(settings: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flatten_settings(settings):
        table.add_row(escape(name), escape(value))
    return table


def _flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten_settings(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            # escape control characters, so that no file controls the terminal
            yield f"{prefix}{name}", str(value) if str(value).isprintable() else repr(value)
