"""Five drawing styles that no model of the pocket world was shown: styles to customise to.

Each paints the parts of the scenery and of the thing before it, on a canvas of its own colour, and then changes the
picture as a whole. Nothing here is in `world.shots`: models and judges are trained without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kineograph_lab.world import painting
from kineograph_lab.world.individuals import sample_individual
from kineograph_lab.world.painting import RGB, SIDE, SUPERSAMPLING, mix_colours
from kineograph_lab.world.shapes import Outline, Part
from kineograph_lab.world.subjects import SUBJECT_PARTS
from kineograph_lab.world.unseen_subjects import UNSEEN_SUBJECTS
from kineograph_lab.world.world import Shot, camera_shift, frame_times, placement, scenery_layers

ColouredOutlines = Sequence[tuple[Outline, RGB]]
ShapePainter = Callable[[ImageDraw.ImageDraw, ColouredOutlines], None]
PostProcess = Callable[[Image.Image], Image.Image]

NIGHT, BLUE, LEAD, TINT, TITLE = (16, 10, 40), (30, 74, 150), (26, 22, 30), (255, 252, 244), (214, 232, 255)
CANVAS_SIDE = SIDE * SUPERSAMPLING
NUM_PANES = 22
COLOUR_LEVELS, PIXELS_ACROSS = 6, 32  # colours a channel and squares a row of pixel art


class DrawingStyle(NamedTuple):
    """How scenery and things are painted, the canvas's colour, and what becomes of the picture."""

    ground: RGB
    scenery: ShapePainter
    thing: ShapePainter
    finish: PostProcess


def render_style(style: DrawingStyle, scenery: ColouredOutlines, thing: ColouredOutlines) -> np.ndarray:
    """The picture: uint8 [128, 128, 3]."""
    image = Image.new("RGB", (CANVAS_SIDE, CANVAS_SIDE), style.ground)
    draw = ImageDraw.Draw(image)
    style.scenery(draw, scenery)
    style.thing(draw, thing)
    return np.array(style.finish(image).reduce(SUPERSAMPLING))


def fill_and_outline(fill: Callable[[RGB], RGB], line: Callable[[RGB], RGB], width: float) -> ShapePainter:
    """Each part filled and outlined, in colours that follow from its own; width of the line in pixels."""

    def draw(on: ImageDraw.ImageDraw, parts: ColouredOutlines) -> None:
        for outline, colour in parts:
            closed = np.concatenate([outline, outline[:2]]).ravel().tolist()
            on.polygon(outline.ravel().tolist(), fill=fill(colour))
            on.line(closed, fill=line(colour), width=max(1, round(width * SUPERSAMPLING)), joint="curve")

    return draw


def saturate(colour: RGB) -> RGB:
    """The same hue, as bright and as saturated as it can be."""
    low, high = min(colour), max(colour)
    return mix_colours(
        WHITE, _to_rgb((each - low) / max(1, high - low) * 255 for each in colour), min(1, (high - low) / 60)
    )


def luminance(colour: RGB) -> float:
    return (0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2]) / 255


WHITE: RGB = (255, 255, 255)


def _to_rgb(values: object) -> RGB:
    return tuple(int(each) for each in values)  # type: ignore[attr-defined, return-value]


def add_glow(image: Image.Image) -> Image.Image:
    """Light spreads around what is bright."""
    sharp = np.asarray(image, np.float32)
    near, far = (np.asarray(image.filter(ImageFilter.GaussianBlur(r * SUPERSAMPLING)), np.float32) for r in (1.5, 5))
    return _to_image(sharp + 0.8 * near + 0.9 * far - 1.7 * np.array(NIGHT))


def add_paper_grain(image: Image.Image) -> Image.Image:
    """Wet paint: edges run, and lie darker in the grain of the paper."""
    wet = np.asarray(image.filter(ImageFilter.GaussianBlur(1.1 * SUPERSAMPLING)), np.float32)
    return _to_image(255 - (255 - wet) * (0.55 + 0.9 * _grain(6)[..., None]))


def split_into_panes(image: Image.Image) -> Image.Image:
    """Panes of glass that differ in how much light they let through, in leads of their own."""
    lights, leads = _panes()
    return _to_image(np.where(leads[..., None], np.array(LEAD), np.asarray(image, np.float32) * lights[..., None]))


