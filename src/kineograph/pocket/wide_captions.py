"""Captions for training in one vocabulary for all pocket models, and what each of them says.

Images' captions hold the words for motion too, since one text encoder serves image and video models. A caption without
a word for the style means the plain one, so other styles are nearly always named; so are tilts and cuts by the border,
which a plain prompt should not show. Some captions leave out the colour, the scene, or all but the class noun.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kineograph.pocket import captions
from kineograph.pocket.captions import COLOURS, FACINGS, KINDS, Rng, article, pick
from kineograph.pocket.wide import is_cut
from kineograph.pocket.world import Shot, Thing

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
TILTED, CUT = "tilted", "cut off at the edge"

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
        words.append(TILTED)
    if is_cut(thing) and rng.uniform() < CUT_NAMED:
        words.append(CUT)
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
    texts += [*FACINGS.values(), TILTED, CUT, "a an and big small to the left right"]
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
