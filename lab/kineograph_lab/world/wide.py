"""Shots of a wider distribution than `world.draw_shot`, for training.

Half of them are the usual ones. The others are tilted, smaller, larger, off the middle or cut by the border: guidance
and warped latents ask a network for such subjects, and one that never saw them doubles or dissolves them.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, log, pi
from typing import NamedTuple

import numpy as np

from kineograph_lab.world import captions, world
from kineograph_lab.world.captions import COLOURS, FACINGS, KINDS, Rng, article, pick
from kineograph_lab.world.world import Shot, Thing

FLAT = 0.4  # share of the plain style, which prompts without a style word mean
TILTED = 0.25  # share of subjects with a tilt, up to 45 degrees either way
TILT = pi / 4
RESIZED = 0.5  # share of subjects whose size is not the usual one
SIZES = (0.4, 1.3)  # times the usual size
PLACED = 0.3  # share of subjects off the middle
CUT = 0.1  # share of subjects cut by the border
LARGEST = 0.75  # half-size, in units of the frame, that a subject in a film may grow to
BACKDROPS = 8 * world.BACKDROPS


def draw_shot(rng: Rng, split: str = "train") -> Shot:
    """Return a random shot of the wider distribution; "train" never holds a held-out pair."""
    shot = world.draw_shot(rng, split=split)
    style = "flat" if rng.uniform() < FLAT else str(rng.choice([each for each in world.STYLES if each != "flat"]))
    alone = len(shot.things) == 1
    things = tuple(_widened(thing, rng, alone=alone) for thing in shot.things)
    return replace(shot, style=style, things=things, backdrop=int(rng.integers(BACKDROPS)))


def _widened(thing: Thing, rng: Rng, *, alone: bool) -> Thing:
    tilt = float(rng.uniform(-TILT, TILT)) if rng.uniform() < TILTED else 0.0
    low, high = SIZES if alone else (SIZES[0], 1.15)  # two large things would hide each other
    size = thing.size * exp(rng.uniform(log(low), log(high))) if rng.uniform() < RESIZED else thing.size
    x, y = thing.x, thing.y
    if rng.uniform() < PLACED:
        room = max(0.0, 0.5 - size)  # how far from the middle a subject is still whole
        x = 0.5 + rng.uniform(-room, room) if alone else x + rng.uniform(-0.08, 0.08)
        y = 0.5 + rng.uniform(-room, room)
    if alone and rng.uniform() < CUT:
        x, y = _at_the_border(x, y, size, rng)
    return replace(thing, x=float(x), y=float(y), size=float(size), tilt=tilt)


def _at_the_border(x: float, y: float, size: float, rng: Rng) -> tuple[float, float]:
    """Return a centre from which up to half of the subject is beyond one side of the image."""
    inside, side = size * rng.uniform(0.0, 0.5), int(rng.integers(4))
    return ((inside, y), (1 - inside, y), (x, inside), (x, 1 - inside))[side]


def draw_film_shot(rng: Rng, split: str = "train", *, reach: float = 1.4) -> Shot:
    """Return a shot for a film, in which the main subject is in the frame, and not larger than it, all the time.

    reach: the seconds before and after the middle that a film can show.
    """
    while True:
        shot = draw_shot(rng, split)
        main, *others = shot.things
        ends = [_seen(shot, time) for time in (-reach, 0.0, reach)]
        if (others and rng.uniform() < 0.5) or not all(ends):
            continue
        return replace(shot, things=(main, *(replace(other, motion="still") for other in others)))


def _seen(shot: Shot, time: float) -> bool:
    """Return whether the main subject's centre is in the frame and the subject not larger than it."""
    axes, centre = world.placement(shot.things[0], time, world.camera_shift(shot, time))
    return bool(min(centre) > 0 and max(centre) < 1 and np.hypot(*axes[0]) < LARGEST)


def is_cut(thing: Thing) -> bool:
    """Return whether the border cuts off much of the subject at time 0."""
    return bool(min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) < 0.55 * thing.size)


SCENES = {name: words + {"sea": ("in the sea",), "city": ("in the city",), "room": ("in the room",)}.get(name, ())
          for name, words in captions.SCENES.items()}  # fmt: skip
