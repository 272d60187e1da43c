"""Training data sets of images and videos with captions, read from several layouts."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kineograph.errors import InputError, InputWarning, expand_user, in_one_line, is_present, shown_path
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

METADATA_FILES = ("metadata.jsonl", "metadata.csv")  # the first kind that is found counts
MAX_LISTED = 5  # problems, or kinds of files, in a message


@dataclass(frozen=True)
class Dataset:
    """Images and videos with captions, sorted by name.

    Attributes:
        source: the path that was opened.
        layout: the layout that it was read as.
        problems: files that were left out or have no caption, with the reason.
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
        """Return the data set of the images only, or of the videos only; it may be empty."""
        return replace(self, items=tuple(item for item in self.items if item.kind == kind))


def open_dataset(source: str | Path) -> Dataset:
    """Open the data set in a folder, in a file, or in tar shards such as "shards-{000..003}.tar".

    In a folder and below, the first of these is read: metadata.jsonl or metadata.csv (Hugging Face's videofolder and
    imagefolder), webdataset's .tar shards, videos and images with caption files of the same name. Names that begin
    with a dot do not count. No video is opened.

    Warns once (InputWarning) about files that are left out or have no caption; `Dataset.problems` has all of them.
    Raises InputError when nothing is left, saying what was looked for and what was found.
    """
    path = expand_user(source)
    if not is_present(path) and "{" not in str(source):
        raise InputError(f"there is no file or folder {shown_path(path)} to read a dataset from")
    files = _list_files(path)
    layout, (items, problems) = _read_layout(path, files)
    if not items:
        raise InputError(_empty_message(path, files, problems))
    if problems:
        warnings.warn(
            f"{path}: {len(items)} images and videos can be used; {len(problems)} times something is missing or "
            f"left out: {_shorten([f'{name} {reason}' for name, reason in problems], '; ')}",
            InputWarning,
            stacklevel=2,
        )
    return Dataset(str(source), layout, tuple(sorted(items, key=lambda item: item.name)), tuple(problems))


def _read_layout(path: Path, files: Sequence[DatasetFile]) -> tuple[str, LayoutContents]:
    """Return the name of the layout, and its items and problems."""
    root = path if path.is_dir() else path.parent
    lists = [[each.file_range.path for each in files if each.file_range.path.name == name] for name in METADATA_FILES]
    if path.is_file() and path.suffix.lower() in (".jsonl", ".csv"):  # of any name
        lists = [[path]]
    for metadata in filter(None, lists):
        return metadata[0].name, _concatenate([read_item_list(file, root) for file in metadata])
    tars = [each for each in files if each.name.lower().endswith(".tar")]
    if tars:
        opened = [list_tar_members(file_range.path, name) for name, file_range in tars]
        items, problems = pair_with_captions([file for members, _ in opened for file in members])
        return "webdataset shards", (items, [*problems, *(each for _, found in opened for each in found)])
    return "files with captions beside them", pair_with_captions(files)


def _list_files(path: Path) -> list[DatasetFile]:
    """Return all files of a folder and below, by name; the shards of a pattern; or a file and its caption file."""
    if path.is_dir():
        paths = (Path(folder) / file for folder, _, files in os.walk(path) for file in files)
        named = ((file.relative_to(path).as_posix(), file) for file in paths)
        return [DatasetFile(name, FileRange(file)) for name, file in sorted(named) if not is_hidden(name)]
    if not is_present(path):
        return [DatasetFile(Path(name).as_posix(), FileRange(Path(name))) for name in expand_braces(str(path))]
    captions = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return [DatasetFile(file.name, FileRange(file)) for file in (path, *captions) if file.is_file()]


def _concatenate(contents: Sequence[LayoutContents]) -> LayoutContents:
    return [item for items, _ in contents for item in items], [each for _, problems in contents for each in problems]


def _empty_message(path: Path, files: Sequence[DatasetFile], problems: Sequence[Problem]) -> str:
    suffixes = Counter(Path(each.name).suffix.lower() or "no ending" for each in files)
    found = _shorten([f"{count} of {suffix}" for suffix, count in sorted(suffixes.items())], ", ") or "no files"
    listed = _shorten([f"{name} {reason}" for name, reason in problems], "; ")
    return (
        f"{path} holds nothing to train on. Looked for: {' or '.join(METADATA_FILES)} with a column file_name and a "
        f"column caption; .tar shards of webdataset; videos ({' '.join(sorted(VIDEO_SUFFIXES))}) or images "
        f"({' '.join(sorted(IMAGE_SUFFIXES))}) with captions of the same name in .txt or .json. Found: {found}"
        + (f". Problems: {listed}" if listed else "")
    )


def _shorten(texts: Sequence[str], separator: str) -> str:
    more = f"{separator}and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return separator.join(map(in_one_line, texts[:MAX_LISTED])) + more
