"""The videos of a folder with their prompts, as `kineograph evaluate` reads them."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from kineograph.errors import (
    MAX_FRAMES,
    InputError,
    InputWarning,
    expand_user,
    is_present,
    parse_json,
    shown,
    shown_path,
)
from kineograph.media.dataset_layouts import CAPTION_COLUMNS, FILE_COLUMNS, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from kineograph.media.footage import Footage, open_footage
from kineograph.media.frames import check_held
from kineograph.media.metadata import VideoMetadata, read_video_metadata
from kineograph.media.shards import Problem, is_hidden
from kineograph.metrics.features import Frames
from kineograph.models.conditioning.prompt_weights import plain_text
from kineograph.models.formats.tensor_files import preview_names

EXTENSIONS = VIDEO_SUFFIXES | {".webp"}  # animated, as Kineograph writes them
FRAME_PATTERN = "frame_*.png"


class VideoEntry(NamedTuple):
    """A video of a folder, not decoded yet.

    prompt         None if it is not known
    later_prompts  those of the clips after the first, which are all of one length
    cluster        videos of one cluster depend on one another; None for a video of its own
    """

    name: str
    footage: Footage
    prompt: str | None
    later_prompts: tuple[str, ...] = ()
    cluster: str | None = None


class DecodedVideo(NamedTuple):
    """A decoded video. prompt, later_prompts, cluster: as in `VideoEntry`."""

    name: str
    frames: Frames
    fps: float
    prompt: str | None
    later_prompts: tuple[str, ...] = ()
    cluster: str | None = None

    @property
    def prompted_parts(self) -> list[tuple[Frames, str]]:
        """The frames of each clip with its prompt; empty if no prompt is known."""
        prompts = [] if self.prompt is None else [self.prompt, *self.later_prompts]
        return [*zip(np.array_split(self.frames, max(1, len(prompts))), prompts, strict=False)]


@dataclass(frozen=True)
class VideoCollection:
    """The videos of a folder, sorted by name, and those that cannot be read."""

    folder: Path
    entries: tuple[VideoEntry, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def lengths(self) -> dict[str, int]:
        """Number of frames of each video."""
        return {entry.name: len(entry.footage) for entry in self.entries}


def collect_videos(
    folder: str | Path,
    prompts: Mapping[str, str] | None = None,
    fps: float | None = None,
    clusters: Mapping[str, str] | None = None,
) -> VideoCollection:
    """Find the videos in a folder and below: files, and folders of frame_0000.png and so on.

    Warns (InputWarning) of videos that cannot be read, of prompts without a video, and of videos with several prompts
    whose clips are not known.

    Args:
        prompts: by the video's name, with or without folders and extension; by default those that Kineograph wrote into
            the videos, one for each clip of a long video.
        fps: frame rate at which videos are read; by default each video's own.
        clusters: by the video's name, as prompts; by default each video is independent of the others.

    Raises InputError when the folder is missing, holds no video, or none that can be read; or `clusters` lacks one.
    """
    folder = expand_user(folder)
    names = _find_names(folder)
    entries, problems = list[VideoEntry](), list[Problem]()
    for name in names:
        try:
            footage = open_footage(folder / name, fps=fps)
        except InputError as error:
            problems.append(Problem(name, str(error)))
            continue
        found = _find_prompts(folder / name, name, prompts)
        entries.append(VideoEntry(name, footage, *found, _find_cluster(folder, name, clusters)))
    if not entries:
        raise InputError(f"none of the {len(names)} videos in {folder} can be read: {problems[0].reason}")
    _warn_of_unreadable(folder, problems, len(names))
    _warn_of_unused_prompts(folder, names, prompts or {})
    return VideoCollection(folder, tuple(entries), tuple(problems))


def decode_video(entry: VideoEntry) -> DecodedVideo:
    """Decode a video. Raises InputError where the file breaks off, or holds too much at once."""
    footage = entry.footage
    check_held(Path(footage.path), len(footage), footage.height, footage.width)
    frames = np.stack(list(footage.frames(footage.height, footage.width)))
    return DecodedVideo(entry.name, frames, footage.fps, entry.prompt, entry.later_prompts, entry.cluster)


def read_prompts(path: str | Path) -> dict[str, str]:
    """Read prompts by video from a .csv or .jsonl file with a column for the file name and one for the prompt.

    Raises InputError when a row lacks one of them or gives a video another prompt; the message names the line.
    """
    return _read_by_video(path, "prompt", CAPTION_COLUMNS)


def read_clusters(path: str | Path, column: str) -> dict[str, str]:
    """Read the cluster of each video from a column of a .csv or .jsonl file that has one for the file name as well.

    Raises InputError as `read_prompts` does.
    """
    return _read_by_video(path, "cluster", [column.strip().lower()])


def _read_by_video(path: str | Path, what: str, columns: Sequence[str]) -> dict[str, str]:
    path, values = expand_user(path), dict[str, str]()
    for where, row in read_rows(path):
        name, value = first_value(row, FILE_COLUMNS), first_value(row, columns)
        if not name or not value:
            missing = f"a file ({', '.join(FILE_COLUMNS)})" if not name else f"a {what} ({', '.join(columns)})"
            raise InputError(f"{where}: expected {missing}, got {shown(str(row))}")
        if values.setdefault(name, value) != value:
            raise InputError(f"{where}: {name} has another {what} earlier in this file")
    if not values:
        raise InputError(f"{path} holds no {what}s: expected rows of a file and a {what}")
    return values


def _find_names(folder: Path) -> list[str]:
    if not is_present(folder) or not folder.is_dir():
        raise InputError(f"there is no folder {shown_path(folder)}: expected one with videos in it")
    if any(folder.glob(FRAME_PATTERN)):
        raise InputError(f"{folder} is one video, as a folder of its frames: give the folder that contains it")
    found = []
    for parent, subfolders, files in os.walk(folder):
        inside = Path(parent)
        frames = [name for name in subfolders if any((inside / name).glob(FRAME_PATTERN))]
        subfolders[:] = [name for name in subfolders if name not in frames]
        videos = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
        found += [(inside / name).relative_to(folder).as_posix() for name in (*frames, *videos)]
    names = sorted(name for name in found if not is_hidden(name))
    if not names:
        raise InputError(
            f"{folder} holds no video: expected files that end in {' '.join(sorted(EXTENSIONS))}, or folders of "
            "frame_0000.png and so on"
        )
    return names


def _find_prompts(path: Path, name: str, prompts: Mapping[str, str] | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the prompt of a video and those of its later clips, without the weights of words."""
    for alias in _aliases(name):
        if prompts and alias in prompts:
            return prompts[alias], ()
    metadata = read_video_metadata(path)
    prompt = metadata.settings.get("prompt") if metadata else None
    if metadata is None or not isinstance(prompt, str) or not prompt:
        return None, ()
    weights = metadata.settings.get("prompt_weights")
    read = partial(plain_text, weights=weights if weights in ("a1111", "comfyui") else "off")
    return read(prompt), tuple(map(read, _later_prompts(metadata, name)))