@lru_cache(maxsize=1)
def _panes() -> tuple[np.ndarray, np.ndarray]:
    """The light that comes through each pixel, and where leads are: as near to one pane's middle as to another's."""
    rng = np.random.default_rng(11)
    centres, lights = rng.uniform(0, CANVAS_SIDE, (NUM_PANES, 2)), rng.uniform(0.8, 1.15, NUM_PANES)
    y, x = np.mgrid[:CANVAS_SIDE, :CANVAS_SIDE]
    far = np.hypot(x[..., None] - centres[:, 0], y[..., None] - centres[:, 1])
    own, other = np.argsort(far, axis=-1)[..., :2].transpose(2, 0, 1)
    beyond = far[y, x, other] ** 2 - far[y, x, own] ** 2
    apart = np.linalg.norm(centres[own] - centres[other], axis=-1)
    return lights[own], beyond / (2 * apart) < 0.55 * SUPERSAMPLING


def pixelate(image: Image.Image) -> Image.Image:
    """Few large squares of few colours."""
    small = np.asarray(image.resize((PIXELS_ACROSS, PIXELS_ACROSS), Image.Resampling.BOX), np.float32) / 255
    few = np.round(small * (COLOUR_LEVELS - 1)) / (COLOUR_LEVELS - 1) * 255
    return _to_image(few).resize((CANVAS_SIDE, CANVAS_SIDE), Image.Resampling.NEAREST)


def add_grid(image: Image.Image) -> Image.Image:
    """The squares of drawing paper, faintly over all."""
    lines = np.asarray(image, np.float32).copy()
    step = 16 * SUPERSAMPLING
    for k in range(0, CANVAS_SIDE, step):
        lines[k : k + SUPERSAMPLING] += 0.12 * (np.array(TITLE) - lines[k : k + SUPERSAMPLING])
        lines[:, k : k + SUPERSAMPLING] += 0.12 * (np.array(TITLE) - lines[:, k : k + SUPERSAMPLING])
    return _to_image(lines)


def _grain(cells: int) -> np.ndarray:
    """Smooth noise, float32 [h w] in 0..1, always the same."""
    rough = (np.random.default_rng(5).uniform(0, 255, (cells, cells))).astype(np.uint8)
    return (
        np.asarray(Image.fromarray(rough).resize((CANVAS_SIDE, CANVAS_SIDE), Image.Resampling.BICUBIC), np.float32)
        / 255
    )


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def same_colour(colour: RGB) -> RGB:
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

Renderer = Callable[[Shot, float], np.ndarray]  # a shot at a time in seconds: uint8 [128, 128, 3]


def unseen_subject_renderer(name: str) -> Renderer:
    """How an unseen thing is rendered, as the main thing of a shot in one of the world's own styles."""
    return partial(_render_unseen_subject, name)


def unseen_style_renderer(name: str) -> Renderer:
    """How the world's own things are rendered in an unseen style."""
    return partial(_render_in_unseen_style, name)


def render_unseen_clip(render: Renderer, shot: Shot, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """The shot in motion: uint8 [num_frames, 128, 128, 3]."""
    return np.stack([render(shot, time) for time in frame_times(num_frames, fps)])


def _render_unseen_subject(name: str, shot: Shot, time: float = 0.0) -> np.ndarray:
    image, draw = painting.new_canvas()
    painting.BACKDROP_PAINTERS[shot.style](draw, list(_scenery_outlines(shot, time)))
    painting.STYLE_PAINTERS[shot.style](draw, list(_subject_outlines_of(UNSEEN_SUBJECTS[name][1](), shot, time)))
    return painting.downsample_canvas(image)


def _render_in_unseen_style(name: str, shot: Shot, time: float = 0.0) -> np.ndarray:
    thing = shot.things[0]
    parts = SUBJECT_PARTS[thing.kind](sample_individual(thing.individual))
    return render_style(UNSEEN_STYLES[name], _scenery_outlines(shot, time), _subject_outlines_of(parts, shot, time))


def _scenery_outlines(shot: Shot, time: float) -> ColouredOutlines:
    parts = [part for layer in scenery_layers(shot.scene, shot.backdrop) for part in layer.parts]
    aside = (camera_shift(shot, time), 0)
    colours = painting.part_colours(parts, painting.PAINTS)
    return [
        ((part.outline - aside) * SIDE * SUPERSAMPLING, colour) for part, colour in zip(parts, colours, strict=True)
    ]


def _subject_outlines_of(parts: list[Part], shot: Shot, time: float) -> ColouredOutlines:
    thing = shot.things[0]
    axes, centre = placement(thing, time, camera_shift(shot, time))
    colours = painting.part_colours(parts, painting.subject_paints(thing.colour, thing.individual))
    return [
        ((part.outline @ axes + centre) * SIDE * SUPERSAMPLING, colour)
        for part, colour in zip(parts, colours, strict=True)
    ]
