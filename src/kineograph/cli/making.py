"""From a request to a file: what the commands that make a video have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.cli import speaking
from kineograph.cli.outcome import report, writer
from kineograph.data.request import Request
from kineograph.errors import InputError

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
    speaking.say(f"seed {request.seed}")
    began = time.monotonic()
    speaking.say(f"loading {model or 'the pocket model'}")
    from kineograph import recipes
    from kineograph.models.checkpoints import load

    recipes.opened(request)
    if request.method == ELEVATOR and second is None:
        raise InputError(f"{ELEVATOR} needs a second model, that knows motion: --video-model pocket-video, for example")
    speaking.quiet_loading()
    shared = {name: options[name] for name in ("device", "dtype")}
    moves = load(second.model, **{**shared, **second.options}) if second else None
    ready = load(model, **options)
    with speaking.counted("drawing") as tell:
        video = recipes.made(
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
