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

from kineograph.curation.clip_steps import CandidateClip, ClipStep, Rejection, apply_steps
from kineograph.curation.decoding import frames_at_rate, open_decodable, sample_frames, split_shots
from kineograph.curation.filters import HASH_BITS, filter_steps, perceptual_hash
from kineograph.curation.records import (
    ClipRecord,
    DropRecord,
    FileRecord,
    add_to_tar,
    clips_path,
    record_path,
    write_record,
)
from kineograph.curation.settings import CurationSettings
from kineograph.curation.sources import SourceFile, clip_name_prefix
from kineograph.curation.watermarks import Mark, detect_watermark, read_source_watermark, watermark_step
from kineograph.media.codecs import write_mp4
from kineograph.media.files import replace_atomically
from kineograph.media.footage import DECODE_ERRORS
from kineograph.media.metadata import VideoMetadata
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import FileSlice, open_range
from kineograph.media.training_clips import decode_image

Marked = tuple[CandidateClip, Mark | None]


def make_clips(told: str, settings: CurationSettings) -> str:
    """Works on one unit, as JSON, unless it is done; returns its key. A file that is broken is recorded as such.

    Raises InputError when something is not installed, and OSError when the output cannot be written.
    """
    unit = SourceFile(**json.loads(told))
    record = record_path(settings.output, unit)
    if not record.exists():
        write_record(record, _worked_on(unit, settings))
    return unit.key


def _worked_on(unit: SourceFile, settings: CurationSettings) -> FileRecord:
    path, done = clips_path(settings.output, unit), FileRecord([], [])
    try:
        with replace_atomically(path) as part, tarfile.open(part, "w") as tar:
            for shot, mark in _shots(unit, settings):
                _pass_on(shot, clip_steps(settings, mark), unit, tar, done)
    except BrokenFile as error:  # what came before it goes too: a file is used as a whole
        return FileRecord([], [DropRecord(0.0, "broken", str(error))])
    if not done.kept:
        path.unlink()
    return done


def clip_steps(settings: CurationSettings, mark: Mark | None) -> list[tuple[str, ClipStep]]:
    """What a clip goes through, in this order."""
    return [*filter_steps(settings.cuts, settings.filters), ("watermark", watermark_step(mark, settings.watermarks))]


def _pass_on(
    shot: CandidateClip, way: list[tuple[str, ClipStep]], unit: SourceFile, tar: tarfile.TarFile, done: FileRecord
) -> None:
    """Adds to the record, and to the tar if the shot gets through."""
    passed = apply_steps(shot, way)
    if isinstance(passed, Rejection):
        done.lost.append(DropRecord(round(shot.start, 3), passed.why, passed.told))
        return
    name = f"{clip_name_prefix(unit)}_{len(done.kept):04d}"
    count, height, width, _ = passed.frames.shape
    kept = ClipRecord(name, shot.kind, round(shot.start, 3), count, shot.fps, height, width, _print(passed))
    add_to_tar(tar, f"{name}.mp4", _movie(passed, {"source": unit.name, "start": kept.start, "kind": kept.kind}))
    done.kept.append(kept)


def _print(shot: CandidateClip) -> str:
    return f"{perceptual_hash(shot.frames):0{HASH_BITS // 4}x}"


def _movie(shot: CandidateClip, origin: dict) -> bytes:
    count, height, width, _ = shot.frames.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, shot.frames, VideoMetadata(count, height, width, shot.fps, origin))
        return path.read_bytes()


def _shots(unit: SourceFile, settings: CurationSettings) -> Iterator[Marked]:
    """The shots of a file, each with the watermark that is on it."""
    with ExitStack() as open_files:
        try:
            part = open_files.enter_context(open_range(unit.place))
        except OSError as error:
            raise BrokenFile(f"cannot be read ({error.strerror})") from error
        yield from _pictured(unit, part, settings) if unit.kind == "image" else _filmed(unit, part, settings)


