"""Datasets that video models are trained on: whatever layout they come in, a sorted list of items with captions."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset_layouts import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    DatasetItem,
    LayoutContents,
    MediaKind,
    pair_with_captions,
    read_item_list,
)
from kineograph.media.shards import DatasetFile, FileRange, Problem, expand_braces, is_hidden, list_tar_members

METADATA = ("metadata.jsonl", "metadata.csv")  # the first kind that is there counts
SHOWN = 5  # problems, or kinds of files, that a message names


@dataclass(frozen=True)
class Dataset:
    """Pictures and videos with captions, sorted by name.

    Attributes:
        source: what was opened.
        layout: what it was read as.
        problems: what was left out, or has no caption, and why.
    """

    source: str
    layout: str
    items: tuple[DatasetItem, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> DatasetItem:
        return self.items[index]

    def __iter__(self) -> Iterator[DatasetItem]:
        return iter(self.items)

    def only(self, kind: MediaKind) -> Dataset:
        """The pictures alone, or the videos alone; there may be none."""
        return replace(self, items=tuple(item for item in self.items if item.kind == kind))


def open_dataset(source: str | Path) -> Dataset:
    """The dataset in a folder, in a file, or in tar shards such as "shards-{000..003}.tar".

    Of a folder, the first of these that it holds is read, in it or below: metadata.jsonl or metadata.csv (as Hugging
    Face's videofolder and imagefolder have them), webdataset's .tar shards, videos and pictures with captions beside.
    Files and folders whose names begin with a dot do not count. No video is opened.

    Warns once (InputWarning) of what is left out or has no caption; `Dataset.problems` has all of it.
    Raises InputError when nothing is left, saying what was looked for and what was found.
    """
    path = Path(source).expanduser()
    if not path.exists() and "{" not in str(source):
        raise InputError(f"there is no file or folder {path} to read a dataset from")
    found = _files(path)
    layout, (items, problems) = _read(path, found)
    if not items:
        raise InputError(_nothing(path, found, problems))
    if problems:
        warnings.warn(
            f"{path}: {len(items)} pictures and videos can be used; {len(problems)} times something is missing or "
            f"left out: {_some([f'{name} {reason}' for name, reason in problems], '; ')}",
            InputWarning,
            stacklevel=2,
        )
    return Dataset(str(source), layout, tuple(sorted(items, key=lambda item: item.name)), tuple(problems))


def _read(path: Path, found: Sequence[DatasetFile]) -> tuple[str, LayoutContents]:
    """What the layout is called, and what was read from it."""
    root = path if path.is_dir() else path.parent
    lists = [[each.place.path for each in found if each.place.path.name == name] for name in METADATA]
    if path.is_file() and path.suffix.lower() in (".jsonl", ".csv"):  # under whatever name
        lists = [[path]]
    for metadata in filter(None, lists):
        return metadata[0].name, _joined([read_item_list(file, root) for file in metadata])
    tars = [each for each in found if each.name.lower().endswith(".tar")]
    if tars:
        opened = [list_tar_members(place.path, name) for name, place in tars]
        items, problems = pair_with_captions([each for inner, _ in opened for each in inner])
        return "webdataset shards", (items, [*problems, *(each for _, wrong in opened for each in wrong)])
    return "files with captions beside them", pair_with_captions(found)


def _files(path: Path) -> list[DatasetFile]:
    """All files of a folder and below, by name; the shards that a pattern names; or a file and its caption."""
    if path.is_dir():
        walked = (Path(folder) / file for folder, _, files in os.walk(path) for file in files)
        named = ((file.relative_to(path).as_posix(), file) for file in walked)
        return [DatasetFile(name, FileRange(file)) for name, file in sorted(named) if not is_hidden(name)]
    if not path.exists():
        return [DatasetFile(Path(name).as_posix(), FileRange(Path(name))) for name in expand_braces(str(path))]
    captions = [path.with_suffix(ending) for ending in CAPTION_SUFFIXES]
    return [DatasetFile(file.name, FileRange(file)) for file in (path, *captions) if file.is_file()]


def _joined(parts: Sequence[LayoutContents]) -> LayoutContents:
    return [item for items, _ in parts for item in items], [each for _, wrong in parts for each in wrong]


def _nothing(path: Path, found: Sequence[DatasetFile], problems: Sequence[Problem]) -> str:
    endings = Counter(Path(each.name).suffix.lower() or "no ending" for each in found)
    seen = _some([f"{count} of {ending}" for ending, count in sorted(endings.items())], ", ") or "no files"
    wrong = _some([f"{name} {reason}" for name, reason in problems], "; ")
    return (
        f"{path} holds nothing to train on. Looked for: {' or '.join(METADATA)} with a column file_name and a column "
        f"caption; .tar shards of webdataset; videos ({' '.join(sorted(VIDEO_SUFFIXES))}) or pictures "
        f"({' '.join(sorted(IMAGE_SUFFIXES))}) with captions of the same name in .txt or .json. Found: {seen}"
        + (f". Problems: {wrong}" if wrong else "")
    )


def _some(texts: Sequence[str], between: str) -> str:
    more = f"{between}and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return between.join(texts[:SHOWN]) + more
