"""What is measured of a clip before it is kept, each a number with a limit. Frames are uint8 [f h w 3]."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from kineograph.curation.clip_steps import CandidateClip, ClipStep, Rejection, opencv, select_key_frames
from kineograph.curation.settings import Cuts, Filters

Frames = UInt8[np.ndarray, "f h w 3"]

LOOKED_AT = 8  # frames of a clip
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SMALL = 64  # pixels of the longer side for movement: grain and compression average out, things do not
CHANGED = 10.0  # grey levels from which on a spot counts as changed


def mean_brightness(frames: Frames) -> float:
    """The mean grey of a clip, 0 to 255."""
    return float((select_key_frames(frames, LOOKED_AT).mean((0, 1, 2)) @ LUMA).item())


def motion_fraction(frames: Frames) -> float:
    """The share of the picture, 0 to 1, whose grey is not the same all through the clip."""
    greys = np.stack([_small(frame) for frame in select_key_frames(frames, LOOKED_AT)])
    return float((np.ptp(greys, axis=0) > CHANGED).mean())


def filter_steps(cuts: Cuts, filters: Filters) -> list[tuple[str, ClipStep]]:
    """The steps that drop clips: short, dark, still and text."""
    wanted = [
        ("short", cuts.shortest, _short),
        ("dark", filters.least_brightness, _dark),
        ("still", filters.least_movement, _still),
        ("text", filters.most_lettering, _text),
    ]
    return [(name, _sifter(name, limit, judge)) for name, limit, judge in wanted if limit is not None]


def _sifter(name: str, limit: float, judge: Callable[[CandidateClip, float], str | None]) -> ClipStep:
    def step(shot: CandidateClip) -> CandidateClip | Rejection:
        told = judge(shot, limit)
        return shot if told is None else Rejection(name, told)

    return step


def _short(shot: CandidateClip, least: float) -> str | None:
    seconds = len(shot.frames) / shot.fps
    return f"lasts {seconds:.2f} s, less than {least:g}" if shot.kind == "filmed" and seconds < least - 1e-6 else None


def _dark(shot: CandidateClip, least: float) -> str | None:
    grey = mean_brightness(shot.frames)
    return f"its mean grey is {grey:.1f} of 255, less than {least:g}" if grey < least else None


def _still(shot: CandidateClip, least: float) -> str | None:
    share = motion_fraction(shot.frames)
    if shot.kind == "frozen" or share >= least:
        return None
    return f"{100 * share:.2f} % of the picture changes, less than {100 * least:g}"


def _text(shot: CandidateClip, most: float) -> str | None:
    share = text_fraction(shot.frames)
    return f"letters cover {100 * share:.1f} % of the picture, more than {100 * most:g}" if share > most else None


def _small(frame: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h2 w2"]:
    scale = min(1.0, SMALL / max(frame.shape[:2]))
    size = [max(1, round(side * scale)) for side in frame.shape[:2]]
    cv2 = opencv()
    return cv2.resize(np.float32(frame @ LUMA), size[::-1], interpolation=cv2.INTER_AREA)


FRAMES_READ = 3  # frames of a clip; what most of them show counts
TEXT_SIDE = 512  # pixels of the longer side that frames are brought to, so that letters have the sizes named here
LEAST, MOST = 6, 96  # heights of a letter
AROUND, CONTRAST = 31, 14  # the window that a pixel's grey is compared with, and by how many levels it differs
MOSTLY = 0.5  # of the ink in a line is its letters; elsewhere more of it lies between
INK = 30.0  # grey levels between two letters of a line
IN_A_ROW = 4  # letters that make a line
EVEN = 0.5  # how far the width of a letter's strokes may vary, as spread over mean
BLOBS = 4000  # in a frame: more is grass

Grey = UInt8[np.ndarray, "h w"]


class Letter(NamedTuple):
    """A blob that could be a letter: where it is and how thick its strokes are, in pixels, and how grey it is."""

    left: int
    top: int
    width: int
    height: int
    area: int
    stroke: float
    grey: float


def text_fraction(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """The share of the picture, 0 to 1, that lines of letters cover: the median of a few frames."""
    return float(np.median([text_mask(frame).mean() for frame in select_key_frames(frames, FRAMES_READ)]))


def text_mask(frame: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h2 w2"]:
    """Where lines of letters are, in a frame that is brought to a longer side of 512."""
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    scale = TEXT_SIDE / max(grey.shape)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    covered = np.zeros(grey.shape, bool)
    for light in (grey, 255 - grey):
        ink = _ink(light)
        for row in _rows(_letters(light, ink)):
            box = _box(row)
            if sum(letter.area for letter in row) >= MOSTLY * ink[box].sum():
                covered[box] = True
    return covered


def _ink(grey: Grey) -> UInt8[np.ndarray, "h w"]:
    """1 where it is lighter than around."""
    around = opencv().blur(grey, (AROUND, AROUND)).astype(np.int16)
    return (grey.astype(np.int16) - around > CONTRAST).astype(np.uint8)


def _box(row: list[Letter]) -> tuple[slice, slice]:
    """The part of the picture that a line of letters takes."""
    bottom, right = max(each.top + each.height for each in row), max(each.left + each.width for each in row)
    return slice(min(each.top for each in row), bottom), slice(row[0].left, right)


def _letters(grey: Grey, ink: UInt8[np.ndarray, "h w"]) -> list[Letter]:
    """Blobs of ink that could be letters."""
    cv2 = opencv()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    if count > BLOBS:
        return []
    width, height, area = stats[1:, 2:].T
    filled = area / (width * height)
    fit = (height >= LEAST) & (height <= MOST) & (width <= 1.6 * height) & (filled > 0.15) & (filled < 0.9)
    depth = cv2.distanceTransform(ink, cv2.DIST_L2, 3)
    drawn = (_drawn(labels, depth, grey, stats[number], int(number)) for number in np.flatnonzero(fit) + 1)
    return [letter for letter in drawn if letter is not None]


def _drawn(
    labels: Int32[np.ndarray, "h w"], depth: Float32[np.ndarray, "h w"], grey: Grey, stat: np.ndarray, number: int
) -> Letter | None:
    """The blob, if it is made of strokes of one width: then its middle line lies equally deep everywhere."""
    left, top, width, height = map(int, stat[:4])
    window = np.s_[top : top + height, left : left + width]
    inside = labels[window] == number
    deep = np.where(inside, depth[window], np.float32(0))
    ridge = deep[(deep > 0) & (deep >= opencv().dilate(deep, np.ones((3, 3), np.uint8)))]
    stroke = 2 * float(ridge.mean())
    if ridge.std() > EVEN * ridge.mean() or stroke > 0.45 * height:
        return None
    return Letter(left, top, width, height, int(stat[4]), stroke, float(np.median(grey[window][inside])))


def _rows(letters: list[Letter]) -> list[list[Letter]]:
    """Letters of like height, side by side."""
    rows: list[list[Letter]] = []
    for letter in sorted(letters):
        row = next((row for row in reversed(rows) if _follows(row[-1], letter)), None)
        if row is None:
            rows.append([letter])
        else:
            row.append(letter)
    return [row for row in rows if len(row) >= IN_A_ROW]


def _follows(one: Letter, other: Letter) -> bool:
    """Whether two letters could stand beside one another in a word: of one size, one pen and one ink."""
    tall, low = max(one.height, other.height), min(one.height, other.height)
    gap = other.left - one.left - one.width
    feet, heads = abs(one.top + one.height - other.top - other.height), abs(one.top - other.top)
    alike = tall <= 1.9 * low and max(one.stroke, other.stroke) <= 1.6 * min(one.stroke, other.stroke)
    return alike and -0.2 * tall < gap < tall and min(feet, heads) <= 0.15 * tall and abs(one.grey - other.grey) < INK


FINGERPRINT_SIDE = 12  # differences a side
HASH_BITS = 2 * FINGERPRINT_SIDE * FINGERPRINT_SIDE
FAINT = 0.02  # of the contrast: what differs less is even, however it was compressed


class HashedClip(NamedTuple):
    """A clip's fingerprint, as a number of 288 bits.

    rank: of clips that are one, the least stays. group: clips of different groups are never compared.
    """

    rank: int
    name: str
    group: str
    bits: int


def perceptual_hash(frames: UInt8[np.ndarray, "f h w 3"]) -> int:
    """288 bits that hardly change when a clip is scaled, compressed again or made lighter."""
    cv2 = opencv()
    grey = select_key_frames(frames, LOOKED_AT).mean((0, 3)).astype(np.float32)
    small = cv2.resize(grey, (FINGERPRINT_SIDE + 1, FINGERPRINT_SIDE + 1), interpolation=cv2.INTER_AREA)
    faint = FAINT * max(1.0, float(np.ptp(small)))
    right, down = (
        np.diff(small, axis=1)[:FINGERPRINT_SIDE] > faint,
        np.diff(small, axis=0)[:, :FINGERPRINT_SIDE] > faint,
    )
    return int.from_bytes(np.packbits(np.concatenate([right.ravel(), down.ravel()])).tobytes(), "big")


def find_duplicates(prints: Iterable[HashedClip], bits: int) -> dict[str, str]:
    """Clips that differ in at most so many bits from one that is kept, which is the first by rank and name, and
    that one.

    Two such share one of `bits + 1` parts of the fingerprint, so only those that do are compared.
    """
    kept: dict[tuple[str, int, int], list[HashedClip]] = defaultdict(list)
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
    edges = np.linspace(0, HASH_BITS, count + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield (bits >> low) & ((1 << (high - low)) - 1)
