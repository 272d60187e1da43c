"""Watermarks that all videos of a source share: looked for once, before any is cut, and kept beside the clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kineograph.data.files import instead_of
from kineograph.data.pipeline.decoding import Frame, glimpses, reel
from kineograph.data.pipeline.records import WORK, write_text
from kineograph.data.pipeline.settings import DataSettings
from kineograph.data.pipeline.sources import Unit
from kineograph.data.pipeline.watermarks import Mark, watermark
from kineograph.data.places import opened
from kineograph.data.seeking import BrokenFile


def find_marks(units: Sequence[Unit], settings: DataSettings) -> None:
    """Looks for a watermark in every source, once: a run that goes on, with more files even, takes what was found."""
    if settings.watermarks.then == "keep" or settings.watermarks.across == "file":
        return
    for number in range(len(settings.sources)):
        path = _path(settings, number)
        films = [unit for unit in units if unit.source == number and unit.kind == "video"]
        if not path.with_suffix(".txt").exists():
            mark = watermark(_one_of_each(films, settings), settings.watermarks)
            if mark is not None:
                _write(path, mark)
            write_text(path.with_suffix(".txt"), f"looked for in {len(films)} files\n")


def read_mark(settings: DataSettings, unit: Unit) -> Mark | None:
    """The watermark that was found in a file's source, if any."""
    path = _path(settings, unit.source)
    if not path.exists():
        return None
    with Image.open(path) as mask:
        return Mark(np.asarray(mask.convert("L")) > 0)


def _one_of_each(films: Sequence[Unit], settings: DataSettings) -> list[Frame]:
    """A frame of each of some files from all over the source; those that are broken are passed over."""
    chosen = np.linspace(0, len(films) - 1, min(len(films), settings.watermarks.samples)).astype(int)
    return [frame for number in chosen for frame in _middle(films[number], settings)]


def _middle(unit: Unit, settings: DataSettings) -> list[Frame]:
    try:
        with opened(unit.place) as part:
            seen = glimpses(reel(part, fps=settings.fps, shorter_side=settings.shorter_side), 3)
    except (BrokenFile, OSError):
        return []
    return seen[len(seen) // 2 :][:1]


def _path(settings: DataSettings, source: int) -> Path:
    known = hashlib.sha256(settings.sources[source].source.encode()).hexdigest()[:12]
    return settings.output / WORK / "marks" / f"{known}.png"


def _write(path: Path, mark: Mark) -> None:
    with instead_of(path) as part:
        Image.fromarray(mark.mask).save(part, "PNG")
