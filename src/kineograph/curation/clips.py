"""Clips of one source file: decoded, cut, filtered, cleaned and written, all or nothing."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from kineograph.curation.clip_steps import CandidateClip, ClipStep, Rejection, apply_steps
from kineograph.curation.decoding import frames_at_rate, open_decodable, sample_frames, split_shots
from kineograph.curation.filters import HASH_BITS, filter_steps, perceptual_hash
from kineograph.curation.records import (
    ClipRecord,
    DropRecord,
    FileRecord,
    add_to_tar,
    clips_path,
    load_record,
    record_path,
    write_record,
)
from kineograph.curation.settings import CurationSettings
from kineograph.curation.sources import SourceFile, clip_name_prefix
from kineograph.curation.watermarks import Mask, detect_watermark, read_source_watermark, watermark_step
from kineograph.media.codecs import write_mp4
from kineograph.media.files import replace_atomically
from kineograph.media.frames import DECODE_ERRORS, BrokenFile, decode_problem
from kineograph.media.images import decode_image, freeze_frame, largest_window, pan_and_zoom, random_windows
from kineograph.media.metadata import FileTags, VideoMetadata
from kineograph.media.shards import FileSlice, open_range

Candidates = Iterator[tuple[CandidateClip, Mask | None]]
"""Clips of a file that are not filtered yet, each with the mask of its watermark."""


def make_clips(task: str, settings: CurationSettings) -> str:
    """Make the clips of a source file, unless it is finished; return its key. A broken file is recorded as such.

    task: the source file as JSON.

    Raises InputError when a package is not installed, and OSError when the output cannot be written.
    """
    file = SourceFile(**json.loads(task))
    record = record_path(settings.output, file)
    if load_record(record) is None:
        write_record(record, _process_file(file, settings))
    return file.key


def _process_file(file: SourceFile, settings: CurationSettings) -> FileRecord:
    path, record = clips_path(settings.output, file), FileRecord([], [])
    try:
        with replace_atomically(path) as temporary, tarfile.open(temporary, "w") as tar:
            for clip, watermark in _candidates(file, settings):
                _process_clip(clip, clip_steps(settings, watermark), file, tar, record)
    except BrokenFile as error:  # the clips before the defect are dropped too: a file is used as a whole
        return FileRecord([], [DropRecord(0.0, "broken", str(error))])
    if not record.clips:
        path.unlink()
    return record


def clip_steps(settings: CurationSettings, watermark: Mask | None) -> list[tuple[str, ClipStep]]:
    """Return the steps that every clip passes, in this order."""
    return [
        *filter_steps(settings.cuts, settings.filters),
        ("watermark", watermark_step(watermark, settings.watermarks)),
    ]


def _process_clip(
    clip: CandidateClip, steps: list[tuple[str, ClipStep]], file: SourceFile, tar: tarfile.TarFile, record: FileRecord
) -> None:
    """Apply the steps to a clip; add it to the tar if it is accepted, and to the record in any case."""
    result = apply_steps(clip, steps)
    if isinstance(result, Rejection):
        record.dropped.append(DropRecord(round(clip.start, 3), *result))
        return
    name = f"{clip_name_prefix(file)}_{len(record.clips):04d}"
    count, height, width, _ = result.frames.shape
    digest = f"{perceptual_hash(result.frames):0{HASH_BITS // 4}x}"
    accepted = ClipRecord(name, clip.kind, round(clip.start, 3), count, clip.fps, height, width, digest)
    provenance = {"source": file.name, "start": accepted.start, "kind": accepted.kind}
    add_to_tar(tar, f"{name}.mp4", _encode_mp4(result, provenance, Path(str(tar.name)).with_name("clip.mp4")))
    record.clips.append(accepted)


def _encode_mp4(clip: CandidateClip, provenance: dict, path: Path) -> bytes:
    """Return a clip as mp4. path: of a temporary file."""
    count, height, width, _ = clip.frames.shape
    metadata = VideoMetadata(count, height, width, clip.fps, provenance)
    write_mp4(path, clip.frames, clip.fps, FileTags(metadata.to_json()))
    return path.read_bytes()


def _candidates(file: SourceFile, settings: CurationSettings) -> Candidates:
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_range(file.file_range))
        except OSError as error:
            raise BrokenFile(f"cannot be read ({error.strerror})") from error
        candidates = _clips_of_image if file.kind == "image" else _clips_of_video
        yield from candidates(file, opened, settings)


def _clips_of_video(file: SourceFile, opened: FileSlice, settings: CurationSettings) -> Candidates:
    video = open_decodable(opened, fps=settings.fps, shorter_side=settings.shorter_side)
    watermark = read_source_watermark(settings, file)
    if settings.watermarks.then != "keep" and settings.watermarks.across == "file":
        watermark = detect_watermark(sample_frames(video, settings.watermarks.samples), settings.watermarks)
    for start, frames in split_shots(frames_at_rate(video), video.fps, settings.cuts):
        yield CandidateClip(frames, video.fps, start / video.fps, "filmed"), watermark


def _clips_of_image(file: SourceFile, opened: FileSlice, settings: CurationSettings) -> Candidates:
    stills = settings.stills
    try:
        image = decode_image(opened)
    except DECODE_ERRORS as error:
        raise BrokenFile(f"cannot be decoded ({decode_problem(error)})") from error
    height, width = clip_size(image, stills.smallest, settings.shorter_side)
    aspect = width / height
    # Each file has random numbers of its own: the same in every run, whatever other files there are
    rng = np.random.default_rng([settings.seed, *hashlib.sha256(file.name.encode()).digest()[:16]])
    if "panned" in stills.motions:
        for _ in range(stills.versions):
            windows = random_windows(rng, image, aspect, stills.smallest)
            frames = pan_and_zoom(image, *windows, stills.num_frames, height, width)
            yield CandidateClip(frames, stills.fps, 0.0, "panned"), None
    if "frozen" in stills.motions:
        frames = freeze_frame(image, largest_window(image, aspect), stills.num_frames, height, width)
        yield CandidateClip(frames, stills.fps, 0.0, "frozen"), None


def clip_size(image: Image.Image, min_scale: float, shorter_side: int | None) -> tuple[int, int]:
    """Return height and width of clips of an image: even, of its aspect ratio, the smallest window not enlarged."""
    limit = min_scale * min(image.size)
    scale = min(limit, shorter_side or limit) / min(image.size)
    width, height = (max(2, 2 * int(side * scale / 2)) for side in image.size)
    return height, width
