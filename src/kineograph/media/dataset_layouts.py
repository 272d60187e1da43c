"""How datasets say which caption belongs to which video: files beside one another, or a list in `metadata`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from kineograph.media.shards import DatasetFile, FileRange, Problem, read_text

MediaKind = Literal["image", "video"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".ogv"}
    | {".3gp", ".gif"}
)
CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # the first that is there counts
CAPTION_COLUMNS = ("caption", "text", "prompt")
FILE_COLUMNS = ("file_name", "video", "path", "image", "file")


class DatasetItem(NamedTuple):
    """A picture or a video to train on, with its caption, and where it lies."""

    name: str
    caption: str
    kind: MediaKind
    place: FileRange


LayoutContents = tuple[list[DatasetItem], list[Problem]]


def media_kind(name: str) -> MediaKind | None:
    """What a file is, by the ending of its name."""
    ending = PurePosixPath(name).suffix.lower()
    return "image" if ending in IMAGE_SUFFIXES else "video" if ending in VIDEO_SUFFIXES else None


def pair_with_captions(found: Sequence[DatasetFile]) -> LayoutContents:
    """Items from files of one name: a.mp4 with a.txt or a.json, in a folder or in a tar.

    A picture beside a video of the same name is the video's preview and left out.
    """
    texts, items, problems = _texts(found), list[DatasetItem](), list[Problem]()
    films = {_stem(each.name) for each in found if media_kind(each.name) == "video"}
    for name, place in found:
        kind = media_kind(name)
        if kind == "image" and _stem(name) in films:
            problems.append(Problem(name, "is left out, as the preview of the video of this name"))
        elif kind is not None:
            caption, wrong = _caption(texts.get(_stem(name)))
            items.append(DatasetItem(name, caption, kind, place))
            problems += [Problem(name, wrong)] if wrong else []
    return items, problems


def read_item_list(metadata: Path, root: Path) -> LayoutContents:
    """Items from the rows of metadata.jsonl or metadata.csv, whose file names are relative to where it lies."""
    items, problems, known = list[DatasetItem](), list[Problem](), _name(metadata, root)
    for line, row in _rows(metadata):
        file = None if isinstance(row, str) else _first(row, FILE_COLUMNS)
        if isinstance(row, str) or file is None:
            reason = row if isinstance(row, str) else f"has none of the columns {', '.join(FILE_COLUMNS)}"
            problems.append(Problem(f"{known}, line {line},", reason))
            continue
        path, caption = metadata.parent / file, _first(row, CAPTION_COLUMNS)
        name, kind = _name(path, root), media_kind(file)
        if kind is None or not _is_there(path):
            reason = "is not there" if kind else "is neither a picture nor a video by its ending"
            problems.append(Problem(name, f"{reason} ({known}, line {line})"))
            continue
        items.append(DatasetItem(name, caption or "", kind, FileRange(path)))
        problems += [] if caption else [Problem(name, f"has no caption ({known}, line {line})")]
    return items, problems


def _rows(metadata: Path) -> Iterator[tuple[int, Mapping[Any, Any] | str]]:
    """The rows with their lines' numbers; for what is none, what is wrong with it."""
    line = 0
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            for line, row in _table(file) if metadata.suffix.lower() == ".csv" else _objects(file):
                yield line, row
    except (OSError, ValueError, csv.Error) as error:
        yield line + 1, f"cannot be read, nor what follows ({error})"


def _table(file: Iterable[str]) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    rows = csv.DictReader(file)
    return ((rows.line_num, row) for row in rows)


def _objects(file: Iterable[str]) -> Iterator[tuple[int, Mapping[Any, Any] | str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            row = _parsed(line)
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _first(row: Mapping[Any, Any], columns: Sequence[str]) -> str | None:
    """The first of these columns that has text in it; of several captions, the first."""
    values = {str(column).strip().lower(): value for column, value in row.items()}
    for value in (values.get(column) for column in columns):
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and text.strip():
            return text.strip()
    return None


def _texts(found: Sequence[DatasetFile]) -> dict[str, DatasetFile]:
    """Captions by their names without the endings."""
    ranked = [each for ending in CAPTION_SUFFIXES for each in found if each.name.lower().endswith(ending)]
    return {_stem(each.name): each for each in reversed(ranked)}


def _caption(found: DatasetFile | None) -> tuple[str, str]:
    """A caption, and what is wrong with it, if anything."""
    if found is None:
        return "", "has no caption"
    try:
        text = read_text(found.place)
    except (OSError, ValueError) as error:
        return "", f"has a caption that cannot be read ({error})"
    if found.name.lower().endswith(".json"):
        row = _parsed(text)
        caption = _first(row, CAPTION_COLUMNS) if isinstance(row, dict) else None
        return caption or "", "" if caption else f"has a .json without any of {', '.join(CAPTION_COLUMNS)}"
    return text.strip(), "" if text.strip() else "has an empty caption"


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _name(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file could have
        return False