def _filmed(unit: SourceFile, part: FileSlice, settings: CurationSettings) -> Iterator[Marked]:
    film = open_decodable(part, fps=settings.fps, shorter_side=settings.shorter_side)
    mark = read_source_watermark(settings, unit)
    if settings.watermarks.then != "keep" and settings.watermarks.across == "file":
        mark = detect_watermark(sample_frames(film, settings.watermarks.samples), settings.watermarks)
    for start, kept in split_shots(frames_at_rate(film), film.fps, settings.cuts):
        yield CandidateClip(kept, film.fps, start / film.fps, "filmed"), mark


def _pictured(unit: SourceFile, part: FileSlice, settings: CurationSettings) -> Iterator[Marked]:
    stills = settings.stills
    try:
        picture = decode_image(part)
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise BrokenFile(f"cannot be decoded ({type(error).__name__}: {error})") from error
    height, width = clip_size(picture, stills.smallest, settings.shorter_side)
    rng, shape = _by_name(unit, settings.seed), width / height
    if "panned" in stills.motions:
        for _ in range(stills.versions):
            windows = random_windows(rng, picture, shape, stills.smallest)
            moved = pan_and_zoom(picture, *windows, stills.num_frames, height, width)
            yield CandidateClip(moved, stills.fps, 0.0, "panned"), None
    if "frozen" in stills.motions:
        window = largest_window(picture, shape)
        resting = freeze_frame(picture, window, stills.num_frames, height, width)
        yield CandidateClip(resting, stills.fps, 0.0, "frozen"), None


def _by_name(unit: SourceFile, seed: int) -> np.random.Generator:
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


def pan_and_zoom(picture: Image.Image, first: Window, last: Window, count: int, height: int, width: int) -> Frames:
    """Frames of this size through a window whose edges move evenly from first to last; antialiased, to the subpixel."""
    way = np.linspace(0.0, 1.0, count)[:, None]
    windows = (1 - way) * np.array(first) + way * np.array(last)
    return np.stack([_through(picture, window, height, width) for window in windows])


def freeze_frame(picture: Image.Image, window: Window, count: int, height: int, width: int) -> Frames:
    """The same frame, so many times."""
    return np.repeat(_through(picture, window, height, width)[None], count, axis=0)


def random_windows(
    rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float
) -> tuple[Window, Window]:
    """Where a window begins and ends, at random: how large, where, and so how fast and in which direction.

    shape: its width over its height. smallest: its least size, as a part of the largest that fits. Of those that
    hardly move, another is drawn.
    """
    for _ in range(TRIES):
        first, last = (random_window(rng, picture, shape, smallest) for _ in range(2))
        if np.abs(np.subtract(first, last)).max() >= LEAST_WAY * max(picture.size):
            break
    return first, last


def random_window(rng: np.random.Generator, picture: Image.Image, shape: float, smallest: float) -> Window:
    """A window of random size and place."""
    whole = largest_window(picture, shape)
    scale = rng.uniform(smallest, 1.0)
    wide, tall = scale * (whole.right - whole.left), scale * (whole.bottom - whole.top)
    left, top = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - tall)
    return Window(left, top, left + wide, top + tall)


def largest_window(picture: Image.Image, shape: float) -> Window:
    """The largest window of this shape, in the middle."""
    wide, tall = min(picture.width, picture.height * shape), min(picture.height, picture.width / shape)
    left, top = (picture.width - wide) / 2, (picture.height - tall) / 2
    return Window(left, top, left + wide, top + tall)


def clip_size(picture: Image.Image, smallest: float, shorter_side: int | None) -> tuple[int, int]:
    """Height and width of clips of a picture's own shape, even, for which the smallest window is not enlarged."""
    most = smallest * min(picture.size)
    scale = min(most, shorter_side or most) / min(picture.size)
    width, height = (max(2, 2 * int(side * scale / 2)) for side in picture.size)
    return height, width


def _through(picture: Image.Image, window: np.ndarray | Window, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    left, top, right, bottom = map(float, np.clip(window, 0, [picture.width, picture.height] * 2))  # rounding errors
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom)))
