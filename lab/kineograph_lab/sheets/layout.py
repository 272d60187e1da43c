"""Layout of contact sheets: numbered images, or rows of numbered videos' frames, with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, COLUMNS = 128, 8  # pixels of an image, images in a row
GAP = MARGIN = 16  # pixels between images, around the sheet: JPEG's blocks of 16 are of one image each
MAX_HEIGHT = 2000  # pixels of a sheet
FONT_SIZE, LINE = 11, 16  # pixels
CAPTION_LINES = 5  # of an image
WIDTH = 2 * MARGIN + COLUMNS * (SIDE + GAP) - GAP
BACKGROUND, INK = "white", "black"


class SheetRow(NamedTuple):
    """A numbered image or video on a sheet.

    frames  uint8 [f h w 3]: eight in a row; one is an image
    above   uint8 [8 h w 3], the input's frames at the same times, drawn at half size above them; or none
    first   uint8 [h w 3], the input image, drawn left of the frames; or None
    """

    number: int
    text: str
    frames: np.ndarray
    above: Sequence[np.ndarray] | np.ndarray = ()
    first: np.ndarray | None = None


def draw_sheets(rows: Sequence[SheetRow]) -> list[Image.Image]:
    """Return the sheets of images, or of videos, with about as many on each."""
    if all(len(row.frames) == 1 for row in rows):
        blocks = [_draw_images(rows[k : k + COLUMNS]) for k in range(0, len(rows), COLUMNS)]
    else:
        blocks = [_draw_video(row) for row in rows]
    room = max(1, MAX_HEIGHT // max(block.height for block in blocks))
    per_sheet = ceil(len(blocks) / ceil(len(blocks) / room))
    return [_stack(blocks[k : k + per_sheet]) for k in range(0, len(blocks), per_sheet)]


def _stack(blocks: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(each.width for each in blocks), sum(each.height for each in blocks)), BACKGROUND)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _draw_images(rows: Sequence[SheetRow]) -> Image.Image:
    """Return a row of images with number and prompt below each."""
    block = Image.new("RGB", (WIDTH, MARGIN + SIDE + CAPTION_LINES * LINE), BACKGROUND)
    draw = ImageDraw.Draw(block)
    for column, row in enumerate(rows):
        left = MARGIN + column * (SIDE + GAP)
        block.paste(_fit(row.frames[0]), (left, MARGIN))
        for line, text in enumerate(wrap_text(f"{row.number}. {row.text}", SIDE, CAPTION_LINES)):
            draw.text((left, MARGIN + SIDE + 1 + line * LINE), text, INK, _font())
    return block


def _draw_video(row: SheetRow) -> Image.Image:
    """Return a video's number and prompt, its input's frames at half size, and its frames below them."""
    left = MARGIN + (0 if row.first is None else SIDE + 2 * GAP)
    top, lines = LINE, ceil(len(row.frames) / COLUMNS)
    above = SIDE // 2 + GAP if len(row.above) else 0
    width = left + COLUMNS * (SIDE + GAP) - GAP + MARGIN
    block = Image.new("RGB", (width, top + above + lines * (SIDE + GAP)), BACKGROUND)
    text = wrap_text(f"{row.number}. {row.text}", width - 2 * MARGIN, 1)[0]
    ImageDraw.Draw(block).text((MARGIN, 2), text, INK, _font())
    for column, frame in enumerate(row.above):
        small = Image.fromarray(frame)
        small = small.resize((small.width * SIDE // (2 * small.height), SIDE // 2), Image.Resampling.LANCZOS)
        block.paste(small, (left + column * (SIDE + GAP), top))
    if row.first is not None:
        block.paste(_fit(row.first), (MARGIN, top + above))
    for k, frame in enumerate(row.frames):
        line, column = divmod(k, COLUMNS)
        block.paste(_fit(frame), (left + column * (SIDE + GAP), top + above + line * (SIDE + GAP)))
    return block


def _fit(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame)
    return image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def wrap_text(text: str, width: int, lines: int) -> list[str]:
    """Return at most so many lines of a text, each within a width in pixels; "..." ends a text that is longer."""
    wrapped = [""]
    for word in text.split(" "):
        longer = f"{wrapped[-1]} {word}" if wrapped[-1] else word
        if not wrapped[-1] or _font().getlength(longer) <= width:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and _font().getlength(f"{last}...") > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], f"{last}..."]


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
