"""`kineograph inspect`, `replay` and `schema`: settings of a video, the same video again, and all options."""

from __future__ import annotations

import json as parse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from kineograph.cli import quick_imports, terminal
from kineograph.cli.options import Json, Output, load_flags, save_options
from kineograph.cli.output import choose_writer, report_video
from kineograph.errors import InputError

if TYPE_CHECKING:  # `--help` does not wait for it
    from kineograph.models.model import Model

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

    from kineograph.media.footage import open_footage
    from kineograph.media.metadata import read_video_metadata
    from kineograph.media.video import Video, open_video

    footage, metadata = open_footage(file), read_video_metadata(file)  # one frame is decoded, however many there are
    settings = metadata.settings if metadata else {}
    shape = {"frames": len(footage), "height": footage.height, "width": footage.width, "fps": footage.fps}
    if sheet:
        image = np.asarray(open_video(file).contact_sheet())[None]
        terminal.print_message(f"wrote {Video(image, footage.fps, settings).save(sheet)}")
    if json:
        terminal.print_json({"path": str(file), **shape, "settings": settings})
        return
    size = f"{len(footage)} frames of {footage.width} x {footage.height}"
    terminal.print_message(f"{file}: {size}, {footage.fps:g} a second")
    if settings:
        terminal.console().print(_settings_table(settings))
    else:
        terminal.print_message(
            "It carries no settings: it was not made by Kineograph, or another program removed them."
        )


def replay(
    file: File,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", show_default="the one recorded", rich_help_panel="Model", help="Another model to use."
        ),
    ] = None,
    output: Output = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Load the models, adapters, images and videos that the file names without asking."),
    ] = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Generate a video again from its settings, and compare every pixel.

    A file may come from anyone: before anything is loaded that it names, but for built-in models, you are asked.
    If they differ, the status is 1, and the differences in versions, machine and weights are printed.
    """
    saved = {name: given.pop(name) for name in save_options() if name in given}
    if not model and (others := [f"`{name}`" for name in given if name != "device"]):
        raise InputError(f"{' and '.join(others)}: expected the model that they belong to, by `model`")
    with quick_imports():
        from kineograph.generation import recorded
        from kineograph.request import NUM_FRAMES

    video = recorded.read_recorded_video(file)
    sources = recorded.list_named_sources(video, ["model"] if model else [])
    if sources and not yes:
        _ask_to_load(file, recorded.join_sources(sources))
    write = choose_writer(output, video.options["num_frames"] or NUM_FRAMES, saved)
    started = time.monotonic()
    terminal.hide_loading_bars()
    with terminal.flags_in_messages(load_flags()):
        if not model:
            recorded.check_recorded_options(video)
        loaded = _load(model, given) if model else recorded.load_recorded_model(video.settings, **given)
    with terminal.progress_bar("generating") as show:
        again = recorded.generate_again(video, model=loaded, on_step=lambda step: show(step.done, step.total))
    identical = again.settings["frames_sha256"] == video.settings["frames_sha256"]
    terminal.print_message("identical: every pixel is the same" if identical else "not identical")
    report_video(again, write(again), json, {"identical": identical, "seconds": round(time.monotonic() - started, 1)})
    if not identical:
        raise typer.Exit(1)


def _ask_to_load(file: Path, sources: str) -> None:
    """Ask whether what a file names may be loaded. Raises InputError where nobody can answer, or the answer is no."""
    if not sys.stdin.isatty():
        raise InputError(f"{file} names what replay would load: {sources}. If you trust whoever made it, add --yes")
    terminal.print_message(f"{file} names what replay would load: {sources}")
    if not typer.confirm("Load it?", err=True):
        raise InputError("nothing was loaded: with `model` you use your own model")


def _load(model: str, given: Mapping[str, Any]) -> Model:
    from kineograph.models.loading.load import load
    from kineograph.models.loading.options import load_arguments

    return load(model, **load_arguments(given))


def schema(
    function: Annotated[str, typer.Argument(help="generate, animate, edit or load.")] = "generate",
) -> None:
    """Print the JSON schema of all options: types, defaults, ranges, descriptions, and the methods that read them."""
    from kineograph.errors import check_choice
    from kineograph.generation.schema import DECLARATIONS, options_schema

    check_choice("the function", function, [*DECLARATIONS])
    print(parse.dumps(options_schema(function), indent=2))


def _settings_table(settings: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flatten_settings(settings):
        table.add_row(terminal.one_line(name), terminal.one_line(value))
    return table


def _flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten_settings(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
