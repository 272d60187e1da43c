"""Source files of a run: every video and image of the sources, and the problems found while listing them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kineograph.curation.settings import CurationSettings, FootageSource, content_settings
from kineograph.errors import InputError, InputWarning, expand_user
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.dataset_layouts import CAPTION_SUFFIXES, DatasetItem, MediaKind
from kineograph.media.files import slug
from kineograph.media.shards import FileRange, Problem, is_hidden, list_tar_members

WORD = re.compile(r"[A-Z]?[^\W_A-Z]+|[A-Z]+(?![a-z])")
CAPTION_PROBLEMS = ("has no caption", "has an empty caption", "has a .json without")  # not problems of curation


class SourceFile(NamedTuple):
    """A video or image to be processed as a whole, in plain values that travel between machines.

    key: hash of the file as it is now and of the settings, which names its results.
    source: index of the source it belongs to.
    start, size: its bytes within `path`.
    """

    key: str
    source: int
    name: str
    label: str
    kind: MediaKind
    path: str
    start: int
    size: int

    @property
    def file_range(self) -> FileRange:
        """The byte range of the file."""
        return FileRange(Path(self.path), self.start, self.size)


class SourceListing(NamedTuple):
    """All source files, by source and name, and what was left out with the reason."""

    files: list[SourceFile]
    problems: list[Problem]


def list_sources(settings: CurationSettings) -> SourceListing:
    """List the videos and images of the sources. No file is opened except lists, labels and tars.

    Raises InputError for a source with neither videos nor images, saying what was looked for and what was found.
    """
    content = json.dumps(content_settings(settings), sort_keys=True)
    files, problems = list[SourceFile](), list[Problem]()
    for number, source in enumerate(settings.sources):
        dataset = _open_source(source)
        problems += [each for each in dataset.problems if not each.reason.startswith(CAPTION_PROBLEMS)]
        problems += _lone_labels(source, dataset)
        for item in dataset:
            try:
                files.append(_source_file(item, number, source, content))
            except OSError as error:
                problems.append(Problem(item.name, f"cannot be read ({error.strerror})"))
    return SourceListing(files, sorted(set(problems)))


def _open_source(source: FootageSource) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # missing labels are allowed here; the rest is listed
        try:
            return open_dataset(source.source)
        except InputError as error:
            raise InputError(f"there is nothing to make clips of: {error}") from error


def _source_file(item: DatasetItem, number: int, source: FootageSource, content: str) -> SourceFile:
    path, start, size = item.file_range
    path = path.absolute()
    status = path.stat()
    size = status.st_size if size is None else size
    label = _folder_label(item.name) if source.labels == "folder" else item.caption
    identity = [source.source, item.name, start, size, status.st_mtime_ns, label, content]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    return SourceFile(key, number, item.name, label, item.kind, str(path), start, size)


def clip_name_prefix(file: SourceFile) -> str:
    """Return the beginning of the names of a file's clips: readable, without a dot, and unique to the file."""
    return f"{slug(str(PurePosixPath(file.name).with_suffix('')))}_{file.key[:12]}"


def _folder_label(name: str) -> str:
    """Return the name of a file's folder as words: "apply eye makeup" for ApplyEyeMakeup and apply_eye_makeup."""
    return " ".join(WORD.findall(PurePosixPath(name).parent.name)).lower()


def _lone_labels(source: FootageSource, dataset: Dataset) -> Iterator[Problem]:
    """Yield the labels without a video or image of their name."""
    media = {_stem(item.name) for item in dataset}
    media |= {_stem(name) for name, reason in dataset.problems if "preview" in reason}
    in_folder = dataset.layout.startswith("files")
    names = _files_below(expand_user(source.source)) if in_folder else _tar_members(dataset.items)
    for name in names:
        if PurePosixPath(name).suffix.lower() in CAPTION_SUFFIXES and _stem(name) not in media:
            yield Problem(name, "is a label without a video or image of its name")


def _files_below(folder: Path) -> Iterator[str]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return (name for name in names if not is_hidden(name))


def _tar_members(items: Sequence[DatasetItem]) -> Iterator[str]:
    """Yield the names of all files in the tars that items come from."""
    tars = {}
    for item in items:
        tar = item.file_range.path
        if tar.suffix.lower() == ".tar":
            tars[tar] = item.name[: item.name.index(f"{tar.name}/")] + tar.name
    for path, name in tars.items():
        yield from (each.name for each in list_tar_members(path, name)[0])


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