STYLES = {name: words + tuple(f"{{}} in {each} style" for each in (name,)) for name, words in captions.STYLES.items()}
MOTIONS: dict[str, tuple[str, ...]] = {
    "still": ("standing still", "resting", "not moving"),
    "left": ("moving to the left", "going left", "going to the left", "moving left"),
    "right": ("moving to the right", "going right", "going to the right", "moving right"),
    "up": ("rising", "moving up", "going up", "moving upwards"),
    "down": ("sinking", "moving down", "going down", "moving downwards", "falling"),
    "bouncing": ("bouncing", "hopping up and down", "jumping", "jumping up and down", "hopping"),
    "spinning": ("spinning", "turning around", "turning", "rotating"),
    "growing": ("growing", "getting bigger", "growing bigger", "coming closer"),
    "shrinking": ("shrinking", "getting smaller", "growing smaller", "going away"),
    "swaying": ("swaying", "rocking to and fro", "rocking", "swinging"),
    "circling": ("moving in a circle", "circling", "going in circles"),
}  # fmt: skip
VERBS: dict[str, tuple[str, ...]] = {
    **{name: (verb,) for name, verb in captions.VERBS.items()},
    "turtle": ("swimming", "walking", "crawling"), "crab": ("crawling", "walking"), "cat": ("walking", "running"),
    "rabbit": ("hopping", "running"), "elephant": ("walking", "running"), "snail": ("crawling",),
    "ball": ("rolling",), "robot": ("walking",), "kite": ("flying",), "balloon": ("floating", "flying"),
}  # fmt: skip
CAMERAS = {name: (*words, f"the camera moves to the {name.split()[1]}") for name, words in captions.CAMERAS.items()}
SIDEWAYS = {"left", "right"}
TILTED_WORDS, CUT_WORDS = "tilted", "cut off at the edge"

# Shares of captions that say or leave out something.
NOUN, NO_COLOUR, NO_SCENE = 0.06, 0.1, 0.1
PLAIN_NAMED, STYLE_NAMED = 0.3, 0.95
MOTION, FACING, VERB = 0.25, 0.4, 0.25
TILT_NAMED, CUT_NAMED, SIZE_NAMED = 0.7, 0.8, 0.5
LARGE, SMALL, SLANTED = 0.37, 0.18, 0.2  # half-sizes in units of the frame; radians


class Caption(NamedTuple):
    """A caption and the facts that it names: of `thing`, `colour`, `scene`, `style`, `second`, `second_colour`,
    `facing`, `motion`, `camera`."""

    text: str
    named: dict[str, str]


def of_image(shot: Shot, rng: Rng) -> Caption:
    """Return a caption of one frame, at times with words for the motion."""
    return _caption(shot, rng, motion=rng.uniform() < MOTION, camera=rng.uniform() < 0.3)


def of_clip(shot: Shot, rng: Rng) -> Caption:
    """Return a caption of a clip: the motion is named nearly always, and the camera's always."""
    return _caption(shot, rng, motion=rng.uniform() < 0.95, camera=True)


def _caption(shot: Shot, rng: Rng, *, motion: bool, camera: bool) -> Caption:
    main = shot.things[0]
    named = {"thing": main.kind}
    if len(shot.things) == 1 and shot.style == "flat" and rng.uniform() < NOUN:
        return Caption(article(pick(rng, KINDS[main.kind])), named | {"style": "flat"})
    does, more = _doing(main, rng, motion=motion)
    named |= more
    first, said = _name(main, rng, after=0.0 if does else 0.03)
    named |= said
    rest = ""
    for second in shot.things[1:]:
        name, said = _name(second, rng, after=0.0)
        rest += f" and {name}"
        named |= {"second": second.kind} | ({"second_colour": said["colour"]} if "colour" in said else {})
    scene = "" if rng.uniform() < NO_SCENE else pick(rng, SCENES[shot.scene])
    named |= {"scene": shot.scene} if scene else {}
    text = _ordered(first, does, rest, scene, rng)
    style = "{}"
    if rng.uniform() < (PLAIN_NAMED if shot.style == "flat" else STYLE_NAMED):
        style = STYLES[shot.style][int(rng.integers(len(STYLES[shot.style])))]
        named["style"] = shot.style
    elif shot.style == "flat":
        named["style"] = "flat"  # what no word for a style means
    text = style.format(text)
    if camera and shot.camera != "still":
        text += f", {pick(rng, CAMERAS[shot.camera])}"
        named["camera"] = shot.camera
    return Caption(text, named)


