"""What there is to work on: every picture and video of the sources, as units of work, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kineograph.curation.settings import CurationSettings, FootageSource, content_settings
from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.dataset_layouts import CAPTION_SUFFIXES, DatasetItem, MediaKind
from kineograph.media.files import slug
from kineograph.media.shards import FileRange, Problem, is_hidden, list_tar_members

WORD = re.compile(r"[A-Z]?[^\W_A-Z]+|[A-Z]+(?![a-z])")
MISSING = ("has no caption", "has an empty caption", "has a .json without")  # which is no problem here


class SourceFile(NamedTuple):
    """A file to be worked on as a whole, in plain values that travel between machines.

    key: of the file as it is now and of the settings; what is made of it bears this name. source: which one it is of.
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
    def place(self) -> FileRange:
        """Where its bytes lie."""
        return FileRange(Path(self.path), self.start, self.size)


class SourceListing(NamedTuple):
    """All units by source and name, and what is no unit and why."""

    units: list[SourceFile]
    problems: list[Problem]


def list_sources(settings: CurationSettings) -> SourceListing:
    """What the sources hold. No file is opened but lists, labels and tars.

    Raises InputError for a source with neither videos nor pictures, saying what was looked for and what was found.
    """
    known = json.dumps(content_settings(settings), sort_keys=True)
    units, problems = list[SourceFile](), list[Problem]()
    for number, source in enumerate(settings.sources):
        dataset = _opened(source)
        problems += [each for each in dataset.problems if not each.reason.startswith(MISSING)]
        problems += _unclaimed(source, dataset)
        for item in dataset:
            try:
                units.append(_unit(item, number, source, known))
            except OSError as error:
                problems.append(Problem(item.name, f"cannot be read ({error.strerror})"))
    return SourceListing(units, sorted(set(problems)))


def _opened(source: FootageSource) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # that labels are missing is none; the rest is counted
        try:
            return open_dataset(source.source)
        except InputError as error:
            raise InputError(f"there is nothing to make clips of: {error}") from error


def _unit(item: DatasetItem, number: int, source: FootageSource, known: str) -> SourceFile:
    path = item.place.path.absolute()
    status = path.stat()
    size = status.st_size if item.place.size is None else item.place.size
    label = _folder_label(item.name) if source.labels == "folder" else item.caption
    told = [source.source, item.name, item.place.start, size, status.st_mtime_ns, label, known]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
    return SourceFile(key, number, item.name, label, item.kind, str(path), item.place.start, size)


def clip_name_prefix(unit: SourceFile) -> str:
    """What its clips' names begin with: readable, without a dot, and of no other unit."""
    return f"{slug(str(PurePosixPath(unit.name).with_suffix('')))}_{unit.key[:12]}"


def _folder_label(name: str) -> str:
    """The name of a file's folder in words: "ApplyEyeMakeup" and "apply_eye_makeup" are "apply eye makeup"."""
    return " ".join(WORD.findall(PurePosixPath(name).parent.name)).lower()


def _unclaimed(source: FootageSource, dataset: Dataset) -> Iterator[Problem]:
    """Labels beside nothing: neither a video nor a picture has their name."""
    media = {_stem(item.name) for item in dataset}
    media |= {_stem(name) for name, reason in dataset.problems if "preview" in reason}
    names = _beside(Path(source.source).expanduser()) if dataset.layout.startswith("files") else _inside(dataset.items)
    for name in names:
        if PurePosixPath(name).suffix.lower() in CAPTION_SUFFIXES and _stem(name) not in media:
            yield Problem(name, "is a label without a video or picture of its name")


def _beside(folder: Path) -> Iterator[str]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return (name for name in names if not is_hidden(name))


def _inside(items: Sequence[DatasetItem]) -> Iterator[str]:
    """What else the tars hold that items come from."""
    tars = {}
    for item in items:
        if item.place.path.suffix.lower() == ".tar":
            tars[item.place.path] = item.name[: item.name.index(f"{item.place.path.name}/")] + item.place.path.name
    for path, name in tars.items():
        yield from (each.name for each in list_tar_members(path, name)[0])


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
