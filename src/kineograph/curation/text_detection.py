"""Detection of lines of text by the shape of their letters, without reading them.

A letter is a connected component with strokes of one width; a line is at least four letters of similar height, stroke
and grey, side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from kineograph.curation.clip_steps import select_key_frames, single_threaded_opencv

NUM_FRAMES = 3  # frames of a clip; their median counts
TEXT_SIDE = 512  # pixels of the longer side of the frames, for which the letter sizes below are meant
MIN_HEIGHT, MAX_HEIGHT = 6, 96  # of a letter, in pixels
WINDOW, CONTRAST = 31, 14  # window that a pixel's grey is compared with, and its least difference in grey levels
MIN_LETTER_SHARE = 0.5  # of the foreground within a line that its letters make up; patterns have more between
MAX_GREY_DIFFERENCE = 30.0  # between two letters of a line
MIN_LETTERS = 4  # in a line
MAX_STROKE_VARIATION = 0.5  # standard deviation of a letter's stroke width over its mean
MAX_COMPONENTS = 4000  # in a frame: more are texture, such as grass

Grey = UInt8[np.ndarray, "h w"]


class Letter(NamedTuple):
    """A connected component that may be a letter: bounding box, area and stroke width in pixels, and median grey."""

    left: int
    top: int
    width: int
    height: int
    area: int
    stroke: float
    grey: float


def text_fraction(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Return the share of the frame, 0 to 1, that lines of text cover: the median of a few frames."""
    return float(np.median([text_mask(frame).mean() for frame in select_key_frames(frames, NUM_FRAMES)]))


def text_mask(frame: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h2 w2"]:
    """Return the mask of lines of text, in a frame that is resized to a longer side of 512."""
    cv2 = single_threaded_opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    scale = TEXT_SIDE / max(grey.shape)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    mask = np.zeros(grey.shape, bool)
    for light in (grey, 255 - grey):
        foreground = _lighter_than_surroundings(light)
        for line in _group_lines(_find_letters(light, foreground)):
            box = _bounding_box(line)
            if sum(letter.area for letter in line) >= MIN_LETTER_SHARE * foreground[box].sum():
                mask[box] = True
    return mask


def _lighter_than_surroundings(grey: Grey) -> UInt8[np.ndarray, "h w"]:
    """Return 1 at pixels that are lighter than the mean of their window."""
    mean = single_threaded_opencv().blur(grey, (WINDOW, WINDOW)).astype(np.int16)
    return (grey.astype(np.int16) - mean > CONTRAST).astype(np.uint8)


def _bounding_box(line: list[Letter]) -> tuple[slice, slice]:
    bottom, right = max(each.top + each.height for each in line), max(each.left + each.width for each in line)
    return slice(min(each.top for each in line), bottom), slice(line[0].left, right)


def _find_letters(grey: Grey, foreground: UInt8[np.ndarray, "h w"]) -> list[Letter]:
    """Return the connected components of the foreground that may be letters."""
    cv2 = single_threaded_opencv()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
    if count > MAX_COMPONENTS:
        return []
    width, height, area = stats[1:, 2:].T
    filled = area / (width * height)
    fit = (height >= MIN_HEIGHT) & (height <= MAX_HEIGHT) & (width <= 1.6 * height) & (filled > 0.15) & (filled < 0.9)
    distance = cv2.distanceTransform(foreground, cv2.DIST_L2, 3)
    numbers = (int(number) for number in np.flatnonzero(fit) + 1)
    letters = (_measure_letter(labels, distance, grey, stats[number], number) for number in numbers)
    return [letter for letter in letters if letter is not None]


def _measure_letter(
    labels: Int32[np.ndarray, "h w"], distance: Float32[np.ndarray, "h w"], grey: Grey, stat: np.ndarray, number: int
) -> Letter | None:
    """Return a component as a letter if its strokes have one width: the ridge is equally far from the edge."""
    left, top, width, height = map(int, stat[:4])
    window = np.s_[top : top + height, left : left + width]
    inside = labels[window] == number
    depth = np.where(inside, distance[window], np.float32(0))
    ridge = depth[(depth > 0) & (depth >= single_threaded_opencv().dilate(depth, np.ones((3, 3), np.uint8)))]
    stroke = 2 * float(ridge.mean())
    if ridge.std() > MAX_STROKE_VARIATION * ridge.mean() or stroke > 0.45 * height:
        return None
    return Letter(left, top, width, height, int(stat[4]), stroke, float(np.median(grey[window][inside])))


def _group_lines(letters: list[Letter]) -> list[list[Letter]]:
    """Group letters that stand side by side into lines."""
    lines: list[list[Letter]] = []
    for letter in sorted(letters):
        line = next((line for line in reversed(lines) if _may_follow(line[-1], letter)), None)
        if line is None:
            lines.append([letter])
        else:
            line.append(letter)
    return [line for line in lines if len(line) >= MIN_LETTERS]


def _may_follow(one: Letter, other: Letter) -> bool:
    """Return True if two letters could be neighbours in a word: of similar size, stroke, grey and base line."""
    larger, smaller = max(one.height, other.height), min(one.height, other.height)
    gap = other.left - one.left - one.width
    bottoms, tops = abs(one.top + one.height - other.top - other.height), abs(one.top - other.top)
    similar = larger <= 1.9 * smaller and max(one.stroke, other.stroke) <= 1.6 * min(one.stroke, other.stroke)
    aligned = -0.2 * larger < gap < larger and min(bottoms, tops) <= 0.15 * larger
    return similar and aligned and abs(one.grey - other.grey) < MAX_GREY_DIFFERENCE
