"""The pocket world: procedural images and clips whose every pixel is known.

A `ShotSpec` is the full description of an image; `render` draws it at a time in seconds and `render_clip` draws its frames.
Time 0 is the middle of a clip, where subjects have the position that the shot gives. `truth.py` computes the exact mask,
depth, edges, keypoints and optical flow.

Names of fields (`ShotSpec.things`) are keys of cached data and of training pools: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin
from typing import NamedTuple

import numpy as np

from kineograph.errors import InputError
from kineograph_lab.world import painting
from kineograph_lab.world.individuals import sample_individual
from kineograph_lab.world.painting import SIDE, SUPERSAMPLING
from kineograph_lab.world.scenery import SCENERY, SceneryLayer
from kineograph_lab.world.shapes import Outline, Part
from kineograph_lab.world.subjects import SUBJECT_PARTS


class Pose(NamedTuple):
    """Offset in units of the frame, clockwise rotation in radians and scale factor."""

    dx: float = 0.0
    dy: float = 0.0
    turn: float = 0.0
    zoom: float = 1.0


SUBJECT_SPEED = 0.2  # frame widths a second: 3.2 pixels between frames at 8 fps, less than half a latent cell
TURN_SPEED = 2 * np.pi * 0.25  # radians a second

POSES: dict[str, Callable[[float], Pose]] = {
    "still": lambda t: Pose(),
    "left": lambda t: Pose(dx=-SUBJECT_SPEED * t),
    "right": lambda t: Pose(dx=SUBJECT_SPEED * t),
    "up": lambda t: Pose(dy=-SUBJECT_SPEED * t),
    "down": lambda t: Pose(dy=SUBJECT_SPEED * t),
    "bouncing": lambda t: Pose(dy=0.06 - 0.16 * abs(np.sin(np.pi * 0.9 * t + 0.4))),
    "spinning": lambda t: Pose(turn=TURN_SPEED * t),
    "growing": lambda t: Pose(zoom=float(np.exp(0.4 * t))),
    "shrinking": lambda t: Pose(zoom=float(np.exp(-0.4 * t))),
    "swaying": lambda t: Pose(dx=0.08 * np.sin(np.pi * 1.1 * t), turn=0.2 * np.sin(np.pi * 1.1 * t)),
    "circling": lambda t: Pose(dx=0.12 * np.sin(np.pi * t), dy=0.12 * (1 - np.cos(np.pi * t))),
}
CAMERA_SPEEDS: dict[str, float] = {"still": 0.0, "pan left": -SUBJECT_SPEED, "pan right": SUBJECT_SPEED}
MOTION_FACINGS = {"left": -1, "right": 1}

SUBJECTS = tuple(SUBJECT_PARTS)
COLOURS = tuple(painting.COLOURS)
SCENES = tuple(SCENERY)
STYLES = tuple(painting.STYLE_PAINTERS)
MOTIONS = tuple(POSES)
CAMERA_MOTIONS = tuple(CAMERA_SPEEDS)
BACKDROPS = 512  # different sceneries a scene, few enough to cache


@dataclass(frozen=True)
class Subject:
    """A subject: kind, individual, position (centre and half-size in units of the frame) and motion.

    tilt: clockwise rotation in radians at time 0.
    """

    kind: str
    colour: str
    individual: int
    x: float = 0.5
    y: float = 0.55
    size: float = 0.3
    facing: int = 1
    motion: str = "still"
    tilt: float = 0.0


@dataclass(frozen=True)
class ShotSpec:
    """Description of an image: scene, style, one or two subjects (the first is the main one), camera, scenery seed."""

    scene: str
    style: str
    things: tuple[Subject, ...]
    camera: str = "still"
    backdrop: int = 0


def is_held_out(kind: str, *, colour: str, scene: str) -> bool:
    """Return True if training never shows the subject in this colour or scene: one colour and one scene a kind."""
    k = SUBJECTS.index(kind)
    return COLOURS.index(colour) == (3 * k + 1) % len(COLOURS) or SCENES.index(scene) == (5 * k + 2) % len(SCENES)


@lru_cache(maxsize=len(SCENES))
def _pairs(scene: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of kind and colour that training shows in a scene, and those that are held out."""
    pairs = [(kind, colour) for kind in SUBJECTS for colour in COLOURS]
    held_out = [(kind, colour) for kind, colour in pairs if is_held_out(kind, colour=colour, scene=scene)]
    return [pair for pair in pairs if pair not in held_out], held_out


def sample_shot(rng: np.random.Generator, *, split: str = "train") -> ShotSpec:
    """Return a random shot.

    split: "train" never holds a held-out pair; in "held_out" the main subject's pair is one.

    Raises:
        InputError: the split is another word.
    """
    if split not in ("train", "held_out"):
        raise InputError(f"split is 'train' or 'held_out', not {split!r}")
    scene = str(rng.choice(SCENES))
    usual, held_out = _pairs(scene)
    pairs = held_out if split == "held_out" else usual
    count = 1 if rng.uniform() < 0.7 else 2
    first = _sample_subject(rng, pairs[rng.integers(len(pairs))], slot=0, count=count)
    rest = tuple(_sample_subject(rng, usual[rng.integers(len(usual))], slot=1, count=2) for _ in range(count - 1))
    camera = "still" if rng.uniform() < 0.7 else str(rng.choice(CAMERA_MOTIONS[1:]))
    return ShotSpec(scene, str(rng.choice(STYLES)), (first, *rest), camera, int(rng.integers(BACKDROPS)))


