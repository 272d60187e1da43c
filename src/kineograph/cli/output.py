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

FOLDER = Path("outputs")

Write = Callable[[Video], Path]


def writer(output: Path | None, request: Request, overwrite: bool) -> Write:
    """How the video will be written. What can be known to fail then, fails now."""
    if output is None:
        check_folder(FOLDER / "video.mp4")
        return lambda video: video.save(fresh(FOLDER, request.prompt, video.settings["seed"], ".mp4"))
    output = output.expanduser()
    check, write = (check_replaceable, Video.overwrite) if overwrite else (check_new, Video.save)
    check(output, request.num_frames or NUM_FRAMES)
    check_folder(output)
    return lambda video: write(video, output)


def report(video: Video, path: Path, json: bool, facts: Mapping[str, Any]) -> None:
    """Says what was made; the path goes to stdout, alone or in a JSON object with all settings."""
    if json:
        terminal.answer({"path": str(path), **facts, **video.settings})
        return
    height, width = video.frames.shape[1:3]
    terminal.say(f"{len(video)} frames of {width} x {height} in {facts['seconds']} s")
    print(path)


ELEVATOR = "video-elevator"


class Second(NamedTuple):
    """A second model, and the options of `kineograph.load` that are its own."""

    model: str
    options: Mapping[str, Any]


def second_model(model: str | None, options: Mapping[str, Any]) -> Second | None:
    """The video model beside an image model, if any. Raises InputError for options of one that is not there."""
    if model:
        return Second(model, options)
    given = [f"--video-{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise InputError(f"{' and '.join(given)}: expected the video model that this belongs to, by --video-model")
    return None


def make(
    request: Request,
    model: str | None,
    options: Mapping[str, Any],
    output: Path | None,
    overwrite: bool,
    json: bool,
    second: Second | None = None,
    keep_clips: Path | None = None,
) -> None:
    """Make, write and report the video that is asked for. What can be known to fail fails before a model is loaded.

    options: those of `kineograph.load`, besides the model itself.
    second: the video model of "video-elevator"; it is loaded first, since it is the likelier to be the wrong one.
    """
    request = request.seeded()
    write = writer(output, request, overwrite)
    terminal.say(f"seed {request.seed}")
    began = time.monotonic()
    terminal.say(f"loading {model or 'the pocket model'}")
    from kineograph import generate
    from kineograph.models.loading.load import load

    generate.opened(request)
    if request.method == ELEVATOR and second is None:
        raise InputError(f"{ELEVATOR} needs a second model, that knows motion: --video-model pocket-video, for example")
    terminal.quiet_loading()
    shared = {name: options[name] for name in ("device", "dtype")}
    moves = load(second.model, **{**shared, **second.options}) if second else None
    ready = load(model, **options)
    with terminal.counted("drawing") as tell:
        video = generate.made(
            ready, request, lambda step: tell(step.done, step.total), video_model=moves, keep_clips=keep_clips
        )
    report(video, write(video), json, {"seconds": round(time.monotonic() - began, 1)})


def with_scale(text: str) -> tuple[str, float]:
    """The file of a LoRA and how strongly it counts, from FILE or FILE=SCALE."""
    file, equals, scale = text.rpartition("=")
    try:
        return (file, float(scale)) if equals else (text, 1.0)
    except ValueError as error:
        raise InputError(f"a LoRA is FILE or FILE=SCALE with a number for the scale, not {text!r}") from error


def numbers(text: str, what: str) -> tuple[float, ...]:
    """The numbers of a list with commas; an empty one holds none."""
    try:
        return tuple(float(each) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise InputError(f"{what} is a list of numbers such as 0.9,0.5, not {text!r}") from error


def named(texts: Sequence[str] | None, what: str, form: str) -> dict[str, str]:
    """What stands behind each name, from NAME=VALUE."""
    pairs = [text.partition("=") for text in texts or []]
    for text, (name, _, value) in zip(texts or [], pairs, strict=True):
        if not name or not value:
            raise InputError(f"{what} is given as {form}, such as canny=..., not {text!r}")
    names = [name for name, _, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{what} is given twice for {', '.join(sorted(twice))}: one for each kind")
    return {name: value for name, _, value in pairs}
