"""Images and clips of subjects and styles that are never trained on: what a model is customised to.

A shot gives position and motion, as in `world.py`; an unseen subject replaces its main subject, or an unseen style its
style. An unseen style paints the parts of the scenery and of the subject on a canvas of its own colour, then
post-processes the image. Nothing here is in `world.sample_shots`: models and judges are trained without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kineograph_lab.world import painting
from kineograph_lab.world.painting import RGB, SIDE, SUPERSAMPLING, mix_colours
from kineograph_lab.world.shapes import Outline, Part
from kineograph_lab.world.unseen_subjects import COMPOSED_SUBJECTS, UNSEEN_SUBJECTS
from kineograph_lab.world.world import ShotSpec, camera_shift, frame_times, placement, scenery_layers, subject_parts

ColouredOutlines = Sequence[tuple[Outline, RGB]]
ShapePainter = Callable[[ImageDraw.ImageDraw, ColouredOutlines], None]
PostProcess = Callable[[Image.Image], Image.Image]

NIGHT, BLUE, LEAD, TINT, TITLE = (16, 10, 40), (30, 74, 150), (26, 22, 30), (255, 252, 244), (214, 232, 255)
CANVAS_SIDE = SIDE * SUPERSAMPLING
NUM_PANES = 22
COLOUR_LEVELS, PIXELS_ACROSS = 6, 32  # colours a channel and squares a row of pixel art


class DrawingStyle(NamedTuple):
    """Canvas colour, painters of scenery and subject, and post-processing of a style."""

    ground: RGB
    scenery: ShapePainter
    subject: ShapePainter
    finish: PostProcess


def render_style(style: DrawingStyle, scenery: ColouredOutlines, subject: ColouredOutlines) -> np.ndarray:
    """Return the image, uint8 [128, 128, 3]."""
    image = Image.new("RGB", (CANVAS_SIDE, CANVAS_SIDE), style.ground)
    draw = ImageDraw.Draw(image)
    style.scenery(draw, scenery)
    style.subject(draw, subject)
    return np.array(style.finish(image).reduce(SUPERSAMPLING))


def fill_and_outline(fill: Callable[[RGB], RGB], line: Callable[[RGB], RGB], width: float) -> ShapePainter:
    """Return a painter that fills and outlines each part in colours derived from its own; line width in pixels."""

    def draw(on: ImageDraw.ImageDraw, parts: ColouredOutlines) -> None:
        for outline, colour in parts:
            closed = np.concatenate([outline, outline[:2]]).ravel().tolist()
            on.polygon(outline.ravel().tolist(), fill=fill(colour))
            on.line(closed, fill=line(colour), width=max(1, round(width * SUPERSAMPLING)), joint="curve")

    return draw


def saturate(colour: RGB) -> RGB:
    """Return the same hue with highest brightness and saturation."""
    low, high = min(colour), max(colour)
    return mix_colours(
        WHITE, _to_rgb((each - low) / max(1, high - low) * 255 for each in colour), min(1, (high - low) / 60)
    )


def luminance(colour: RGB) -> float:
    """Return the luminance of a colour, 0 to 1."""
    return (0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]) / 255


WHITE: RGB = (255, 255, 255)


def _to_rgb(values: object) -> RGB:
    return tuple(int(each) for each in values)  # type: ignore[attr-defined, return-value]


def add_glow(image: Image.Image) -> Image.Image:
    """Spread light around bright pixels."""
    image_values = np.asarray(image, np.float32)
    near, far = (np.asarray(image.filter(ImageFilter.GaussianBlur(r * SUPERSAMPLING)), np.float32) for r in (1.5, 5))
    return _to_image(image_values + 0.8 * near + 0.9 * far - 1.7 * np.array(NIGHT))


def add_paper_grain(image: Image.Image) -> Image.Image:
    """Blur edges and darken the paint by the grain of the paper."""
    wet = np.asarray(image.filter(ImageFilter.GaussianBlur(1.1 * SUPERSAMPLING)), np.float32)
    return _to_image(255 - (255 - wet) * (0.55 + 0.9 * _grain(6)[..., None]))


def split_into_panes(image: Image.Image) -> Image.Image:
    """Divide the image into panes of glass of different brightness, with lead lines between them."""
    lights, lead_lines = _panes()
    return _to_image(np.where(lead_lines[..., None], np.array(LEAD), np.asarray(image, np.float32) * lights[..., None]))


@lru_cache(maxsize=1)
def _panes() -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's brightness, and True on lead lines: as near to one pane's centre as to another's."""
    rng = np.random.default_rng(11)
    centres, lights = rng.uniform(0, CANVAS_SIDE, (NUM_PANES, 2)), rng.uniform(0.8, 1.15, NUM_PANES)
    y, x = np.mgrid[:CANVAS_SIDE, :CANVAS_SIDE]
    distances = np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1])
    nearest, second = np.argsort(distances, axis=-1)[..., :2].transpose(2, 0, 1)
    difference = distances[y, x, second] ** 2 - distances[y, x, nearest] ** 2
    gap = np.linalg.norm(centres[nearest] - centres[second], axis=-1)
    return lights[nearest], difference / (2 * gap) < 0.55 * SUPERSAMPLING


