"""Metadata of generated videos: one line of JSON in a field that players ignore.

mp4, webm: the `comment` tag; gif: its comment; webp: EXIF ImageDescription; png: a text chunk `Comment`. Beside it, but
for webm, is XMP with IPTC's digital source type of generated media, which other programs show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from typing_extensions import TypedDict

from kineograph.errors import InputError, expand_user, is_present, parse_json, shown_path
from kineograph.media.files import json_sha256
from kineograph.options import Flag, option

IMAGE_DESCRIPTION = 0x010E
MAX_METADATA = 16 << 20  # characters of JSON
LEAST_FPS, MOST_FPS = 1e-6, 1e6
# files that Pillow reads, not FFmpeg
PILLOW_SUFFIXES = frozenset({".gif", ".webp", ".png", ".apng", ".jpg", ".jpeg", ".avif", ".bmp", ".tif", ".tiff"})

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


class VideoMetadata(NamedTuple):
    """Metadata in a video file: shape and frame rate, which containers round or pad, and the recorded settings."""

    frames: int
    height: int
    width: int
    fps: float
    settings: dict

    def to_json(self) -> str:
        """Return the metadata as ASCII JSON, which every container keeps intact."""
        return json.dumps({"made_with": f"kineograph {version('kineograph')}", **self._asdict()})


class SaveOptions(TypedDict, total=False):
    """Options of a video's file."""

    overwrite: Annotated[
        Flag,
        option(
            False,
            "Replace an existing file, which stays as it was until the new one is complete.",
            group="File",
            recorded=False,
        ),
    ]
    audio: Annotated[
        Literal["keep", "drop"],
        option(
            "keep",
            "Sound of the video that is edited or guides the result, cut or padded to its length, in .mp4 and .webm.",
            group="File",
            recorded=False,
        ),
    ]
    metadata: Annotated[
        Flag,
        option(
            True,
            "Record the settings in the file, and IPTC's mark of generated media.",
            group="File",
            flags=("--metadata/--no-metadata",),
            recorded=False,
        ),
    ]


class FileTags(NamedTuple):
    """Texts that a file carries beside its frames, none where they are empty.

    comment: metadata as JSON. xmp: XMP packet.
    """

    comment: str = ""
    xmp: str = ""


def tags_of_generated(metadata: VideoMetadata) -> FileTags:
    """Return the tags of a video: with the digital source type if its settings say how it was generated."""
    return FileTags(metadata.to_json(), XMP if metadata.settings else "")


def read_video_metadata(path: str | Path) -> VideoMetadata | None:
    """Return the metadata of a file or a folder of frames; None when it has none of ours."""
    path = existing_path(path)
    if path.is_dir():
        path = frame_files(path)[0]
    text = _image_comment(path) if path.suffix.lower() in PILLOW_SUFFIXES else _container_comment(path)
    if len(text) > MAX_METADATA:
        return None
    try:
        fields = parse_json(text, "the comment")
        metadata = VideoMetadata(**{name: fields[name] for name in VideoMetadata._fields})
    except (InputError, KeyError, TypeError):  # another program's comment
        return None
    return metadata if _is_valid(metadata) else None


def _is_valid(metadata: VideoMetadata) -> bool:
    whole = (metadata.frames, metadata.height, metadata.width)
    is_rate = type(metadata.fps) in (int, float) and LEAST_FPS <= metadata.fps <= MOST_FPS
    return all(type(each) is int and each > 0 for each in whole) and is_rate and isinstance(metadata.settings, dict)


def read_settings(path: str | Path) -> dict:
    """Return the settings that a file records, as `Video.settings` had them.

    Raises:
        InputError: there is no such file, it cannot be read, or it carries no settings.
    """
    metadata = read_video_metadata(path)
    if metadata is None or not metadata.settings:
        raise InputError(
            f"{path} carries no settings: Kineograph did not make it, or a program that passed it on dropped them"
        )
    return metadata.settings


def settings_id(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings, of twelve characters, by which results of equal settings are found again."""
    return json_sha256(settings)[:12]


def existing_path(path: str | Path) -> Path:
    """Return a path, its ~ expanded. Raises InputError when nothing is there."""
    path = expand_user(path)
    if not is_present(path):
        raise InputError(f"there is no file {shown_path(path)}")
    return path


def frame_files(folder: Path) -> list[Path]:
    """Return the frames of a folder, by their numbers. Raises InputError when there are none."""
    files = sorted(folder.glob("frame_*.png"), key=_natural_order)
    if not files:
        raise InputError(f"{folder} is a folder without frames: frame_0000.png and so on were expected")
    return files


def find_gap(files: Sequence[Path]) -> tuple[str, str] | None:
    """Return the names of the first two frames between which numbers are missing, by the smallest step of them all."""
    numbers = [int(found[-1]) for file in files if (found := re.findall(r"\d+", file.stem))]
    steps = [after - before for before, after in pairwise(numbers)]
    if len(numbers) < len(files) or len({*steps}) < 2 or min(steps) < 1:  # equal steps are a frame rate
        return None
    place = next(place for place, step in enumerate(steps) if step > min(steps))
    return files[place].name, files[place + 1].name


def _natural_order(file: Path) -> tuple[list[int], str]:
    """Return the key that sorts frame_2.png before frame_10.png."""
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def unreadable_file(path: Path, error: Exception) -> InputError:
    """Return the error for a file that is not what its name says."""
    return InputError(f"cannot read {path}: it is damaged, or not an image or video ({type(error).__name__})")


def _image_comment(path: Path) -> str:
    import PIL.Image  # here, as help texts read the declarations above

    from kineograph.media.frames import IMAGE_ERRORS

    try:
        with PIL.Image.open(path) as image:
            text = image.info.get("Comment") or image.info.get("comment") or image.getexif().get(IMAGE_DESCRIPTION)
    except IMAGE_ERRORS as error:
        raise unreadable_file(path, error) from error
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    return text if isinstance(text, str) else ""  # EXIF may hold a number


def _container_comment(path: Path) -> str:
    import av

    from kineograph.media.frames import READ_OPTIONS

    try:
        with av.open(str(path), metadata_errors="replace", options=READ_OPTIONS) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}  # Matroska writes COMMENT
            return tags.get("comment", "")
    except av.FFmpegError as error:
        raise unreadable_file(path, error) from error
