"""`kineograph customise`: a few pictures become a small file, by which a video model knows a subject or a style."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kineograph.cli import terminal
from kineograph.cli.options import MODEL, Device, Dtype, Json, MotionAdapter, MotionModule
from kineograph.cli.output import OUTPUT_FOLDER
from kineograph.cli.terminal import format_duration, stop_signals
from kineograph.errors import InputError
from kineograph.media.files import check_folder, instead_of, refuse_existing, slug

if TYPE_CHECKING:  # whoever only asks for help does not wait for torch
    from kineograph.models.model import Model
    from kineograph.training.customise import (
        PhaseEstimate,
        PhaseProgress,
        VideoCustomisation,
        VideoCustomisationSettings,
    )

LEARNT, HOW = "What is learnt", "How"
PREVIEWS = "previews"  # a folder in that of the work
DEFAULT = "pocket-video"
ENDING = ".safetensors"
TOLD = 50  # steps from one line to the next
DOING = {
    "prior": "drawing pictures of the class",
    "encoding": "reading the pictures",
    "training": "the image network learns",
    "stills": "drawing stills of it",
    "natural": "natural videos",
    "stilling": "the motion adapter learns",
    "adapting": "the spatial adapter learns",
}


def customise(
    pictures: Annotated[
        Path | None,
        typer.Argument(show_default=False, help="A folder of three to ten pictures; of a style, one or more."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(rich_help_panel=LEARNT, show_default=False, help='A rare word and the class, such as "sks dog".'),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(rich_help_panel=LEARNT, show_default=False, help='A style, such as "watercolour painting".'),
    ] = None,
    natural_videos: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=LEARNT,
            show_default="such as the model draws itself",
            help="A folder of other videos, with captions, from which the model keeps what it knew.",
        ),
    ] = None,
    motion_adapter_only: Annotated[
        bool,
        typer.Option("--motion-adapter-only", rich_help_panel=LEARNT, help="Of no pictures: a motion adapter alone."),
    ] = False,
    model: Annotated[
        str, typer.Option("--model", "-m", rich_help_panel=MODEL, help="A video model, or an image model's checkpoint.")
    ] = DEFAULT,
    motion_module: MotionModule = None,
    motion_adapter: MotionAdapter = None,
    device: Device = None,
    dtype: Dtype = None,
    preview: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=HOW, show_default="the subject alone", help="The prompt of a video drawn on the way."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            rich_help_panel=HOW,
            show_default=False,
            help="A setting of docs/customising.md: training.max_train_steps=200; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", rich_help_panel=HOW, show_default="named after it, in outputs/", help="The file."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=HOW,
            show_default="as the file, without an ending",
            help="The folder of previews and checkpoints, from which the same command goes on.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it takes; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Teach a video model a subject or a style from a few pictures (Still-Moving), into one small file.

    The file goes to stdout, all else to stderr. The same command goes on with one that was stopped or killed.
    See docs/customising.md.
    """
    if motion_adapter_only == (pictures is not None):
        raise InputError("give a folder of pictures, or --motion-adapter-only and none")
    place = _place(output, work, subject or style or "motion adapter")
    terminal.hide_loading_bars()
    from kineograph.training import customise as recipe
    from kineograph.training import override_settings

    if pictures is not None:
        recipe.list_image_files(pictures)  # a folder that is not there is refused before a model is loaded
    terminal.print_message(f"loading {model}")
    shared = {"device": device, "dtype": dtype}
    video = _load(model, {"motion": motion_module, "motion_adapter": motion_adapter, **shared})
    settings = override_settings(
        recipe.default_video_settings(video, "subject" if style is None else "style"), setting or []
    )
    asked = shlex.join(["--model", model, *(["--motion-module", motion_module] if motion_module else [])])
    if pictures is None:
        wanted = recipe.prepare_natural_videos(video, settings, natural_videos)
        if dry_run:
            _tell_plan(recipe.estimate_natural_videos(wanted, "trains", "keeps"), json)
            return
        _run(
            recipe.run_motion_adapter_training(wanted, place.work), place.work / recipe.MOTION_ADAPTER, place.file, json
        )
        terminal.print_message(f"for {asked} it is --motion-adapter {place.file}")
        return
    ready = recipe.prepare_video_customisation(
        video, pictures, place.work, image=_load(model, shared) if motion_module else None, subject=subject,
        style=style, natural_videos=natural_videos, settings=_with_previews(settings, preview),
    )  # fmt: skip
    if dry_run:
        _tell_plan(recipe.estimate_video_customisation(ready), json)
        return
    _customise(ready, place, asked, json)


