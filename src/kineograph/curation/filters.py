"""Filters by length, brightness, motion and text, and duplicates by perceptual hash. Frames are uint8 [f h w 3]."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from kineograph.curation.clip_steps import (
    CandidateClip,
    ClipStep,
    Rejection,
    select_key_frames,
    single_threaded_opencv,
)
from kineograph.curation.settings import Cuts, Filters
from kineograph.curation.text_detection import text_fraction

Frames = UInt8[np.ndarray, "f h w 3"]

NUM_KEY_FRAMES = 8  # frames of a clip that are compared
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
MOTION_SIDE = 64  # pixels of the longer side for motion: grain and compression average out, objects do not
MOTION_THRESHOLD = 10.0  # grey levels from which on a pixel counts as changed

HASH_SIDE = 12  # differences per side
HASH_BITS = 2 * HASH_SIDE * HASH_SIDE
HASH_TOLERANCE = 0.02  # of the contrast: smaller differences count as none, however the clip was compressed


def filter_steps(cuts: Cuts, filters: Filters) -> list[tuple[str, ClipStep]]:
    """Return the steps that drop clips, by their names: short, dark, still and text."""
    checks: list[tuple[str, float | None, Callable[[CandidateClip, float], str | None]]] = [
        ("short", cuts.shortest, _check_length),
        ("dark", filters.least_brightness, _check_brightness),
        ("still", filters.least_movement, _check_motion),
        ("text", filters.most_lettering, _check_text),
    ]
    return [(name, _filter_step(name, limit, check)) for name, limit, check in checks if limit is not None]


def _filter_step(name: str, limit: float, check: Callable[[CandidateClip, float], str | None]) -> ClipStep:
    def step(clip: CandidateClip) -> CandidateClip | Rejection:
        defect = check(clip, limit)
        return clip if defect is None else Rejection(name, defect)

    return step


def _check_length(clip: CandidateClip, least: float) -> str | None:
    seconds = len(clip.frames) / clip.fps
    return f"lasts {seconds:.2f} s, less than {least:g}" if clip.kind == "filmed" and seconds < least - 1e-6 else None


def _check_brightness(clip: CandidateClip, least: float) -> str | None:
    grey = mean_brightness(clip.frames)
    return f"its mean grey is {grey:.1f} of 255, less than {least:g}" if grey < least else None


def _check_motion(clip: CandidateClip, least: float) -> str | None:
    share = motion_fraction(clip.frames)
    if clip.kind == "frozen" or share >= least:
        return None
    return f"{100 * share:.2f} % of the pixels change, less than {100 * least:g}"


def _check_text(clip: CandidateClip, most: float) -> str | None:
    share = text_fraction(clip.frames)
    return f"text covers {100 * share:.1f} % of the frame, more than {100 * most:g}" if share > most else None


def mean_brightness(frames: Frames) -> float:
    """Return the mean grey of a clip, 0 to 255."""
    return float((select_key_frames(frames, NUM_KEY_FRAMES).mean((0, 1, 2)) @ LUMA).item())


def motion_fraction(frames: Frames) -> float:
    """Return the share of the pixels, 0 to 1, whose grey changes within a clip."""
    greys = np.stack([_small_grey(frame) for frame in select_key_frames(frames, NUM_KEY_FRAMES)])
    return float((np.ptp(greys, axis=0) > MOTION_THRESHOLD).mean())


def _small_grey(frame: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2"]:
    scale = min(1.0, MOTION_SIDE / max(frame.shape[:2]))
    size = [max(1, round(side * scale)) for side in frame.shape[:2]]
    cv2 = single_threaded_opencv()
    return cv2.resize(np.float32(frame @ LUMA), size[::-1], interpolation=cv2.INTER_AREA)


class HashedClip(NamedTuple):
    """A clip with its perceptual hash, a number of 288 bits.

    rank: of duplicates, the clip of the least rank stays. group: clips of different groups are never compared.
    """

    rank: int
    name: str
    group: str
    bits: int


def perceptual_hash(frames: Frames) -> int:
    """Return a difference hash of 288 bits, nearly invariant to scaling, compression and brightness."""
    cv2 = single_threaded_opencv()
    grey = select_key_frames(frames, NUM_KEY_FRAMES).mean((0, 3)).astype(np.float32)
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE + 1), interpolation=cv2.INTER_AREA)
    tolerance = HASH_TOLERANCE * max(1.0, float(np.ptp(small)))
    right = np.diff(small, axis=1)[:HASH_SIDE] > tolerance
    down = np.diff(small, axis=0)[:, :HASH_SIDE] > tolerance
    return int.from_bytes(np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes(), "big")


def find_duplicates(clips: Iterable[HashedClip], max_bits: int) -> dict[str, str]:
    """Return the names of duplicates, each with the name of the clip that stays: the first by rank and name.

    Hashes that differ in at most `max_bits` bits are equal in one of `max_bits + 1` parts, so only clips that share a
    part are compared.
    """
    index: dict[tuple[str, int, int], list[HashedClip]] = defaultdict(list)
    duplicates: dict[str, str] = {}
    for clip in sorted(clips):
        keys = [(clip.group, number, part) for number, part in enumerate(_parts(clip.bits, max_bits + 1))]
        near = (each for key in keys for each in index[key] if (clip.bits ^ each.bits).bit_count() <= max_bits)
        original = next(near, None)
        if original is not None:
            duplicates[clip.name] = original.name
            continue
        for key in keys:
            index[key].append(clip)
    return duplicates


def _parts(bits: int, count: int) -> Iterator[int]:
    edges = np.linspace(0, HASH_BITS, count + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield (bits >> low) & ((1 << (high - low)) - 1)