def pixelate(image: Image.Image) -> Image.Image:
    """Reduce the image to few large squares of few colours."""
    small = np.asarray(image.resize((PIXELS_ACROSS, PIXELS_ACROSS), Image.Resampling.BOX), np.float32) / 255
    quantised = np.round(small * (COLOUR_LEVELS - 1)) / (COLOUR_LEVELS - 1) * 255
    return _to_image(quantised).resize((CANVAS_SIDE, CANVAS_SIDE), Image.Resampling.NEAREST)


def add_grid(image: Image.Image) -> Image.Image:
    """Draw the faint grid of drawing paper over the image."""
    lines = np.asarray(image, np.float32).copy()
    step = 16 * SUPERSAMPLING
    for k in range(0, CANVAS_SIDE, step):
        lines[k : k + SUPERSAMPLING] += 0.12 * (np.array(TITLE) - lines[k : k + SUPERSAMPLING])
        lines[:, k : k + SUPERSAMPLING] += 0.12 * (np.array(TITLE) - lines[:, k : k + SUPERSAMPLING])
    return _to_image(lines)


def _grain(cells: int) -> np.ndarray:
    """Return fixed smooth noise, float32 [h w] in 0..1."""
    rough = (np.random.default_rng(5).uniform(0, 255, (cells, cells))).astype(np.uint8)
    return (
        np.asarray(Image.fromarray(rough).resize((CANVAS_SIDE, CANVAS_SIDE), Image.Resampling.BICUBIC), np.float32)
        / 255
    )


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def same_colour(colour: RGB) -> RGB:
    """Return the colour unchanged."""
    return colour


UNSEEN_STYLES: Mapping[str, DrawingStyle] = {
    "neon": DrawingStyle(
        NIGHT,
        fill_and_outline(lambda c: mix_colours(c, NIGHT, 0.93), lambda c: mix_colours(saturate(c), NIGHT, 0.62), 1.0),
        fill_and_outline(lambda c: mix_colours(c, NIGHT, 0.8), saturate, 2.2),
        add_glow,
    ),
    "blueprint": DrawingStyle(
        BLUE,
        fill_and_outline(
            lambda c: mix_colours(BLUE, TITLE, 0.22 * luminance(c)), lambda c: mix_colours(BLUE, TITLE, 0.3), 0.7
        ),
        fill_and_outline(lambda c: mix_colours(BLUE, TITLE, 0.3 + 0.5 * luminance(c)), lambda c: WHITE, 1.8),
        add_grid,
    ),
    "watercolour": DrawingStyle(
        TINT,
        fill_and_outline(lambda c: mix_colours(c, TINT, 0.62), lambda c: mix_colours(c, TINT, 0.5), 0.8),
        fill_and_outline(lambda c: mix_colours(c, TINT, 0.3), lambda c: mix_colours(c, LEAD, 0.25), 1.6),
        add_paper_grain,
    ),
    "stained glass": DrawingStyle(
        LEAD,
        fill_and_outline(lambda c: mix_colours(saturate(c), c, 0.55), lambda c: LEAD, 1.4),
        fill_and_outline(lambda c: mix_colours(saturate(c), c, 0.3), lambda c: LEAD, 2.8),
        split_into_panes,
    ),
    "pixel": DrawingStyle(
        LEAD, fill_and_outline(same_colour, same_colour, 0.4), fill_and_outline(saturate, lambda c: LEAD, 2.4), pixelate
    ),
}


def _duotone(colour: RGB) -> RGB:
    return mix_colours((44, 20, 92), (255, 196, 150), luminance(colour))


def _negative(colour: RGB) -> RGB:
    return _to_rgb(255 - each for each in colour)


def _pastel(colour: RGB) -> RGB:
    return mix_colours(colour, WHITE, 0.6)


def _grey(colour: RGB) -> RGB:
    return (round(255 * luminance(colour)),) * 3


def add_dots(image: Image.Image) -> Image.Image:
    """Draw the image as dots of a fixed grid, larger where it is darker, on paper."""
    values, step = np.asarray(image, np.float32), 4 * SUPERSAMPLING
    y, x = (np.mgrid[:CANVAS_SIDE, :CANVAS_SIDE] % step) / step - 0.5
    darkness = 1 - values.mean(-1) / 255
    return _to_image(np.where((np.hypot(x, y) < 0.3 + 0.42 * darkness)[..., None], values, 255))


def add_hatching(image: Image.Image) -> Image.Image:
    """Draw diagonal strokes over the image, wider where it is darker."""
    values, step = np.asarray(image, np.float32), 5 * SUPERSAMPLING
    y, x = np.mgrid[:CANVAS_SIDE, :CANVAS_SIDE]
    stroke = ((x + y) % step) / step < 0.75 * (1 - values.mean(-1) / 255)
    return _to_image(np.where(stroke[..., None], 0.35 * values, values))


