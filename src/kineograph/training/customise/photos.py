"""The few pictures that show a subject or a style: read, upright, and refused where they cannot teach anything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.errors import InputError
from kineograph.media.dataset_layouts import IMAGES
from kineograph.media.images import read_picture
from kineograph.media.shards import is_hidden
from kineograph.media.training_clips import STILL, Clip, fitted_at

Pixels = UInt8[np.ndarray, "h w 3"]
Images = str | Path | Sequence[str | Path | np.ndarray]

CAPTIONS = (".txt", ".caption")
# What cameras and phones write too: not passed over in silence, and read where Pillow can.
READ = IMAGES | {".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}


class Photo(NamedTuple):
    """A picture, and its caption where it has one. digest: SHA-256 of what is seen on it."""

    name: str
    pixels: Pixels
    caption: str | None
    digest: str


def load_photos(pictures: Images, *, least: int, side: int) -> list[Photo]:
    """Pictures from a folder, or from a list of files and of arrays, uint8 [h w 3]; in a folder by their names.

    A picture is turned as its EXIF says, and what is transparent becomes white. `dog.txt` beside `dog.jpg` is its
    caption.

    least: how many different ones there must be. side: their shorter side in pixels, at least.
    Raises InputError for too few of them, and for those that cannot be read or are too small, naming each.
    """
    given = list_image_files(pictures)
    read, problems = list[Photo](), list[str]()
    for number, each in enumerate(given, 1):
        try:
            read.append(_checked(load_photo(each, f"picture {number}"), side))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} of {len(given)} pictures cannot be used. {'; '.join(problems)}")
    different = len({each.digest for each in read})
    if different < least:
        raise InputError(
            f"{_found(pictures, different)}, and {least} at least are needed, better five to ten, that show the same "
            "from several sides and before several grounds"
        )
    return read


class Crop(NamedTuple):
    """What of a picture is seen: `share` of its sides; of what is cut off, so much is at the left, and at the top."""

    across: float = 0.5
    down: float = 0.5
    share: float = 1.0


def random_crops(photo: Photo, count: int, least: float, seed: int) -> Iterator[Crop]:
    """So many random cuts of a picture that show `least` of its sides or more; where that is one of all, the middle."""
    if count == 1 and least == 1:
        yield Crop()
        return
    for number in range(count):
        rng = np.random.default_rng((int(photo.digest[:15], 16), seed, number))
        across, down = rng.uniform(size=2)
        yield Crop(float(across), float(down), float(rng.uniform(least, 1)))


def crop_photo(picture: Photo, seen: Crop, side: int, size: tuple[int, int]) -> Clip:
    """A cut as a video of one frame of this height and width, in the mirror where `side` is -1."""
    frame = fitted_at(Image.fromarray(picture.pixels), *size, (seen.across, seen.down), share=seen.share)
    return Clip(np.ascontiguousarray(frame[None, :, ::side]), STILL, "")


def list_image_files(pictures: Images) -> list[str | Path | np.ndarray]:
    """The files of a folder that may be pictures, by their names; of a list, what is in it. Nothing is read yet.

    Raises InputError when there is no such folder.
    """
    if not isinstance(pictures, str | Path):
        return list(pictures)
    folder = Path(pictures).expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"there is no folder {pictures}: expected one with pictures, or a list of files")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file.name))
    return [file for file in files if file.suffix.lower() in READ]


def load_photo(given: str | Path | np.ndarray, name: str = "the picture") -> Photo:
    """One picture, of any size. name: what an array is called. Raises InputError when it cannot be read."""
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
            raise InputError(f"{name} is {given.dtype} {list(given.shape)}: expected uint8 [h w 3]")
        return Photo(name, given, None, _digest(given))
    pixels = read_picture(given).pixels
    return Photo(str(given), pixels, _caption(Path(given).expanduser()), _digest(pixels))


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _caption(picture: Path) -> str | None:
    for file in (picture.with_suffix(ending) for ending in CAPTIONS):
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8-sig").strip() or None
            except (OSError, ValueError) as error:
                raise InputError(f"{file}, the caption of {picture.name}, cannot be read ({error})") from error
    return None


def _checked(photo: Photo, side: int) -> Photo:
    height, width = photo.pixels.shape[:2]
    if min(height, width) < side:
        raise InputError(f"{photo.name} is {width} x {height} pixels, too small: expected {side} x {side} at least")
    if int(photo.pixels.min()) == int(photo.pixels.max()):
        raise InputError(f"{photo.name} is all one colour: there is nothing to be seen on it")
    return photo


def _found(pictures: Images, number: int) -> str:
    what = ("no picture", "one picture")[number] if number < 2 else f"{number} different pictures"
    if isinstance(pictures, str | Path):
        return f"{pictures} holds {what}"
    return f"there {'are' if number > 1 else 'is'} {what}"
