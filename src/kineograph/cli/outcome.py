"""Where a video goes and how that is told: what the commands that make one have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kineograph.cli import speaking
from kineograph.data.files import check_folder, fresh
from kineograph.data.request import NUM_FRAMES, Request
from kineograph.data.video import Video, check_new, check_replaceable

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
        speaking.answer({"path": str(path), **facts, **video.settings})
        return
    height, width = video.frames.shape[1:3]
    speaking.say(f"{len(video)} frames of {width} x {height} in {facts['seconds']} s")
    print(path)
