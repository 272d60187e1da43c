"""Video files of commands: the path is checked before the work, and the file is written and reported after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kineograph.cli import terminal
from kineograph.errors import expand_user
from kineograph.media.files import check_writable, write_to_unused_path

if TYPE_CHECKING:  # `--help` does not wait for it
    from kineograph.media.video import Video

OUTPUT_FOLDER = Path("outputs")

WriteVideo = Callable[["Video"], Path]


def choose_writer(output: Path | None, num_frames: int, options: Mapping[str, Any]) -> WriteVideo:
    """Return the function that will write a video. Raises now if writing is known to fail later.

    Args:
        output: by default a new file in `outputs/`.
        options: those of `Video.save`.
    """
    from kineograph.media.metadata import SaveOptions
    from kineograph.media.video import check_new, check_replaceable
    from kineograph.options import validate

    chosen = validate(options, SaveOptions)
    if output is None:
        check_writable(OUTPUT_FOLDER / "video.mp4")
        return lambda video: _save_unnamed(video, options)
    output = expand_user(output)
    check = check_replaceable if chosen["overwrite"] else check_new
    check(output, num_frames)
    check_writable(output)
    given: Any = options
    return lambda video: video.save(output, **given)


def _save_unnamed(video: Video, options: Mapping[str, Any]) -> Path:
    given: Any = options
    text, seed = video.settings["prompt"], video.settings["seed"]
    return write_to_unused_path(OUTPUT_FOLDER, text, seed, ".mp4", lambda path: video.save(path, **given))


def report_video(video: Video, path: Path, json: bool, facts: Mapping[str, Any]) -> None:
    """Print the path of the video on stdout, alone or in a JSON object with its settings, and its size on stderr."""
    if json:
        terminal.print_json({"path": str(path), **facts, **video.settings})
        return
    height, width = video.frames.shape[1:3]
    terminal.print_message(f"{len(video)} frames of {width} x {height} in {facts['seconds']} s")
    terminal.print_path(path)
