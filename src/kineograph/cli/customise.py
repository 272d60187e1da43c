"""`kineograph customise`: teach a video model a subject or a style (Still-Moving)."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kineograph.cli import terminal
from kineograph.cli.options import Json, load_flags
from kineograph.cli.output import OUTPUT_FOLDER
from kineograph.cli.terminal import format_duration, stop_signals
from kineograph.errors import InputError, expand_user
from kineograph.media.files import check_writable, refuse_existing, replace_atomically, slug

if TYPE_CHECKING:  # `--help` does not wait for torch
    from kineograph.training.customise import PhaseProgress, VideoCustomisationSettings
    from kineograph.training.customise.dry_run import PhaseEstimate
    from kineograph.training.customise.video_model import VideoCustomisation

subject_option = partial(typer.Option, rich_help_panel="Subject or style")
training_option = partial(typer.Option, rich_help_panel="Training")
EXTENSION = ".safetensors"
LOG_EVERY = 50  # steps
PHASES = {
    "prior": "generating images of the class",
    "encoding": "encoding the images",
    "training": "training the image network",
    "stills": "generating stills",
    "natural": "preparing natural videos",
    "motion_adapter": "training the motion adapter",
    "spatial_adapter": "training the spatial adapter",
}


def customise(
    images: Annotated[
        Path | None,
        typer.Argument(
            show_default=False, help="A folder of three to ten images of a subject, or of one or more of a style."
        ),
    ] = None,
    subject: Annotated[
        str | None, subject_option(show_default=False, help='A rare word and the class, such as "sks dog".')
    ] = None,
    style: Annotated[
        str | None, subject_option(show_default=False, help='A style, such as "watercolour painting".')
    ] = None,
    natural_videos: Annotated[
        str | None,
        subject_option(
            show_default="videos that the model generates",
            help="A folder of other videos with captions, which keep the model from forgetting.",
        ),
    ] = None,
    motion_adapter_only: Annotated[
        bool, subject_option("--motion-adapter-only", help="Train a motion adapter alone, without images.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", rich_help_panel="Model", help="A video model, or an image model with `motion_module`."
        ),
    ] = "pocket-video",
    preview: Annotated[
        list[str] | None,
        training_option(
            show_default="the subject alone", help="Prompt of a video generated during training; may be repeated."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        training_option(
            "--set",
            show_default=False,
            help="A setting of docs/customising.md: training.max_train_steps=200; may be repeated.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        training_option("--output", "-o", show_default="outputs/NAME.safetensors", help="The file to write."),
    ] = None,
    work: Annotated[
        Path | None,
        training_option(
            show_default="the file's name without extension",
            help="The folder for previews and checkpoints, from which the same command resumes.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps of the work and their estimated times; write nothing.")
    ] = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Teach a video model a subject or a style from a few images (Still-Moving), and write one small adapter file.

    Prints the path of the file on stdout, messages on stderr. The same command resumes a run that was stopped.
    See docs/customising.md.
    """
    if motion_adapter_only == (images is not None):
        raise InputError("give either a folder of images or --motion-adapter-only")
    paths = _output_paths(output, work, subject or style or "motion adapter")
    terminal.hide_loading_bars()
    from kineograph.models.loading.load import load
    from kineograph.models.loading.options import load_arguments
    from kineograph.training import override_settings
    from kineograph.training.customise import adapters, default_video_settings, image_data, video_model
    from kineograph.training.customise.dry_run import estimate_natural_videos, estimate_video_customisation
    from kineograph.training.customise.natural_videos import prepare_natural_videos
    from kineograph.training.customise.phases import MOTION_ADAPTER_FILE

    if images is not None:
        image_data.list_image_files(images)  # refuse a missing folder before a model is loaded
    terminal.print_message(f"loading {model}")
    arguments, module = load_arguments(given), ("motion_module", "motion_adapter")
    with terminal.flags_in_messages(load_flags()):
        video = load(model, **arguments)
    settings = override_settings(default_video_settings(video, "subject" if style is None else "style"), setting or [])
    flags, unnamed = load_flags(), ("motion_adapter", "device", "dtype")
    words = [word for name, value in arguments.items() if name not in unnamed for word in (flags[name], str(value))]
    model_options = shlex.join(["--model", model, *words])
    if images is None:
        natural = prepare_natural_videos(video, settings, natural_videos)
        if dry_run:
            _print_estimates(estimate_natural_videos(natural, "motion_adapter", "natural"), json)
            return
        phases = adapters.run_motion_adapter_training(natural, paths.work)
        _run_phases(phases, paths.work / MOTION_ADAPTER_FILE, paths.file, json)
        terminal.print_message(f"use it by {model_options} --motion-adapter {paths.file}")
        return
    image_options = {name: value for name, value in arguments.items() if name not in module}
    image_model = load(model, **image_options) if "motion_module" in arguments else None
    prepared = video_model.prepare_video_customisation(
        video, images, paths.work, image_model=image_model, subject=subject, style=style,
        natural_videos=natural_videos, settings=_with_previews(settings, preview),
    )  # fmt: skip
    if dry_run:
        _print_estimates(estimate_video_customisation(prepared), json)
        return
    _run_customisation(prepared, paths, model_options, json)


