"""Where a video goes and how that is told: what the commands that make one have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.cli import terminal
from kineograph.errors import InputError
from kineograph.media.files import check_folder, fresh
from kineograph.media.video import Video, check_new, check_replaceable
from kineograph.request import NUM_FRAMES, Request

OUTPUT_FOLDER = Path("outputs")

WriteVideo = Callable[[Video], Path]


def choose_writer(output: Path | None, request: Request, overwrite: bool) -> WriteVideo:
    """How the video will be written. What can be known to fail then, fails now."""
    if output is None:
        check_folder(OUTPUT_FOLDER / "video.mp4")
        return lambda video: video.save(fresh(OUTPUT_FOLDER, request.prompt, video.settings["seed"], ".mp4"))
    output = output.expanduser()
    check, write = (check_replaceable, Video.overwrite) if overwrite else (check_new, Video.save)
    check(output, request.num_frames or NUM_FRAMES)
    check_folder(output)
    return lambda video: write(video, output)


def report_video(video: Video, path: Path, json: bool, facts: Mapping[str, Any]) -> None:
    """Says what was made; the path goes to stdout, alone or in a JSON object with all settings."""
    if json:
        terminal.print_json({"path": str(path), **facts, **video.settings})
        return
    height, width = video.frames.shape[1:3]
    terminal.print_message(f"{len(video)} frames of {width} x {height} in {facts['seconds']} s")
    print(path)


ELEVATOR = "video-elevator"


class VideoModelSource(NamedTuple):
    """A second model, and the options of `kineograph.load` that are its own."""

    model: str
    options: Mapping[str, Any]


def video_model_source(model: str | None, options: Mapping[str, Any]) -> VideoModelSource | None:
    """The video model beside an image model, if any. Raises InputError for options of one that is not there."""
    if model:
        return VideoModelSource(model, options)
    given = [f"--video-{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise InputError(f"{' and '.join(given)}: expected the video model that this belongs to, by --video-model")
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
    """Make, write and report the video that is asked for. What can be known to fail fails before a model is loaded.

    options: those of `kineograph.load`, besides the model itself.
    second: the video model of "video-elevator"; it is loaded first, since it is the likelier to be the wrong one.
    """
    request = request.with_seed()
    write = choose_writer(output, request, overwrite)
    terminal.print_message(f"seed {request.seed}")
    began = time.monotonic()
    terminal.print_message(f"loading {model or 'the pocket model'}")
    from kineograph import generation
    from kineograph.models.loading.load import load

    generation.open_inputs(request)
    if request.method == ELEVATOR and second is None:
        raise InputError(f"{ELEVATOR} needs a second model, that knows motion: --video-model pocket-video, for example")
    terminal.hide_loading_bars()
    shared = {name: options[name] for name in ("device", "dtype")}
    moves = load(second.model, **{**shared, **second.options}) if second else None
    ready = load(model, **options)
    with terminal.progress_bar("drawing") as tell:
        video = generation.run_request(
            ready, request, lambda step: tell(step.done, step.total), video_model=moves, keep_clips=keep_clips
        )
    report_video(video, write(video), json, {"seconds": round(time.monotonic() - began, 1)})


def parse_lora(text: str) -> tuple[str, float]:
    """The file of a LoRA and how strongly it counts, from FILE or FILE=SCALE."""
    file, equals, scale = text.rpartition("=")
    try:
        return (file, float(scale)) if equals else (text, 1.0)
    except ValueError as error:
        raise InputError(f"a LoRA is FILE or FILE=SCALE with a number for the scale, not {text!r}") from error


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """The numbers of a list with commas; an empty one holds none."""
    try:
        return tuple(float(each) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise InputError(f"{what} is a list of numbers such as 0.9,0.5, not {text!r}") from error


def parse_named(texts: Sequence[str] | None, what: str, form: str) -> dict[str, str]:
    """What stands behind each name, from NAME=VALUE."""
    pairs = [text.partition("=") for text in texts or []]
    for text, (name, _, value) in zip(texts or [], pairs, strict=True):
        if not name or not value:
            raise InputError(f"{what} is given as {form}, such as canny=..., not {text!r}")
    names = [name for name, _, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{what} is given twice for {', '.join(sorted(twice))}: one for each kind")
    return {name: value for name, _, value in pairs}
