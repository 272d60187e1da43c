"""Layouts of data sets: caption files beside the media, or a list of rows in `metadata`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from kineograph.media.shards import DatasetFile, FileRange, Problem, read_text

MediaKind = Literal["image", "video"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".ogv"}
    | {".3gp", ".gif"}
)
CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # the first that is found counts
CAPTION_COLUMNS = ("caption", "text", "prompt")
FILE_COLUMNS = ("file_name", "video", "path", "image", "file")


class DatasetItem(NamedTuple):
    """An image or a video of a data set, with its caption and its bytes."""

    name: str
    caption: str
    kind: MediaKind
    file_range: FileRange


LayoutContents = tuple[list[DatasetItem], list[Problem]]


def media_kind(name: str) -> MediaKind | None:
    """Return the kind of a file by its suffix; None for another kind."""
    suffix = PurePosixPath(name).suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def pair_with_captions(files: Sequence[DatasetFile]) -> LayoutContents:
    """Pair media with caption files of the same name: a.mp4 with a.txt or a.json, in a folder or in a tar.

    An image of the same name as a video is the video's preview, and is left out.
    """
    items, problems = list[DatasetItem](), list[Problem]()
    by_rank = [each for suffix in CAPTION_SUFFIXES for each in files if each.name.lower().endswith(suffix)]
    captions = {_stem(each.name): each for each in reversed(by_rank)}
    videos = {_stem(each.name) for each in files if media_kind(each.name) == "video"}
    for name, file_range in files:
        kind = media_kind(name)
        if kind == "image" and _stem(name) in videos:
            problems.append(Problem(name, "is left out, as the preview of the video of this name"))
        elif kind is not None:
            caption, problem = _read_caption(captions.get(_stem(name)))
            items.append(DatasetItem(name, caption, kind, file_range))
            problems += [Problem(name, problem)] if problem else []
    return items, problems


def read_item_list(metadata: Path, root: Path) -> LayoutContents:
    """Read items from the rows of metadata.jsonl or metadata.csv, whose file names are relative to its folder.

    root: names of items are relative to it.
    """
    items, problems, list_name = list[DatasetItem](), list[Problem](), _relative(metadata, root)
    for line, row in _rows(metadata):
        file = None if isinstance(row, str) else _first_text(row, FILE_COLUMNS)
        if isinstance(row, str) or file is None:
            reason = row if isinstance(row, str) else f"has none of the columns {', '.join(FILE_COLUMNS)}"
            problems.append(Problem(f"{list_name}, line {line},", reason))
            continue
        path, caption = metadata.parent / file, _first_text(row, CAPTION_COLUMNS)
        name, kind = _relative(path, root), media_kind(file)
        outside = not Path(normpath(path.absolute())).is_relative_to(normpath(root.absolute()))  # links may lead out
        if outside or kind is None or not _is_file(path):
            reason = "is neither an image nor a video by its ending" if kind is None else "is not there"
            reason = "lies outside the folder of the data set: move or link it there" if outside else reason
            problems.append(Problem(name, f"{reason} ({list_name}, line {line})"))
            continue
        items.append(DatasetItem(name, caption or "", kind, FileRange(path)))
        problems += [] if caption else [Problem(name, f"has no caption ({list_name}, line {line})")]
    return items, problems


def _rows(metadata: Path) -> Iterator[tuple[int, Mapping[Any, Any] | str]]:
    """Yield the rows with their line numbers; in place of an invalid row, its defect."""
    line = 0
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            for line, row in _csv_rows(file) if metadata.suffix.lower() == ".csv" else _json_rows(file):
                yield line, row
    except (OSError, ValueError, csv.Error) as error:
        yield line + 1, f"cannot be read, nor what follows ({error})"


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    rows = csv.DictReader(file)
    return ((rows.line_num, row) for row in rows)


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, Mapping[Any, Any] | str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            row = _parse_json(line)
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _first_text(row: Mapping[Any, Any], columns: Sequence[str]) -> str | None:
    """Return the first of these columns that holds text; of a list of captions, the first."""
    values = {str(column).strip().lower(): value for column, value in row.items()}
    for value in (values.get(column) for column in columns):
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and text.strip() and _is_unicode(text):
            return text.strip()
    return None


def _is_unicode(text: str) -> bool:
    """Return False for a text with a lone surrogate, which JSON can escape and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_caption(file: DatasetFile | None) -> tuple[str, str]:
    """Return a caption, and its defect, if any."""
    if file is None:
        return "", "has no caption"
    try:
        text = read_text(file.file_range)
    except (OSError, ValueError) as error:
        return "", f"has a caption that cannot be read ({error})"
    if file.name.lower().endswith(".json"):
        row = _parse_json(text)
        caption = _first_text(row, CAPTION_COLUMNS) if isinstance(row, dict) else None
        return caption or "", "" if caption else f"has a .json without text in any of {', '.join(CAPTION_COLUMNS)}"
    return text.strip(), "" if text.strip() else "has an empty caption"


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file could have
        return False
