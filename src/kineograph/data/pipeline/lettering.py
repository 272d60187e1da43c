"""How much of a clip is text, without reading it: letters stand in lines, are of one height and drawn by one pen.

Found are blobs darker or lighter than what is around them, with strokes of even width, and of these the rows of at
least four of like height. What this misses: handwriting that is joined, letters over a busy picture, single words
across the whole picture, small print that scaling down has blurred. What it may take for text: fences, windows in a
row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from kineograph.data.pipeline.opencv import opencv
from kineograph.data.pipeline.steps import key_frames

LOOKED_AT = 3  # frames of a clip; what most of them show counts
SIDE = 512  # pixels of the longer side that frames are brought to, so that letters have the sizes named here
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


def lettering(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """The share of the picture, 0 to 1, that lines of letters cover: the median of a few frames."""
    return float(np.median([lines_in(frame).mean() for frame in key_frames(frames, LOOKED_AT)]))


def lines_in(frame: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h2 w2"]:
    """Where lines of letters are, in a frame that is brought to a longer side of 512."""
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(grey.shape)
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
