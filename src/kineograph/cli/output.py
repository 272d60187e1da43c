"""Shared steps of the commands that generate a video file: parse options, run the request, write and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kineograph.cli import terminal
from kineograph.errors import InputError
from kineograph.media.files import check_writable, unused_path
from kineograph.request import NUM_FRAMES, Request

if TYPE_CHECKING:  # `--help` does not wait for it
    from kineograph.media.video import Video

OUTPUT_FOLDER = Path("outputs")

WriteVideo = Callable[["Video"], Path]


def choose_writer(output: Path | None, request: Request, overwrite: bool) -> WriteVideo:
    """Return the function that will write the video. Raises now if writing is known to fail later.

    Args:
        output: by default a new file in `outputs/`.
        overwrite: replace the file that is there.
    """
    from kineograph.media.video import Video, check_new, check_replaceable

    if output is None:
        check_writable(OUTPUT_FOLDER / "video.mp4")
        return lambda video: video.save(unused_path(OUTPUT_FOLDER, request.prompt, video.settings["seed"], ".mp4"))
    output = output.expanduser()
    check, write = (check_replaceable, Video.overwrite) if overwrite else (check_new, Video.save)
    check(output, request.num_frames or NUM_FRAMES)
    check_writable(output)
    return lambda video: write(video, output)


def report_video(video: Video, path: Path, json: bool, facts: Mapping[str, Any]) -> None:
    """Print the path of the video on stdout, alone or in a JSON object with its settings, and its size on stderr."""
    if json:
        terminal.print_json({"path": str(path), **facts, **video.settings})
        return
    height, width = video.frames.shape[1:3]
    terminal.print_message(f"{len(video)} frames of {width} x {height} in {facts['seconds']} s")
    print(path)


ELEVATOR = "video-elevator"


class VideoModelSource(NamedTuple):
    """Source of the video model of VideoElevator, and its own options of `kineograph.load`."""

    model: str
    options: Mapping[str, Any]


def video_model_source(model: str | None, options: Mapping[str, Any]) -> VideoModelSource | None:
    """Return the source of the second model, if any. Raises InputError for options of a second model without one."""
    if model:
        return VideoModelSource(model, options)
    given = [f"--video-{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise InputError(f"{' and '.join(given)}: expected the video model that they belong to, by --video-model")
    return None


def run_and_save(
    request: Request,
    model: str | None,
    options: Mapping[str, Any],
    output: Path | None,
    overwrite: bool,
    json: bool,
    second: VideoModelSource | None = None,
    keep_clips: Path | None = None,
) -> None:
    """Generate the requested video, write it and report its path. Invalid options fail before a model is loaded.

    Args:
        options: those of `kineograph.load`, besides the model itself.
        second: the video model of "video-elevator". It is loaded first, since it is more often the wrong one.
        keep_clips: folder for finished clips.
    """
    request = request.with_seed()
    write = choose_writer(output, request, overwrite)
    terminal.print_message(f"seed {request.seed}")
    started = time.monotonic()
    terminal.print_message(f"loading {model or 'the pocket model'}")
    from kineograph import generation
    from kineograph.models.loading.load import load

    generation.open_inputs(request)
    if request.method == ELEVATOR and second is None:
        raise InputError(
            f"{ELEVATOR} needs a video model besides the image model: --video-model pocket-video, for example"
        )
    terminal.hide_loading_bars()
    shared = {name: options[name] for name in ("device", "dtype")}
    video_model = load(second.model, **{**shared, **second.options}) if second else None
    loaded = load(model, **options)
    with terminal.progress_bar("generating") as show:
        video = generation.run_request(
            loaded, request, lambda step: show(step.done, step.total), video_model=video_model, keep_clips=keep_clips
        )
    report_video(video, write(video), json, {"seconds": round(time.monotonic() - started, 1)})


# Options are parsed here and not by typer's `parser=`, which replaces the message of an error by the bare value.


def parse_lora(text: str) -> tuple[str, float]:
    """Parse FILE or FILE=SCALE into the file of a LoRA and its scale, 1 by default."""
    file, equals, scale = text.rpartition("=")
    try:
        return (file, float(scale)) if equals else (text, 1.0)
    except ValueError as error:
        raise InputError(f"a LoRA is FILE or FILE=SCALE with a number for the scale, not {text!r}") from error


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Parse numbers separated by commas; an empty text gives none."""
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise InputError(f"{what} is a list of numbers such as 0.9,0.5, not {text!r}") from error


def parse_named(texts: Sequence[str] | None, what: str, form: str) -> dict[str, str]:
    """Parse NAME=VALUE options into values by name.

    what, form: the option and its form, for messages. Raises InputError when a name or a value is missing, or a
    name is given twice.
    """
    values: dict[str, str] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"{what} is given as {form}, such as canny=..., not {text!r}")
        if name in values:
            raise InputError(f"{what} is given twice for {name}: one for each kind")
        values[name] = value
    return values
