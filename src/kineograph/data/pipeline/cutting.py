"""A file becomes clips: read, cut, sifted, cleaned and written, all or nothing."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from kineograph.data.clips import picture_in
from kineograph.data.codecs import write_mp4
from kineograph.data.files import instead_of
from kineograph.data.footage import DAMAGE
from kineograph.data.pipeline import pan_and_zoom
from kineograph.data.pipeline.cuts import pieces
from kineograph.data.pipeline.decoding import frames, glimpses, reel
from kineograph.data.pipeline.filters import sieve
from kineograph.data.pipeline.likeness import BITS, fingerprint
from kineograph.data.pipeline.marks import read_mark
from kineograph.data.pipeline.records import Kept, Lost, Record, add, clips_path, record_path, write_record
from kineograph.data.pipeline.settings import DataSettings
from kineograph.data.pipeline.sources import Unit, stem
from kineograph.data.pipeline.steps import Dropped, Shot, Step, through
from kineograph.data.pipeline.watermarks import Mark, cleaner, watermark
from kineograph.data.places import Part, opened
from kineograph.data.provenance import Label
from kineograph.data.seeking import BrokenFile

Marked = tuple[Shot, Mark | None]


def cut(told: str, settings: DataSettings) -> str:
    """Works on one unit, as JSON, unless it is done; returns its key. A file that is broken is recorded as such.

    Raises InputError when something is not installed, and OSError when the output cannot be written.
    """
    unit = Unit(**json.loads(told))
    record = record_path(settings.output, unit)
    if not record.exists():
        write_record(record, _worked_on(unit, settings))
    return unit.key


def _worked_on(unit: Unit, settings: DataSettings) -> Record:
    path, done = clips_path(settings.output, unit), Record([], [])
    try:
        with instead_of(path) as part, tarfile.open(part, "w") as tar:
            for shot, mark in _shots(unit, settings):
                _pass_on(shot, steps(settings, mark), unit, tar, done)
    except BrokenFile as error:  # what came before it goes too: a file is used as a whole
        return Record([], [Lost(0.0, "broken", str(error))])
    if not done.kept:
        path.unlink()
    return done


def steps(settings: DataSettings, mark: Mark | None) -> list[tuple[str, Step]]:
    """What a clip goes through, in this order."""
    return [*sieve(settings.cuts, settings.filters), ("watermark", cleaner(mark, settings.watermarks))]


def _pass_on(shot: Shot, way: list[tuple[str, Step]], unit: Unit, tar: tarfile.TarFile, done: Record) -> None:
    """Adds to the record, and to the tar if the shot gets through."""
    passed = through(shot, way)
    if isinstance(passed, Dropped):
        done.lost.append(Lost(round(shot.start, 3), passed.why, passed.told))
        return
    name = f"{stem(unit)}_{len(done.kept):04d}"
    count, height, width, _ = passed.frames.shape
    kept = Kept(name, shot.kind, round(shot.start, 3), count, shot.fps, height, width, _print(passed))
    add(tar, f"{name}.mp4", _movie(passed, {"source": unit.name, "start": kept.start, "kind": kept.kind}))
    done.kept.append(kept)


def _print(shot: Shot) -> str:
    return f"{fingerprint(shot.frames):0{BITS // 4}x}"


def _movie(shot: Shot, origin: dict) -> bytes:
    count, height, width, _ = shot.frames.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, shot.frames, Label(count, height, width, shot.fps, origin))
        return path.read_bytes()


def _shots(unit: Unit, settings: DataSettings) -> Iterator[Marked]:
    """The shots of a file, each with the watermark that is on it."""
    with ExitStack() as open_files:
        try:
            part = open_files.enter_context(opened(unit.place))
        except OSError as error:
            raise BrokenFile(f"cannot be read ({error.strerror})") from error
        yield from _pictured(unit, part, settings) if unit.kind == "image" else _filmed(unit, part, settings)


def _filmed(unit: Unit, part: Part, settings: DataSettings) -> Iterator[Marked]:
    film = reel(part, fps=settings.fps, shorter_side=settings.shorter_side)
    mark = read_mark(settings, unit)
    if settings.watermarks.then != "keep" and settings.watermarks.across == "file":
        mark = watermark(glimpses(film, settings.watermarks.samples), settings.watermarks)
    for start, kept in pieces(frames(film), film.fps, settings.cuts):
        yield Shot(kept, film.fps, start / film.fps, "filmed"), mark


def _pictured(unit: Unit, part: Part, settings: DataSettings) -> Iterator[Marked]:
    stills = settings.stills
    try:
        picture = picture_in(part)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise BrokenFile(f"cannot be decoded ({type(error).__name__}: {error})") from error
    height, width = pan_and_zoom.size_within(picture, stills.smallest, settings.shorter_side)
    rng, shape = _by_name(unit, settings.seed), width / height
    if "panned" in stills.motions:
        for _ in range(stills.versions):
            windows = pan_and_zoom.wandering(rng, picture, shape, stills.smallest)
            moved = pan_and_zoom.panned(picture, *windows, stills.num_frames, height, width)
            yield Shot(moved, stills.fps, 0.0, "panned"), None
    if "frozen" in stills.motions:
        window = pan_and_zoom.centred(picture, shape)
        resting = pan_and_zoom.frozen(picture, window, stills.num_frames, height, width)
        yield Shot(resting, stills.fps, 0.0, "frozen"), None


def _by_name(unit: Unit, seed: int) -> np.random.Generator:
    """Random numbers that a file has for itself: the same in every run, whatever else there is."""
    return np.random.default_rng([seed, *hashlib.sha256(unit.name.encode()).digest()[:16]])