def _ordered(first: str, does: str, rest: str, scene: str, rng: Rng) -> str:
    """Return the parts in one of the orders "a fish rising at sea", "a fish at sea rising", "at sea, a fish rising"."""
    order = rng.uniform()
    if does and scene and not rest and order < 0.2:
        return f"{first} {scene} {does}"
    subject = f"{first} {does}".strip() + rest
    if scene and order > 0.9:
        return f"{scene}, {subject}"
    if scene and order > 0.85:
        return f"{subject}, {scene}"
    return f"{subject} {scene}".strip()


def _doing(thing: Thing, rng: Rng, *, motion: bool) -> tuple[str, dict[str, str]]:
    """Return words for what the thing does, where it faces and how it stands, and the facts among them."""
    words: list[str] = []
    named: dict[str, str] = {}
    verbs, sideways = VERBS.get(thing.kind, ()), thing.motion in SIDEWAYS
    if motion:
        named["motion"] = thing.motion
        if verbs and sideways and rng.uniform() < 0.6:
            words.append(f"{pick(rng, verbs)} to the {thing.motion}")
        else:
            words.append(pick(rng, MOTIONS[thing.motion]))
    elif verbs and rng.uniform() < VERB:
        words.append(pick(rng, verbs))
    if motion and sideways:
        named["facing"] = thing.motion
    elif rng.uniform() < FACING:
        words.append(FACINGS[thing.facing])
        named["facing"] = "left" if thing.facing < 0 else "right"
    if abs(thing.tilt) > SLANTED and rng.uniform() < TILT_NAMED:
        words.append(TILTED_WORDS)
    if is_cut(thing) and rng.uniform() < CUT_NAMED:
        words.append(CUT_WORDS)
    return " ".join(words), named


def _name(thing: Thing, rng: Rng, *, after: float) -> tuple[str, dict[str, str]]:
    """Return for example "a small red fish", and its colour where it is said.

    after: share of names with the colour after the noun: "a fish, red".
    """
    size = ""
    if not SMALL <= thing.size <= LARGE and rng.uniform() < SIZE_NAMED:
        size = "big " if thing.size > LARGE else "small "
    kind, colour = pick(rng, KINDS[thing.kind]), pick(rng, COLOURS[thing.colour])
    if rng.uniform() < NO_COLOUR:
        return article(size + kind), {}
    if rng.uniform() < after:
        return f"{article(size + kind)}, {colour}", {"colour": thing.colour}
    return article(f"{size}{colour} {kind}"), {"colour": thing.colour}


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    forms = (KINDS, COLOURS, SCENES, STYLES, MOTIONS, VERBS, CAMERAS)
    texts = [text for table in forms for each in table.values() for text in each]
    texts += [*FACINGS.values(), TILTED_WORDS, CUT_WORDS, "a an and big small to the left right"]
    return sorted({word for text in texts for word in text.replace("{}", "").replace(",", "").lower().split()})


def say_image(shot: Shot, rng: Rng) -> str:
    """Return a caption of one frame, its text alone."""
    return of_image(shot, rng).text


def say_clip(shot: Shot, rng: Rng) -> str:
    """Return a caption of a clip, its text alone."""
    return of_clip(shot, rng).text


def images_of(shot: Shot, rng: Rng, count: int) -> list[str]:
    """Return different captions of one frame."""
    return [of_image(shot, rng).text for _ in range(count)]


def facts(named: dict[str, str], choices: dict[str, tuple[str, ...]]) -> np.ndarray:
    """Return each fact as the number of its choice, the number after the last where it is not named. int64 [facts]."""
    return np.array([all_.index(named[name]) if name in named else len(all_) for name, all_ in choices.items()])