def _find_cluster(folder: Path, name: str, clusters: Mapping[str, str] | None) -> str | None:
    if clusters is None:
        return None
    found = [clusters[alias] for alias in _aliases(name) if alias in clusters]
    if not found:
        raise InputError(f"{name} in {folder} has no cluster: give the file of clusters a row for it")
    return found[0]


def _later_prompts(metadata: VideoMetadata, name: str) -> tuple[str, ...]:
    """Return the prompts of the clips after the first; the last prompt goes on to the end of the video."""
    then, clips = metadata.settings.get("then"), metadata.settings.get("clips")
    if not then or not isinstance(then, list) or not all(isinstance(each, str) for each in then):
        return ()
    if not isinstance(clips, int) or not len(then) < clips <= MAX_FRAMES or metadata.frames % clips:
        text = f"{name} has {1 + len(then)} prompts and does not say where its clips begin: the first is used for all"
        warnings.warn(text, InputWarning, stacklevel=4)
        return ()
    return (*then, *[then[-1]] * (clips - 1 - len(then)))


def _aliases(name: str) -> list[str]:
    """Return the names by which a file of prompts may call a video."""
    path = PurePosixPath(name)
    bare = path.with_suffix("") if path.suffix.lower() in EXTENSIONS | IMAGE_SUFFIXES else path
    return [str(path), str(bare), path.name, bare.name]


def _warn_of_unreadable(folder: Path, problems: list[Problem], count: int) -> None:
    if problems:
        named = preview_names([f"{name} ({reason})" for name, reason in problems])
        text = f"{len(problems)} of {count} videos in {folder} cannot be read and are left out: {named}"
        warnings.warn(text, InputWarning, stacklevel=3)


def _warn_of_unused_prompts(folder: Path, names: list[str], prompts: Mapping[str, str]) -> None:
    known = {alias for name in names for alias in _aliases(name)}
    unused = [name for name in prompts if name not in known]
    if unused:
        text = f"{len(unused)} of {len(prompts)} prompts belong to no video in {folder}: {preview_names(unused)}"
        warnings.warn(text, InputWarning, stacklevel=3)


Row = dict[str, str]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Read the rows of a .csv or .jsonl file, column names in lower case.

    Yields pairs of the row's place, for messages, and the row. Raises InputError when the file cannot be read.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"{shown_path(path)} is neither a .csv nor a .jsonl")
    if not is_present(path):
        raise InputError(f"there is no file {shown_path(path)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (_csv_rows if path.suffix.lower() == ".csv" else _jsonl_rows)(path, file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from error


def first_value(row: Row, columns: Sequence[str]) -> str:
    """Return the first non-empty value among these columns, or ""."""
    return next((row[column] for column in columns if row.get(column)), "")


def _csv_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    table = csv.DictReader(file)
    for row in table:
        named = {name.strip().lower(): (value or "").strip() for name, value in row.items() if name is not None}
        yield f"{path}, line {table.line_num}", named


def _jsonl_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, got {shown(row)}")
        yield where, {str(name).strip().lower(): str(value).strip() for name, value in row.items()}
