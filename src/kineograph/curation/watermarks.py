"""Watermarks that all videos of a source share: looked for once, before any is cut, and kept beside the clips."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

from kineograph.curation.clip_steps import CandidateClip, ClipStep, Rejection, opencv
from kineograph.curation.decoding import Frame, open_decodable, sample_frames
from kineograph.curation.records import WORK, write_text
from kineograph.curation.settings import CurationSettings, Watermarks
from kineograph.curation.sources import SourceFile
from kineograph.media.files import replace_atomically
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import open_range


def find_source_watermarks(units: Sequence[SourceFile], settings: CurationSettings) -> None:
    """Looks for a watermark in every source, once: a run that goes on, with more files even, takes what was found."""
    if settings.watermarks.then == "keep" or settings.watermarks.across == "file":
        return
    for number in range(len(settings.sources)):
        path = _path(settings, number)
        films = [unit for unit in units if unit.source == number and unit.kind == "video"]
        if not path.with_suffix(".txt").exists():
            mark = detect_watermark(_one_of_each(films, settings), settings.watermarks)
            if mark is not None:
                _write(path, mark)
            write_text(path.with_suffix(".txt"), f"looked for in {len(films)} files\n")


def read_source_watermark(settings: CurationSettings, unit: SourceFile) -> Mark | None:
    """The watermark that was found in a file's source, if any."""
    path = _path(settings, unit.source)
    if not path.exists():
        return None
    with Image.open(path) as mask:
        return Mark(np.asarray(mask.convert("L")) > 0)


def _one_of_each(films: Sequence[SourceFile], settings: CurationSettings) -> list[Frame]:
    """A frame of each of some files from all over the source; those that are broken are passed over."""
    chosen = np.linspace(0, len(films) - 1, min(len(films), settings.watermarks.samples)).astype(int)
    return [frame for number in chosen for frame in _middle(films[number], settings)]


def _middle(unit: SourceFile, settings: CurationSettings) -> list[Frame]:
    try:
        with open_range(unit.place) as part:
            seen = sample_frames(open_decodable(part, fps=settings.fps, shorter_side=settings.shorter_side), 3)
    except (BrokenFile, OSError):
        return []
    return seen[len(seen) // 2 :][:1]


def _path(settings: CurationSettings, source: int) -> Path:
    known = hashlib.sha256(settings.sources[source].source.encode()).hexdigest()[:12]
    return settings.output / WORK / "marks" / f"{known}.png"


def _write(path: Path, mark: Mark) -> None:
    with replace_atomically(path) as part:
        Image.fromarray(mark.mask).save(part, "PNG")


LEAST = 6  # pictures, from which on a median means something
CHANGES = 12.0  # grey levels: the spread over the pictures in most places, below which it is one scene all along
SURE = 2.0  # times what chance makes of a shared edge
SPECK = 9  # pixels: less is no part of a mark
LITTLE = 0.001  # of the picture: less is no mark
BAR = 0.6  # of a row or column: where more of it is an edge, a black bar ends
GROWN = 5  # pixels, an odd number: edges are closed to a shape and grown to cover its rim
RADIUS = 3.0  # of inpainting, in pixels

Mask = Bool[np.ndarray, "h w"]


class Mark(NamedTuple):
    """Where a watermark is."""

    mask: Mask


def detect_watermark(pictures: Sequence[Frame], settings: Watermarks) -> Mark | None:
    """What pictures of different scenes have in common, if that is little enough to be a watermark.

    Of pictures in several sizes the most frequent size counts. None too where there is no telling: fewer than 6
    pictures, or pictures of a scene that hardly changes.
    """
    sizes = Counter(picture.shape for picture in pictures)
    size = max(sizes, key=lambda size: (sizes[size], size)) if sizes else None
    greys = [_grey(picture) for picture in pictures if picture.shape == size]
    if len(greys) < LEAST or np.median(np.std(greys, axis=0)) < CHANGES:
        return None
    mask = _shape(_common_edges(greys, settings.edge))
    return Mark(mask) if LITTLE < mask.mean() <= settings.most else None


def watermark_step(mark: Mark | None, settings: Watermarks) -> ClipStep:
    """The step that paints a watermark over with what is around it (Telea 2004), or drops the clip, or lets it be."""

    def step(shot: CandidateClip) -> CandidateClip | Rejection:
        mask = None if mark is None else resize_mask(mark.mask, *shot.frames.shape[1:3])
        if mask is None or settings.then == "keep":
            return shot
        if settings.then == "drop":
            return Rejection("watermark", f"a mark covers {100 * mask.mean():.1f} % of the picture")
        return shot._replace(frames=np.stack([inpaint(frame, mask) for frame in shot.frames]))

    return step


def inpaint(frame: Frame, mask: Mask) -> Frame:
    """A frame whose masked part is filled from its rim."""
    return opencv().inpaint(np.ascontiguousarray(frame), mask.astype(np.uint8), RADIUS, opencv().INPAINT_TELEA)


def resize_mask(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "h2 w2"] | None:
    """A mask for frames of this size; None where they are of another shape."""
    tall, wide = mask.shape
    if abs(np.log(height * wide / (width * tall))) > 0.02:
        return None
    cv2 = opencv()
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _common_edges(greys: Sequence[Float32[np.ndarray, "h w"]], least: float) -> Mask:
    """Where half of the pictures or more have a gradient in common: strong, and beyond what chance makes of it.

    The median of n independent values strays by 1.25 times their spread over the root of n. Rows and columns that
    have one nearly all along are the rims of black bars.
    """
    slopes = np.array([np.gradient(grey) for grey in greys], np.float32)  # n (down, across) h w
    shared = np.hypot(*np.median(slopes, axis=0))
    chance = 1.25 * np.hypot(*slopes.std(axis=0)) / np.sqrt(len(greys))
    strong = shared > least
    bars = (strong.mean(1, keepdims=True) > BAR) | (strong.mean(0, keepdims=True) > BAR)
    return strong & (shared > SURE * chance) & ~bars


def _shape(edges: Mask) -> Mask:
    """Edges closed to shapes and grown; without specks."""
    cv2 = opencv()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges.astype(np.uint8), connectivity=8)
    kept = (stats[:, cv2.CC_STAT_AREA] >= SPECK) & (np.arange(count) > 0)
    brush = np.ones((GROWN, GROWN), np.uint8)
    whole = cv2.morphologyEx(kept[labels].astype(np.uint8), cv2.MORPH_CLOSE, brush)
    return cv2.dilate(whole, brush[:3, :3]).astype(bool)


def _grey(picture: Frame) -> Float32[np.ndarray, "h w"]:
    cv2 = opencv()
    return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32)
