"""From a request to a file: what the commands that make a video have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kineograph.cli import speaking
from kineograph.cli.outcome import report, writer
from kineograph.data.request import Request
from kineograph.errors import InputError


def make(
    request: Request, model: str | None, options: Mapping[str, Any], output: Path | None, overwrite: bool, json: bool
) -> None:
    """Make, write and report the video that is asked for. What can be known to fail fails before a model is loaded.

    options: those of `kineograph.load`, besides the model itself.
    """
    request = request.seeded()
    write = writer(output, request, overwrite)
    speaking.say(f"seed {request.seed}")
    began = time.monotonic()
    speaking.say(f"loading {model or 'the pocket model'}")
    from kineograph import recipes
    from kineograph.models.checkpoints import load

    recipes.opened(request)
    speaking.quiet_loading()
    ready = load(model, **options)
    with speaking.counted("drawing") as tell:
        video = recipes.made(ready, request, lambda step: tell(step.done, step.total))
    report(video, write(video), json, {"seconds": round(time.monotonic() - began, 1)})


def with_scale(text: str) -> tuple[str, float]:
    """The file of a LoRA and how strongly it counts, from FILE or FILE=SCALE."""
    file, equals, scale = text.rpartition("=")
    try:
        return (file, float(scale)) if equals else (text, 1.0)
    except ValueError as error:
        raise InputError(f"a LoRA is FILE or FILE=SCALE with a number for the scale, not {text!r}") from error


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