class OutputPaths(NamedTuple):
    """The adapter file to write, and the folder of previews and checkpoints."""

    file: Path
    work: Path


def _output_paths(output: Path | None, work: Path | None, name: str) -> OutputPaths:
    """Resolve the paths. Raises InputError for another extension, and OSError when they cannot be written."""
    file = expand_user(output or OUTPUT_FOLDER / f"{slug(name)}{EXTENSION}")
    if file.suffix != EXTENSION:
        raise InputError(f"{file} has to be a {EXTENSION} file: name it {file.with_suffix(EXTENSION)}")
    folder = expand_user(work) if work else file.with_suffix("")
    if not folder.exists():  # else a run is resumed, and the file is its own
        refuse_existing(file)
    check_writable(file)
    return OutputPaths(file, folder)


def _with_previews(settings: VideoCustomisationSettings, previews: Sequence[str] | None) -> VideoCustomisationSettings:
    """Set the prompts of the previews. Raises InputError for settings whose result is no adapter file."""
    from kineograph.training.customise import with_changes

    for what, part in (("spatial", settings.spatial), ("image.lora", settings.image.lora)):
        if part is None:
            raise InputError(
                f"{what}: without it there is no small file to write; for full fine-tuning see "
                "kineograph.training.customise in docs/customising.md"
            )
    return with_changes(settings, {"previews": tuple(previews)}) if previews else settings


def _run_customisation(prepared: VideoCustomisation, paths: OutputPaths, model_options: str, json: bool) -> None:
    """Write the adapter file, and print the commands that use the result."""
    from kineograph.training.customise import video_model, with_changes
    from kineograph.training.customise.phases import ADAPTER_FILE, MOTION_ADAPTER_FILE

    if not prepared.settings.previews:
        settings = with_changes(prepared.settings, {"previews": tuple(prepared.prompts[:1])})
        prepared = prepared._replace(settings=settings)
    phases = video_model.run_video_customisation(prepared)
    _run_phases(phases, paths.work / ADAPTER_FILE, paths.file, json)
    if video_model.needs_motion_adapter(prepared.video, prepared.settings):
        motion_adapter = shlex.quote(str(paths.work / MOTION_ADAPTER_FILE))
        terminal.print_message(f"to reuse its motion adapter for the next subject: --motion-adapter {motion_adapter}")
    prompt, file = shlex.quote(prepared.prompts[-1]), shlex.quote(str(paths.file))
    terminal.print_message(f"kineograph generate {prompt} {model_options} --adapter {file}")


def _run_phases(steps: Generator[PhaseProgress, None, None], result: Path, file: Path, json: bool) -> None:
    """Run all phases with a progress bar for each, and copy the result to `file`."""
    from kineograph.training.customise.phases import PREVIEWS

    started, status = time.monotonic(), 0
    with stop_signals() as stop_status, closing(steps):
        for phase, reports in groupby(steps, lambda each: each.phase):
            with terminal.progress_bar(PHASES[phase]) as show:
                for each in reports:
                    show(each.done, each.total)
                    _print_progress(each)
                    if status := stop_status():
                        break
            if status:
                break
    if status:
        terminal.print_message("the same command resumes from here")
        raise SystemExit(status)
    with replace_atomically(file) as part:
        shutil.copyfile(result, part)
    seconds, size = time.monotonic() - started, file.stat().st_size
    previews = result.parent / PREVIEWS
    terminal.print_message(f"{size / 1e6:.2f} MB in {format_duration(seconds)}; previews are in {previews}")
    if json:
        terminal.print_json({"path": str(file), "bytes": size, "seconds": round(seconds, 1)})
    else:
        terminal.print_path(file)


def _print_progress(reached: PhaseProgress) -> None:
    """Print a line at the end of a phase, and regularly during training."""
    progress, last = reached.progress, reached.done == reached.total
    if progress and (last or reached.done % LOG_EVERY == 0):
        loss_text = ", ".join(f"{name} {value:.4g}" for name, value in progress.losses.items())
        left = format_duration((reached.total - reached.done) * progress.seconds / progress.step)
        terminal.print_message(
            f"{PHASES[reached.phase]}: step {reached.done} of {reached.total}, loss {loss_text}, {left} left"
        )
    elif last:
        terminal.print_message(f"{PHASES[reached.phase]}: {reached.total}")
    for each in reached.previews:
        terminal.print_message(f"wrote {each}")


def _print_estimates(estimates: Iterable[PhaseEstimate], json: bool) -> None:
    phases = [*estimates]
    seconds = sum(each.seconds for each in phases)
    if json:
        terminal.print_json({"phases": [each._asdict() for each in phases], "seconds": seconds})
        return
    for each in phases:
        about = f", about {format_duration(each.seconds)}" if each.seconds else ""
        terminal.print_message(f"{each.phase}: {each.what}{about}")
    terminal.print_message(f"about {format_duration(seconds)} in all, on this machine at its present load")
