"""Clips that are one and the same: found by fingerprints, over a whole run, in whatever order it was done.

A fingerprint says where the mean of a clip's key frames gets lighter to the right and downwards (difference hash).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from kineograph.data.pipeline.opencv import opencv
from kineograph.data.pipeline.steps import key_frames

LOOKED_AT = 8  # frames of a clip
SIDE = 12  # differences a side
BITS = 2 * SIDE * SIDE
FAINT = 0.02  # of the contrast: what differs less is even, however it was compressed


class Print(NamedTuple):
    """A clip's fingerprint, as a number of 288 bits.

    rank: of clips that are one, the least stays. group: clips of different groups are never compared.
    """

    rank: int
    name: str
    group: str
    bits: int


def fingerprint(frames: UInt8[np.ndarray, "f h w 3"]) -> int:
    """288 bits that hardly change when a clip is scaled, compressed again or made lighter."""
    cv2 = opencv()
    grey = key_frames(frames, LOOKED_AT).mean((0, 3)).astype(np.float32)
    small = cv2.resize(grey, (SIDE + 1, SIDE + 1), interpolation=cv2.INTER_AREA)
    faint = FAINT * max(1.0, float(np.ptp(small)))
    right, down = np.diff(small, axis=1)[:SIDE] > faint, np.diff(small, axis=0)[:, :SIDE] > faint
    return int.from_bytes(np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes(), "big")


def duplicates(prints: Iterable[Print], bits: int) -> dict[str, str]:
    """Clips that differ in at most so many bits from one that is kept, which is the first by rank and name, and
    that one.

    Two such share one of `bits + 1` parts of the fingerprint, so only those that do are compared.
    """
    kept: dict[tuple[str, int, int], list[Print]] = defaultdict(list)
    found: dict[str, str] = {}
    for one in sorted(prints):
        places = [(one.group, number, part) for number, part in enumerate(_parts(one.bits, bits + 1))]
        near = (other for place in places for other in kept[place] if (one.bits ^ other.bits).bit_count() <= bits)
        same = next(near, None)
        if same is not None:
            found[one.name] = same.name
            continue
        for place in places:
            kept[place].append(one)
    return found


def _parts(bits: int, count: int) -> Iterator[int]:
    edges = np.linspace(0, BITS, count + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield (bits >> low) & ((1 << (high - low)) - 1)