class OutputPaths(NamedTuple):
    """The file that is asked for, and the folder of the work."""

    file: Path
    work: Path


def _place(output: Path | None, work: Path | None, name: str) -> OutputPaths:
    """Where all goes. Raises what can be known to fail then: InputError for another ending, OSError."""
    file = (output or OUTPUT_FOLDER / f"{slug(name)}{ENDING}").expanduser()
    if file.suffix != ENDING:
        raise InputError(f"{file} is to be a {ENDING} file: name it {file.with_suffix(ENDING)}")
    folder = work.expanduser() if work else file.with_suffix("")
    if not folder.exists():  # else it is the file of this very customising, or will be
        refuse_existing(file)
    check_folder(file)
    return OutputPaths(file, folder)


def _load(model: str, options: Mapping[str, Any]) -> Model:
    from kineograph.models.loading.load import load

    return load(model, **options)


def _with_previews(settings: VideoCustomisationSettings, previews: Sequence[str] | None) -> VideoCustomisationSettings:
    from kineograph.training.customise import with_changes

    for what, part in (("spatial", settings.spatial), ("image.lora", settings.image.lora)):
        if part is None:
            raise InputError(
                f"{what}: without one, what is learnt is no small file; for that see kineograph.training.customise in "
                "docs/customising.md"
            )
    return with_changes(settings, {"previews": tuple(previews)}) if previews else settings


def _customise(ready: VideoCustomisation, place: OutputPaths, asked: str, json: bool) -> None:
    from kineograph.training import customise as recipe

    if not ready.settings.previews:
        own = recipe.with_changes(ready.settings, {"previews": tuple(ready.prompts[:1])})
        ready = ready._replace(settings=own)
    _run(recipe.run_video_customisation(ready), place.work / recipe.ADAPTER, place.file, json)
    if recipe.needs_motion_adapter(ready.video, ready.settings):
        own_adapter = place.work / recipe.MOTION_ADAPTER
        terminal.print_message(
            f"for the next subject, this spares a part: --motion-adapter {shlex.quote(str(own_adapter))}"
        )
    told, file = shlex.quote(ready.prompts[-1]), shlex.quote(str(place.file))
    terminal.print_message(f"kineograph generate {told} {asked} --adapter {file}")


def _run(steps: Generator[PhaseProgress, None, None], made: Path, file: Path, json: bool) -> None:
    """Walks through all phases, with a bar for each, and copies what was made to the file."""
    began, status = time.monotonic(), 0
    with stop_signals() as asked, closing(steps):
        for phase, reached in groupby(steps, lambda each: each.phase):
            with terminal.progress_bar(DOING[phase]) as tell:
                for each in reached:
                    tell(each.done, each.total)
                    _tell(each)
                    if status := asked():
                        break
            if status:
                break
    if status:
        terminal.print_message("the same command goes on from here")
        raise SystemExit(status)
    with instead_of(file) as part:
        shutil.copyfile(made, part)
    seconds, size = time.monotonic() - began, file.stat().st_size
    terminal.print_message(
        f"{size / 1e6:.2f} MB in {format_duration(seconds)}; previews are in {made.parent / PREVIEWS}"
    )
    if json:
        terminal.print_json({"path": str(file), "bytes": size, "seconds": round(seconds, 1)})
    else:
        print(file)


def _tell(reached: PhaseProgress) -> None:
    """A line where a phase ends, and on the way of a training; the bar says the rest."""
    progress, last = reached.progress, reached.done == reached.total
    if progress and (last or reached.done % TOLD == 0):
        came_to = ", ".join(f"{name} {value:.4g}" for name, value in progress.losses.items())
        left = format_duration((reached.total - reached.done) * progress.seconds / progress.step)
        terminal.print_message(
            f"{DOING[reached.phase]}: step {reached.done} of {reached.total}, loss {came_to}, {left} left"
        )
    elif last:
        terminal.print_message(f"{DOING[reached.phase]}: {reached.total}")
    for each in reached.previews:
        terminal.print_message(f"wrote {each}")


def _tell_plan(pieces: Iterable[PhaseEstimate], json: bool) -> None:
    told = [*pieces]
    if json:
        terminal.print_json(
            {"phases": [each._asdict() for each in told], "seconds": sum(each.seconds for each in told)}
        )
        return
    for each in told:
        about = f", about {format_duration(each.seconds)}" if each.seconds else ""
        terminal.print_message(f"{each.phase}: {each.what}{about}")
    terminal.print_message(
        f"about {format_duration(sum(each.seconds for each in told))} in all, on this machine as busy as it is now"
    )
