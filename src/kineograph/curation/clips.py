"""A file becomes clips: read, cut, sifted, cleaned and written, all or nothing."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.curation.clip_steps import Dropped, Shot, Step, through
from kineograph.curation.decoding import frames, glimpses, pieces, reel
from kineograph.curation.filters import BITS, fingerprint, sieve
from kineograph.curation.records import Kept, Lost, Record, add, clips_path, record_path, write_record
from kineograph.curation.settings import DataSettings
from kineograph.curation.sources import Unit, stem
from kineograph.curation.watermarks import Mark, cleaner, read_mark, watermark
from kineograph.media.codecs import write_mp4
from kineograph.media.files import instead_of
from kineograph.media.footage import DAMAGE
from kineograph.media.metadata import Label
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import Part, opened
from kineograph.media.training_clips import picture_in

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
    height, width = size_within(picture, stills.smallest, settings.shorter_side)
    rng, shape = _by_name(unit, settings.seed), width / height
    if "panned" in stills.motions:
        for _ in range(stills.versions):
            windows = wandering(rng, picture, shape, stills.smallest)
            moved = panned(picture, *windows, stills.num_frames, height, width)
            yield Shot(moved, stills.fps, 0.0, "panned"), None
    if "frozen" in stills.motions:
        window = centred(picture, shape)
        resting = frozen(picture, window, stills.num_frames, height, width)
        yield Shot(resting, stills.fps, 0.0, "frozen"), None


def _by_name(unit: Unit, seed: int) -> np.random.Generator:
    """Random numbers that a file has for itself: the same in every run, whatever else there is."""
    return np.random.default_rng([seed, *hashlib.sha256(unit.name.encode()).digest()[:16]])


Frames = UInt8[np.ndarray, "f h w 3"]
LEAST_WAY = 0.1  # of the picture, that some corner of the window covers from first to last: less is hardly seen
TRIES = 100


class Window(NamedTuple):
    """A part of a picture, in its pixels; edges may lie between two."""

    left: float
    top: float
    right: float
    bottom: float


def panned(picture: Image.Image, first: Window, last: Window, count: int, height: int, width: int) -> Frames:
    """Frames of this size through a window whose edges move evenly from first to last; antialiased, to the subpixel."""
    way = np.linspace(0.0, 1.0, count)[:, None]
    windows = (1 - way) * np.array(first) + way * np.array(last)
    return np.stack([_through(picture, window, height, width) for window in windows])


def frozen(picture: Image.Image, window: Window, count: int, height: int, width: int) -> Frames:
    """The same frame, so many times."""
    return np.repeat(_through(picture, window, height, width)[None], count, axis=0)


def wandering(rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float) -> tuple[Window, Window]:
    """Where a window begins and ends, at random: how large, where, and so how fast and in which direction.

    shape: its width over its height. smallest: its least size, as a part of the largest that fits. Of those that
    hardly move, another is drawn.
    """
    for _ in range(TRIES):
        first, last = (somewhere(rng, picture, shape, smallest) for _ in range(2))
        if np.abs(np.subtract(first, last)).max() >= LEAST_WAY * max(picture.size):
            break
    return first, last


def somewhere(rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float) -> Window:
    """A window of random size and place."""
    whole = centred(picture, shape)
    scale = rng.uniform(smallest, 1.0)
    wide, tall = scale * (whole.right - whole.left), scale * (whole.bottom - whole.top)
    left, top = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - tall)
    return Window(left, top, left + wide, top + tall)


def centred(picture: Image.Image, shape: float) -> Window:
    """The largest window of this shape, in the middle."""
    wide, tall = min(picture.width, picture.height * shape), min(picture.height, picture.width / shape)
    left, top = (picture.width - wide) / 2, (picture.height - tall) / 2
    return Window(left, top, left + wide, top + tall)


def size_within(picture: Image.Image, smallest: float, shorter_side: int | None) -> tuple[int, int]:
    """Height and width of clips of a picture's own shape, even, for which the smallest window is not enlarged."""
    most = smallest * min(picture.size)
    scale = min(most, shorter_side or most) / min(picture.size)
    width, height = (max(2, 2 * int(side * scale / 2)) for side in picture.size)
    return height, width


def _through(picture: Image.Image, window: np.ndarray | Window, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    left, top, right, bottom = map(float, np.clip(window, 0, [picture.width, picture.height] * 2))  # rounding errors
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom)))
