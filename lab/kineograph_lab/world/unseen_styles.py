"""Five drawing styles that no model of the pocket world was shown: styles to customise to.

Each paints the parts of the scenery and of the thing before it, on a canvas of its own colour, and then changes the
picture as a whole. Nothing here is in `world.shots`: models and judges are trained without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kineograph_lab.world.painting import OVER, RGB, SIDE, mix
from kineograph_lab.world.shapes import Outline

Coloured = Sequence[tuple[Outline, RGB]]
Draw = Callable[[ImageDraw.ImageDraw, Coloured], None]
Finish = Callable[[Image.Image], Image.Image]

NIGHT, BLUE, LEAD, TINT, TITLE = (16, 10, 40), (30, 74, 150), (26, 22, 30), (255, 252, 244), (214, 232, 255)
WHOLE = SIDE * OVER
PANES = 22
LEVELS, BLOCKS = 6, 32  # colours a channel and squares a row of pixel art


class Style(NamedTuple):
    """How scenery and things are painted, the canvas's colour, and what becomes of the picture."""

    ground: RGB
    scenery: Draw
    thing: Draw
    finish: Finish


def drawn(style: Style, scenery: Coloured, thing: Coloured) -> np.ndarray:
    """The picture: uint8 [128, 128, 3]."""
    image = Image.new("RGB", (WHOLE, WHOLE), style.ground)
    draw = ImageDraw.Draw(image)
    style.scenery(draw, scenery)
    style.thing(draw, thing)
    return np.array(style.finish(image).reduce(OVER))


def painted(fill: Callable[[RGB], RGB], line: Callable[[RGB], RGB], width: float) -> Draw:
    """Each part filled and outlined, in colours that follow from its own; width of the line in pixels."""

    def draw(on: ImageDraw.ImageDraw, parts: Coloured) -> None:
        for outline, colour in parts:
            closed = np.concatenate([outline, outline[:2]]).ravel().tolist()
            on.polygon(outline.ravel().tolist(), fill=fill(colour))
            on.line(closed, fill=line(colour), width=max(1, round(width * OVER)), joint="curve")

    return draw


def vivid(colour: RGB) -> RGB:
    """The same hue, as bright and as saturated as it can be."""
    low, high = min(colour), max(colour)
    return mix(WHITE, _rgb((each - low) / max(1, high - low) * 255 for each in colour), min(1, (high - low) / 60))


def light(colour: RGB) -> float:
    return (0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]) / 255


WHITE: RGB = (255, 255, 255)


def _rgb(values: object) -> RGB:
    return tuple(int(each) for each in values)  # type: ignore[attr-defined, return-value]


def glowing(image: Image.Image) -> Image.Image:
    """Light spreads around what is bright."""
    sharp = np.asarray(image, np.float32)
    near, far = (np.asarray(image.filter(ImageFilter.GaussianBlur(r * OVER)), np.float32) for r in (1.5, 5))
    return _image(sharp + 0.8 * near + 0.9 * far - 1.7 * np.array(NIGHT))


def on_paper(image: Image.Image) -> Image.Image:
    """Wet paint: edges run, and lie darker in the grain of the paper."""
    wet = np.asarray(image.filter(ImageFilter.GaussianBlur(1.1 * OVER)), np.float32)
    return _image(255 - (255 - wet) * (0.55 + 0.9 * _grain(6)[..., None]))


def in_panes(image: Image.Image) -> Image.Image:
    """Panes of glass that differ in how much light they let through, in leads of their own."""
    lights, leads = _panes()
    return _image(np.where(leads[..., None], np.array(LEAD), np.asarray(image, np.float32) * lights[..., None]))


@lru_cache(maxsize=1)
def _panes() -> tuple[np.ndarray, np.ndarray]:
    """The light that comes through each pixel, and where leads are: as near to one pane's middle as to another's."""
    rng = np.random.default_rng(11)
    centres, lights = rng.uniform(0, WHOLE, (PANES, 2)), rng.uniform(0.8, 1.15, PANES)
    y, x = np.mgrid[:WHOLE, :WHOLE]
    far = np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1])
    own, other = np.argsort(far, axis=-1)[..., :2].transpose(2, 0, 1)
    beyond = far[y, x, other] ** 2 - far[y, x, own] ** 2
    apart = np.linalg.norm(centres[own] - centres[other], axis=-1)
    return lights[own], beyond / (2 * apart) < 0.55 * OVER


def in_blocks(image: Image.Image) -> Image.Image:
    """Few large squares of few colours."""
    small = np.asarray(image.resize((BLOCKS, BLOCKS), Image.Resampling.BOX), np.float32) / 255
    few = np.round(small * (LEVELS - 1)) / (LEVELS - 1) * 255
    return _image(few).resize((WHOLE, WHOLE), Image.Resampling.NEAREST)


def ruled(image: Image.Image) -> Image.Image:
    """The squares of drawing paper, faintly over all."""
    lines = np.asarray(image, np.float32).copy()
    step = 16 * OVER
    for k in range(0, WHOLE, step):
        lines[k : k + OVER] += 0.12 * (np.array(TITLE) - lines[k : k + OVER])
        lines[:, k : k + OVER] += 0.12 * (np.array(TITLE) - lines[:, k : k + OVER])
    return _image(lines)


def _grain(cells: int) -> np.ndarray:
    """Smooth noise, float32 [h w] in 0..1, always the same."""
    rough = (np.random.default_rng(5).uniform(0, 255, (cells, cells))).astype(np.uint8)
    return np.asarray(Image.fromarray(rough).resize((WHOLE, WHOLE), Image.Resampling.BICUBIC), np.float32) / 255


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def as_it_is(colour: RGB) -> RGB:
    return colour


STYLES: Mapping[str, Style] = {
    "neon": Style(
        NIGHT,
        painted(lambda c: mix(c, NIGHT, 0.93), lambda c: mix(vivid(c), NIGHT, 0.62), 1.0),
        painted(lambda c: mix(c, NIGHT, 0.8), vivid, 2.2),
        glowing,
    ),
    "blueprint": Style(
        BLUE,
        painted(lambda c: mix(BLUE, TITLE, 0.22 * light(c)), lambda c: mix(BLUE, TITLE, 0.3), 0.7),
        painted(lambda c: mix(BLUE, TITLE, 0.3 + 0.5 * light(c)), lambda c: WHITE, 1.8),
        ruled,
    ),
    "watercolour": Style(
        TINT,
        painted(lambda c: mix(c, TINT, 0.62), lambda c: mix(c, TINT, 0.5), 0.8),
        painted(lambda c: mix(c, TINT, 0.3), lambda c: mix(c, LEAD, 0.25), 1.6),
        on_paper,
    ),
    "stained glass": Style(
        LEAD,
        painted(lambda c: mix(vivid(c), c, 0.55), lambda c: LEAD, 1.4),
        painted(lambda c: mix(vivid(c), c, 0.3), lambda c: LEAD, 2.8),
        in_panes,
    ),
    "pixel": Style(LEAD, painted(as_it_is, as_it_is, 0.4), painted(vivid, lambda c: LEAD, 2.4), in_blocks),
}
