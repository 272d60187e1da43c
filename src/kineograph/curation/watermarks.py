"""Detection and removal of watermarks: edges that images of different scenes share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

from kineograph.curation.clip_steps import CandidateClip, ClipStep, Rejection, single_threaded_opencv
from kineograph.curation.decoding import Frame, open_decodable, sample_frames
from kineograph.curation.records import WORK, write_text
from kineograph.curation.settings import CurationSettings, Watermarks
from kineograph.curation.sources import SourceFile
from kineograph.media.files import file_sha256, replace_atomically
from kineograph.media.frames import BrokenFile
from kineograph.media.shards import open_range

MIN_IMAGES = 6  # fewer have no meaningful median
MIN_VARIATION = 12.0  # grey levels: median standard deviation over the images, below which they show one scene
CHANCE_FACTOR = 2.0  # least ratio of a shared gradient to that expected by chance
MIN_COMPONENT = 9  # pixels: smaller components are noise
MIN_AREA = 0.001  # of the frame: smaller marks are none
BAR_SHARE = 0.6  # of a row or column: where more of it is an edge, a black bar ends
BRUSH = 5  # pixels, odd: edges are closed to a shape and dilated to cover its rim
INPAINT_RADIUS = 3.0  # pixels
MAX_ASPECT_DIFFERENCE = 0.02  # of the logarithm: frames of another aspect ratio do not fit a mask

Mask = Bool[np.ndarray, "h w"]


def find_source_watermarks(files: Sequence[SourceFile], settings: CurationSettings) -> None:
    """Find the watermark of every source, once: a resumed run, even with more files, uses what was found."""
    if settings.watermarks.then == "keep" or settings.watermarks.across == "file":
        return
    for number in range(len(settings.sources)):
        path = _mask_path(settings, number)
        videos = [file for file in files if file.source == number and file.kind == "video"]
        if not _is_found(path):
            mask = detect_watermark(_one_frame_each(videos, settings), settings.watermarks)
            path.unlink(missing_ok=True)
            if mask is not None:
                with replace_atomically(path) as temporary:
                    Image.fromarray(mask).save(temporary, "PNG")
            write_text(path.with_suffix(".txt"), f"looked for in {len(videos)} files: {_mask_digest(path)}\n")


def _is_found(path: Path) -> bool:
    """Return True if a source's watermark was looked for, and its mask, if there is one, is not damaged."""
    written = path.with_suffix(".txt")
    return written.exists() and written.read_bytes().endswith(f": {_mask_digest(path)}\n".encode())


def _mask_digest(path: Path) -> str:
    return file_sha256(path) if path.exists() else "none"


def read_source_watermark(settings: CurationSettings, file: SourceFile) -> Mask | None:
    """Return the mask of the watermark that was found in a file's source, if any."""
    path = _mask_path(settings, file.source)
    if not path.exists():
        return None
    with Image.open(path) as mask:
        return np.asarray(mask.convert("L")) > 0


def _one_frame_each(videos: Sequence[SourceFile], settings: CurationSettings) -> list[Frame]:
    """Return the middle frame of each of some videos from all over the source, without broken ones."""
    chosen = np.linspace(0, len(videos) - 1, min(len(videos), settings.watermarks.samples)).astype(int)
    return [frame for number in chosen for frame in _middle_frame(videos[number], settings)]


def _middle_frame(file: SourceFile, settings: CurationSettings) -> list[Frame]:
    try:
        with open_range(file.file_range) as opened:
            frames = sample_frames(open_decodable(opened, fps=settings.fps, shorter_side=settings.shorter_side), 3)
    except (BrokenFile, OSError):
        return []
    return frames[len(frames) // 2 :][:1]


def _mask_path(settings: CurationSettings, source: int) -> Path:
    digest = hashlib.sha256(settings.sources[source].source.encode()).hexdigest()[:12]
    return settings.output / WORK / "marks" / f"{digest}.png"


def detect_watermark(images: Sequence[Frame], settings: Watermarks) -> Mask | None:
    """Return the mask of what images of different scenes have in common, if it is small enough for a watermark.

    Of images in several sizes, those of the most frequent size count. None also where nothing can be concluded: fewer
    than 6 images, or images of a scene that hardly changes.
    """
    sizes = Counter(image.shape for image in images)
    size = max(sizes, key=lambda size: (sizes[size], size)) if sizes else None
    greys = [_grey(image) for image in images if image.shape == size]
    if len(greys) < MIN_IMAGES or np.median(np.std(greys, axis=0)) < MIN_VARIATION:
        return None
    mask = _close_shapes(_shared_edges(greys, settings.edge))
    return mask if MIN_AREA < mask.mean() <= settings.most else None


def watermark_step(watermark: Mask | None, settings: Watermarks) -> ClipStep:
    """Return the step that inpaints a watermark, or drops the clip, or keeps it as it is."""

    def step(clip: CandidateClip) -> CandidateClip | Rejection:
        mask = None if watermark is None else resize_mask(watermark, *clip.frames.shape[1:3])
        if mask is None or settings.then == "keep":
            return clip
        if settings.then == "drop":
            return Rejection("watermark", f"a watermark covers {100 * mask.mean():.1f} % of the frame")
        return clip._replace(frames=np.stack([inpaint(frame, mask) for frame in clip.frames]))

    return step


def inpaint(frame: Frame, mask: Mask) -> Frame:
    """Return a frame whose masked part is filled from its rim (Telea 2004)."""
    cv2 = single_threaded_opencv()
    return cv2.inpaint(np.ascontiguousarray(frame), mask.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)


def resize_mask(mask: Mask, height: int, width: int) -> Bool[np.ndarray, "h2 w2"] | None:
    """Resize a mask to the size of frames; None where they have another aspect ratio."""
    mask_height, mask_width = mask.shape
    if abs(np.log(height * mask_width / (width * mask_height))) > MAX_ASPECT_DIFFERENCE:
        return None
    cv2 = single_threaded_opencv()
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _shared_edges(greys: Sequence[Float32[np.ndarray, "h w"]], min_gradient: float) -> Mask:
    """Return the pixels at which half of the images or more share a gradient: strong, and beyond chance.

    The median of n independent values has a standard error of 1.25 times their standard deviation over the root of n.
    Rows and columns that are an edge nearly all along are the rims of black bars.
    """
    gradients = np.array([np.gradient(grey) for grey in greys], np.float32)  # n (down, across) h w
    shared = np.hypot(*np.median(gradients, axis=0))
    chance = 1.25 * np.hypot(*gradients.std(axis=0)) / np.sqrt(len(greys))
    strong = shared > min_gradient
    bars = (strong.mean(1, keepdims=True) > BAR_SHARE) | (strong.mean(0, keepdims=True) > BAR_SHARE)
    return strong & (shared > CHANCE_FACTOR * chance) & ~bars


def _close_shapes(edges: Mask) -> Mask:
    """Return edges closed to shapes and dilated, without small components."""
    cv2 = single_threaded_opencv()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(edges.astype(np.uint8), connectivity=8)
    large = (stats[:, cv2.CC_STAT_AREA] >= MIN_COMPONENT) & (np.arange(count) > 0)
    brush = np.ones((BRUSH, BRUSH), np.uint8)
    closed = cv2.morphologyEx(large[labels].astype(np.uint8), cv2.MORPH_CLOSE, brush)
    return cv2.dilate(closed, brush[:3, :3]).astype(bool)


def _grey(image: Frame) -> Float32[np.ndarray, "h w"]:
    cv2 = single_threaded_opencv()
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