def _sample_subject(rng: np.random.Generator, pair: tuple[str, str], *, slot: int, count: int) -> Subject:
    alone = count == 1
    size = rng.uniform(0.25, 0.37) if alone else rng.uniform(0.19, 0.25)
    x = rng.uniform(0.38, 0.62) if alone else rng.uniform(0.22, 0.3) + 0.48 * slot
    motion = str(rng.choice(MOTIONS))
    facing = MOTION_FACINGS.get(motion, int(rng.choice((-1, 1))))
    return Subject(*pair, int(rng.integers(1 << 30)), x, rng.uniform(0.46, 0.62), size, facing, motion)


def placement(subject: Subject, time: float, camera: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the subject's axes (rows: its x and y) and its centre, in units of the frame."""
    pose, details = POSES[subject.motion](time), sample_individual(subject.individual)
    turn = pose.turn + subject.tilt
    cosine, sine = subject.size * pose.zoom * cos(turn), subject.size * pose.zoom * sin(turn)
    length, height = details.length * subject.facing, details.height
    axes = np.array([[length * cosine, length * sine], [-height * sine, height * cosine]])
    return axes, (subject.x + pose.dx - camera, subject.y + pose.dy)


@lru_cache(maxsize=8 * BACKDROPS)
def scenery_layers(scene: str, seed: int) -> list[SceneryLayer]:
    """Return the scenery's layers from far to near."""
    return SCENERY[scene](np.random.default_rng(seed))


def camera_shift(shot: ShotSpec, time: float) -> float:
    """Return the camera's pan to the right, in units of the frame."""
    return CAMERA_SPEEDS[shot.camera] * time


def subject_parts(subject: Subject) -> list[Part]:
    """Return the parts of a subject in its own frame, from back to front."""
    return SUBJECT_PARTS[subject.kind](sample_individual(subject.individual))


def render(shot: ShotSpec, time: float = 0.0) -> np.ndarray:
    """Return the frame at a time in seconds, uint8 [128, 128, 3]."""
    return render_parts(shot, [subject_parts(subject) for subject in shot.things], time)


def render_parts(shot: ShotSpec, parts_of_subjects: Sequence[list[Part]], time: float = 0.0) -> np.ndarray:
    """Return the frame at a time in seconds with these parts of each subject, uint8 [128, 128, 3]."""
    image, draw = painting.new_canvas()
    shift, scale = camera_shift(shot, time), SIDE * SUPERSAMPLING
    back = painting.BACKDROP_PAINTERS[shot.style]
    for layer in scenery_layers(shot.scene, shot.backdrop):
        colours = painting.part_colours(layer.parts, painting.PAINTS)
        back(draw, [((p.outline - (shift, 0)) * scale, c) for p, c in zip(layer.parts, colours, strict=True)])
    covers = []
    for subject, parts in zip(shot.things, parts_of_subjects, strict=True):
        axes, centre = placement(subject, time, shift)
        outlines = [(part.outline @ axes + centre) * scale for part in parts]
        colours = painting.part_colours(parts, painting.subject_paints(subject.colour, subject.individual))
        painting.STYLE_PAINTERS[shot.style](draw, list(zip(outlines, colours, strict=True)))
        covers.append(outlines)
    frame = painting.downsample_canvas(image)
    return _shade_subjects(frame, shot, covers, time) if shot.style == "clay" else frame


def _shade_subjects(frame: np.ndarray, shot: ShotSpec, covers: list[list[Outline]], time: float) -> np.ndarray:
    lit = frame.astype(np.float32) * np.linspace(1.06, 0.9, SIDE, dtype=np.float32)[:, None, None]
    for subject, outlines in zip(shot.things, covers, strict=True):
        pose = POSES[subject.motion](time)
        x, y = subject.x + pose.dx - camera_shift(shot, time), subject.y + pose.dy
        lit = painting.shade_as_clay(lit, painting.coverage(outlines), x, y, subject.size * pose.zoom)
    return lit.clip(0, 255).astype(np.uint8)


def render_clip(shot: ShotSpec, num_frames: int = 16, fps: float = 8.0) -> np.ndarray:
    """Return the frames of a clip, uint8 [num_frames, 128, 128, 3]."""
    return np.stack([render(shot, time) for time in frame_times(num_frames, fps)])


def frame_times(num_frames: int, fps: float) -> list[float]:
    """Return the time of each frame of a clip, in seconds from its middle."""
    return [(k - (num_frames - 1) / 2) / fps for k in range(num_frames)]


def sample_shots(seed: int, *, split: str = "train") -> Iterator[ShotSpec]:
    """Yield shots without end, a function of the seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield sample_shot(rng, split=split)