def add_scan_lines(image: Image.Image) -> Image.Image:
    """Darken every other pair of rows."""
    rows = np.arange(CANVAS_SIDE) // (2 * SUPERSAMPLING) % 2
    return _to_image(np.asarray(image, np.float32) * np.where(rows, 0.5, 1.0)[:, None, None])


def add_ripples(image: Image.Image) -> Image.Image:
    """Displace columns up and down along a sine."""
    y, x = np.mgrid[:CANVAS_SIDE, :CANVAS_SIDE]
    rows = (y + 2.5 * SUPERSAMPLING * np.sin(2 * np.pi * x / (12 * SUPERSAMPLING))).round().astype(int)
    return Image.fromarray(np.asarray(image)[rows.clip(0, CANVAS_SIDE - 1), x])


# Parameters of composed styles.
RECOLOURINGS: Mapping[str, Callable[[RGB], RGB]] = {
    "duotone": _duotone, "negative": _negative, "pastel": _pastel, "grey": _grey,
}  # fmt: skip
FINISHES: Mapping[str, PostProcess] = {
    "dots": add_dots, "hatching": add_hatching, "scanlines": add_scan_lines, "ripples": add_ripples,
}  # fmt: skip
LINES: tuple[tuple[RGB, float], ...] = ((LEAD, 1.2), (WHITE, 1.8), (LEAD, 2.6))  # colour and width of outlines


def _compose_style(recolour: Callable[[RGB], RGB], finish: PostProcess, number: int) -> DrawingStyle:
    colour, width = LINES[number % len(LINES)]
    scenery = fill_and_outline(recolour, recolour, 0.4)
    return DrawingStyle(recolour(TINT), scenery, fill_and_outline(recolour, lambda c: colour, width), finish)


COMPOSED_STYLES: Mapping[str, DrawingStyle] = {
    f"{recolouring} {finish}": _compose_style(RECOLOURINGS[recolouring], FINISHES[finish], number)
    for number, (recolouring, finish) in enumerate(product(RECOLOURINGS, FINISHES))
    if (number // len(FINISHES) + number) % 2 == 0
}
"""Styles composed of parameters that no style above has: each recolouring with two finishes."""

Renderer = Callable[[ShotSpec, float], np.ndarray]  # a shot at a time in seconds: uint8 [128, 128, 3]


def unseen_subject_renderer(name: str) -> Renderer:
    """Return a renderer of an unseen subject, as the main subject of a shot in one of the world's own styles."""
    return partial(_render_unseen_subject, name)


def unseen_style_renderer(name: str) -> Renderer:
    """Return a renderer of the world's own subjects in an unseen style."""
    return partial(_render_in_unseen_style, name)


def render_unseen_clip(render: Renderer, shot: ShotSpec, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """Return the frames of a clip, uint8 [num_frames, 128, 128, 3]."""
    return np.stack([render(shot, time) for time in frame_times(num_frames, fps)])


def _render_unseen_subject(name: str, shot: ShotSpec, time: float = 0.0) -> np.ndarray:
    parts = {**UNSEEN_SUBJECTS, **COMPOSED_SUBJECTS}[name][1]()
    image, draw = painting.new_canvas()
    painting.BACKDROP_PAINTERS[shot.style](draw, list(_scenery_outlines(shot, time)))
    painting.STYLE_PAINTERS[shot.style](draw, list(_subject_outlines_of(parts, shot, time)))
    return painting.downsample_canvas(image)


def _render_in_unseen_style(name: str, shot: ShotSpec, time: float = 0.0) -> np.ndarray:
    parts = subject_parts(shot.things[0])
    return render_style(
        {**UNSEEN_STYLES, **COMPOSED_STYLES}[name],
        _scenery_outlines(shot, time),
        _subject_outlines_of(parts, shot, time),
    )


def _scenery_outlines(shot: ShotSpec, time: float) -> ColouredOutlines:
    parts = [part for layer in scenery_layers(shot.scene, shot.backdrop) for part in layer.parts]
    shift = (camera_shift(shot, time), 0)
    colours = painting.part_colours(parts, painting.PAINTS)
    return [
        ((part.outline - shift) * SIDE * SUPERSAMPLING, colour) for part, colour in zip(parts, colours, strict=True)
    ]


def _subject_outlines_of(parts: list[Part], shot: ShotSpec, time: float) -> ColouredOutlines:
    subject = shot.things[0]
    axes, centre = placement(subject, time, camera_shift(shot, time))
    colours = painting.part_colours(parts, painting.subject_paints(subject.colour, subject.individual))
    return [
        ((part.outline @ axes + centre) * SIDE * SUPERSAMPLING, colour)
        for part, colour in zip(parts, colours, strict=True)
    ]
