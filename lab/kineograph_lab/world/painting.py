"""Rasterisation of parts in one of five drawing styles, at three times the size and then averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw

from kineograph_lab.world.shapes import Outline, Part

SIDE = 128
SUPERSAMPLING = 3  # 9 samples a pixel
RGB = tuple[int, int, int]
INK: RGB = (38, 32, 44)
PAPER: RGB = (252, 250, 245)

COLOURS: dict[str, RGB] = {
    "red": (216, 38, 40), "orange": (246, 136, 28), "yellow": (250, 212, 36), "green": (52, 160, 66),
    "blue": (40, 94, 214), "purple": (132, 58, 184), "pink": (248, 130, 186), "brown": (128, 78, 44),
}  # fmt: skip
PAINTS: dict[str, RGB] = {
    "white": (250, 250, 250), "black": (30, 28, 34), "glass": (176, 222, 240), "tyre": (52, 50, 58), "metal": (176, 182, 192), "wood": (140, 100, 66),
    "leaf": (84, 156, 84), "clay": (188, 106, 74), "cream": (246, 234, 210), "orange": (246, 150, 50), "gold": (246, 200, 66), "pink": (244, 150, 180),
    "teal": (40, 150, 150), "navy": (40, 52, 110),
}  # fmt: skip


def mix_colours(a: RGB, b: RGB, share: float) -> RGB:
    """Return colour a mixed with this share of b."""
    return tuple(round((1 - share) * u + share * v) for u, v in zip(a, b, strict=True))  # type: ignore[return-value]


def subject_paints(colour: str, individual: int) -> dict[str, RGB]:
    """Return the paints of a subject of this colour; its lightness varies a little between individuals."""
    body = mix_colours(COLOURS[colour], (0, 0, 0) if individual % 2 else (255, 255, 255), 0.012 * (individual % 7))
    return PAINTS | {
        "body": body,
        "dark": mix_colours(body, (20, 10, 40), 0.3),
        "light": mix_colours(body, (255, 255, 255), 0.36),
    }


Painter = Callable[[ImageDraw.ImageDraw, list[tuple[Outline, RGB]]], None]


def _fill(draw: ImageDraw.ImageDraw, outline: Outline, colour: RGB | int) -> None:
    draw.polygon(outline.ravel().tolist(), fill=colour)


def _line(draw: ImageDraw.ImageDraw, outline: Outline, colour: RGB, width: float) -> None:
    closed = np.concatenate([outline, outline[:2]])
    draw.line(closed.ravel().tolist(), fill=colour, width=round(width * SUPERSAMPLING))


def paint_flat(draw: ImageDraw.ImageDraw, parts: list[tuple[Outline, RGB]]) -> None:
    """Fill each part."""
    for outline, colour in parts:
        _fill(draw, outline, colour)


def paint_cartoon(draw: ImageDraw.ImageDraw, parts: list[tuple[Outline, RGB]]) -> None:
    """Fill each part and outline it in ink."""
    for outline, colour in parts:
        _fill(draw, outline, colour)
        _line(draw, outline, INK, 1.4)


def paint_sketch(draw: ImageDraw.ImageDraw, parts: list[tuple[Outline, RGB]]) -> None:
    """Fill each part in a paler colour and outline it in a darker one."""
    for outline, colour in parts:
        _fill(draw, outline, mix_colours(colour, PAPER, 0.3))
        _line(draw, outline, mix_colours(colour, INK, 0.25), 1.1)


def paint_cutout(draw: ImageDraw.ImageDraw, parts: list[tuple[Outline, RGB]]) -> None:
    """Draw shadows, white rims, then filled parts."""
    for outline, _ in parts:
        _fill(draw, outline + np.array([2.2, 3.0]) * SUPERSAMPLING, (84, 82, 100))
    for outline, _ in parts:
        _line(draw, outline, PAPER, 4.6)
    paint_flat(draw, parts)


STYLE_PAINTERS: dict[str, Painter] = {
    "flat": paint_flat,
    "cartoon": paint_cartoon,
    "paper": paint_cutout,
    "sketch": paint_sketch,
    "clay": paint_flat,
}
# Ink lines or shadows in the scenery would hide the subject, so scenery is painted plainly.
BACKDROP_PAINTERS: dict[str, Painter] = STYLE_PAINTERS | {"cartoon": paint_flat, "paper": paint_flat}


def new_canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a supersampled image and its drawing context."""
    image = Image.new("RGB", (SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING))
    return image, ImageDraw.Draw(image)


def downsample_canvas(image: Image.Image) -> np.ndarray:
    """Return the canvas averaged down to uint8 [128, 128, 3]."""
    return np.array(image.reduce(SUPERSAMPLING))


def coverage(outlines: Iterable[Outline]) -> np.ndarray:
    """Return the coverage of the union of outlines in canvas units, float32 [128, 128] in 0..1."""
    image = Image.new("L", (SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        _fill(draw, outline, 255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255


def shade_as_clay(frame: np.ndarray, coverage_map: np.ndarray, x: float, y: float, size: float) -> np.ndarray:
    """Return the frame with a subject at (x, y) lit from the upper left; positions in units of the frame."""
    grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    across, down = (grid[None, :] - x) / size, (grid[:, None] - y) / size
    light = 1.0 - 0.3 * (0.45 * across + 0.75 * down)
    shine = np.exp(-(((across + 0.3) ** 2 + (down + 0.4) ** 2) / 0.05)) * 90
    lit = frame * light[..., None] + shine[..., None]
    return np.clip(frame + coverage_map[..., None] * (lit - frame), 0, 255)


def part_colours(parts: list[Part], paints: dict[str, RGB]) -> list[RGB]:
    """Return each part's colour."""
    return [paints[part.paint] if isinstance(part.paint, str) else part.paint for part in parts]
