"""The videos of a folder, with their prompts: what can be measured, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset_layouts import CAPTIONS, FILES, IMAGES, VIDEOS
from kineograph.media.footage import Footage, open_footage
from kineograph.media.metadata import Label, read_label
from kineograph.media.shards import Problem, is_hidden
from kineograph.metrics.features import Frames
from kineograph.models.formats.tensor_files import preview_names

ENDINGS = VIDEOS | {".webp"}  # animated, as Kineograph writes them
FRAME = "frame_*.png"


class Reel(NamedTuple):
    """A video of a folder, not yet read.

    prompt: None when nothing says what it should show. then: what its later parts should, which are as long as the
        first.
    """

    name: str
    footage: Footage
    prompt: str | None
    then: tuple[str, ...] = ()


class Clip(NamedTuple):
    """A video, read. prompt, then: as of a reel."""

    name: str
    frames: Frames
    fps: float
    prompt: str | None
    then: tuple[str, ...] = ()

    @property
    def told(self) -> list[tuple[Frames, str]]:
        """Its frames part by part, each with what it should show; nothing where nothing says that."""
        prompts = [] if self.prompt is None else [self.prompt, *self.then]
        return [*zip(np.array_split(self.frames, max(1, len(prompts))), prompts, strict=False)]


@dataclass(frozen=True)
class Collection:
    """The videos of a folder by name, and those that cannot be read."""

    folder: Path
    reels: tuple[Reel, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def lengths(self) -> dict[str, int]:
        """How many frames each video has."""
        return {reel.name: len(reel.footage) for reel in self.reels}


def collect(folder: str | Path, prompts: Mapping[str, str] | None = None, fps: float | None = None) -> Collection:
    """The videos in a folder and below: files, and folders of frame_0000.png and so on.

    prompts: by name, with or without folders and ending; else those that a video of Kineograph's carries, one or, where
        it was drawn clip after clip, one for each clip.
    fps: frames a second at which they are read; each at its own rate unless given.
    Warns (InputWarning) of videos that cannot be read, of prompts without a video, and of clips without a beginning.
    Raises InputError when there is no folder, no video in it, or none that can be read.
    """
    folder = Path(folder).expanduser()
    names = _names(folder)
    reels, problems = list[Reel](), list[Problem]()
    for name in names:
        try:
            footage = open_footage(folder / name, fps=fps)
            reels.append(Reel(name, footage, *_prompts(folder / name, name, prompts)))
        except InputError as error:
            problems.append(Problem(name, str(error)))
    if not reels:
        raise InputError(f"none of the {len(names)} videos in {folder} can be read: {problems[0].reason}")
    _warn_of(folder, problems, len(names))
    _warn_of_strangers(folder, names, prompts or {})
    return Collection(folder, tuple(reels), tuple(problems))


def read(reel: Reel) -> Clip:
    """A video's frames. Raises InputError where it breaks off."""
    footage = reel.footage
    frames = np.stack(list(footage.frames(footage.height, footage.width)))
    return Clip(reel.name, frames, footage.fps, reel.prompt, reel.then)


def read_prompts(path: str | Path) -> dict[str, str]:
    """Prompts by video from a .csv or .jsonl with a column for the file's name and one for the prompt.

    Raises InputError that names the line in which one is missing or said differently before.
    """
    path, found = Path(path).expanduser(), dict[str, str]()
    for where, row in rows(path):
        name, prompt = first(row, FILES), first(row, CAPTIONS)
        if not name or not prompt:
            missing = f"a file ({', '.join(FILES)})" if not name else f"a prompt ({', '.join(CAPTIONS)})"
            raise InputError(f"{where}: expected {missing}, got {row}")
        if found.setdefault(name, prompt) != prompt:
            raise InputError(f"{where}: {name} has had another prompt in this file")
    if not found:
        raise InputError(f"{path} holds no prompts: expected rows of a file and a prompt")
    return found


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: expected one with videos in it")
    if any(folder.glob(FRAME)):
        raise InputError(f"{folder} is one video, as a folder of its frames: give the folder that it lies in")
    found = []
    for place, inner, files in os.walk(folder):
        inside = Path(place)
        frames = [each for each in inner if any((inside / each).glob(FRAME))]
        inner[:] = [each for each in inner if each not in frames]
        videos = [each for each in files if Path(each).suffix.lower() in ENDINGS]
        found += [(inside / each).relative_to(folder).as_posix() for each in (*frames, *videos)]
    names = sorted(name for name in found if not is_hidden(name))
    if not names:
        raise InputError(
            f"{folder} holds no video: expected files that end in {' '.join(sorted(ENDINGS))}, or folders of "
            "frame_0000.png and so on"
        )
    return names


def _prompts(path: Path, name: str, prompts: Mapping[str, str] | None) -> tuple[str | None, tuple[str, ...]]:
    """What the video should show, and what its later parts should."""
    for each in _called(name):
        if prompts and each in prompts:
            return prompts[each], ()
    label = read_label(path)
    told = label.settings.get("prompt") if label else None
    if label is None or not isinstance(told, str) or not told:
        return None, ()
    return told, _then(label, name)


def _then(label: Label, name: str) -> tuple[str, ...]:
    """The prompts of the clips after the first: its own each, or the last there is."""
    then, clips = label.settings.get("then") or (), label.settings.get("clips")
    if not then:
        return ()
    if not isinstance(clips, int) or clips <= len(then) or label.frames % clips:
        text = (
            f"{name} has {1 + len(then)} prompts and does not say where its clips begin: all of it counts as the first"
        )
        warnings.warn(text, InputWarning, stacklevel=4)
        return ()
    return (*then, *[then[-1]] * (clips - 1 - len(then)))


def _called(name: str) -> list[str]:
    """What a video may be called in a file of prompts."""
    path = PurePosixPath(name)
    bare = path.with_suffix("") if path.suffix.lower() in ENDINGS | IMAGES else path
    return [str(path), str(bare), path.name, bare.name]


def _warn_of(folder: Path, problems: list[Problem], count: int) -> None:
    if problems:
        named = preview_names([f"{name} ({reason})" for name, reason in problems])
        text = f"{len(problems)} of {count} videos in {folder} cannot be read and do not count: {named}"
        warnings.warn(text, InputWarning, stacklevel=3)


def _warn_of_strangers(folder: Path, names: list[str], prompts: Mapping[str, str]) -> None:
    known = {each for name in names for each in _called(name)}
    strangers = [name for name in prompts if name not in known]
    if strangers:
        text = f"{len(strangers)} of {len(prompts)} prompts belong to no video in {folder}: {preview_names(strangers)}"
        warnings.warn(text, InputWarning, stacklevel=3)


Row = dict[str, str]


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Where each row stands, for messages, and its columns in lower case. Raises InputError when it cannot be read."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"{path} is neither a .csv nor a .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (_table if path.suffix.lower() == ".csv" else _objects)(path, file)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from error


def first(row: Row, columns: Sequence[str]) -> str:
    """The first of these columns that has something in it; nothing if none has."""
    return next((row[column] for column in columns if row.get(column)), "")


def _table(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    table = csv.DictReader(file)
    for row in table:
        named = {name.strip().lower(): (value or "").strip() for name, value in row.items() if name is not None}
        yield f"{path}, line {table.line_num}", named


def _objects(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, line)


def _object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}")
    return {str(name).strip().lower(): str(value).strip() for name, value in row.items()}
