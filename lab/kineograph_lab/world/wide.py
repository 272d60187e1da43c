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
from kineograph_lab.world.captions import COLOURS, FACINGS, KINDS, Rng, pick_word, with_article
from kineograph_lab.world.world import Shot, Subject

FLAT_SHARE = 0.4  # share of the plain style, which prompts without a style word mean
TILTED_SHARE = 0.25  # share of subjects with a tilt, up to 45 degrees either way
MAX_TILT = pi / 4
RESIZED_SHARE = 0.5  # share of subjects whose size is not the usual one
SIZE_RANGE = (0.4, 1.3)  # times the usual size
MOVED_SHARE = 0.3  # share of subjects off the middle
CUT_OFF_SHARE = 0.1  # share of subjects cut by the border
MAX_SIZE = 0.75  # half-size, in units of the frame, that a subject in a film may grow to
BACKDROPS = 8 * world.BACKDROPS


def sample_wide_shot(rng: Rng, split: str = "train") -> Shot:
    """Return a random shot of the wider distribution; "train" never holds a held-out pair."""
    shot = world.sample_shot(rng, split=split)
    style = "flat" if rng.uniform() < FLAT_SHARE else str(rng.choice([each for each in world.STYLES if each != "flat"]))
    alone = len(shot.things) == 1
    things = tuple(_widen(thing, rng, alone=alone) for thing in shot.things)
    return replace(shot, style=style, things=things, backdrop=int(rng.integers(BACKDROPS)))


def _widen(thing: Subject, rng: Rng, *, alone: bool) -> Subject:
    tilt = float(rng.uniform(-MAX_TILT, MAX_TILT)) if rng.uniform() < TILTED_SHARE else 0.0
    low, high = SIZE_RANGE if alone else (SIZE_RANGE[0], 1.15)  # two large things would hide each other
    size = thing.size * exp(rng.uniform(log(low), log(high))) if rng.uniform() < RESIZED_SHARE else thing.size
    x, y = thing.x, thing.y
    if rng.uniform() < MOVED_SHARE:
        room = max(0.0, 0.5 - size)  # how far from the middle a subject is still whole
        x = 0.5 + rng.uniform(-room, room) if alone else x + rng.uniform(-0.08, 0.08)
        y = 0.5 + rng.uniform(-room, room)
    if alone and rng.uniform() < CUT_OFF_SHARE:
        x, y = _move_to_border(x, y, size, rng)
    return replace(thing, x=float(x), y=float(y), size=float(size), tilt=tilt)


def _move_to_border(x: float, y: float, size: float, rng: Rng) -> tuple[float, float]:
    """Return a centre from which up to half of the subject is beyond one side of the image."""
    inside, side = size * rng.uniform(0.0, 0.5), int(rng.integers(4))
    return ((inside, y), (1 - inside, y), (x, inside), (x, 1 - inside))[side]


def sample_wide_clip_shot(rng: Rng, split: str = "train", *, reach: float = 1.4) -> Shot:
    """Return a shot for a film, in which the main subject is in the frame, and not larger than it, all the time.

    reach: the seconds before and after the middle that a film can show.
    """
    while True:
        shot = sample_wide_shot(rng, split)
        main, *others = shot.things
        ends = [_is_in_view(shot, time) for time in (-reach, 0.0, reach)]
        if (others and rng.uniform() < 0.5) or not all(ends):
            continue
        return replace(shot, things=(main, *(replace(other, motion="still") for other in others)))


def _is_in_view(shot: Shot, time: float) -> bool:
    """Return whether the main subject's centre is in the frame and the subject not larger than it."""
    axes, centre = world.placement(shot.things[0], time, world.camera_shift(shot, time))
    return bool(min(centre) > 0 and max(centre) < 1 and np.hypot(*axes[0]) < MAX_SIZE)


def is_cut_off(thing: Subject) -> bool:
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
TILTED_WORD, CUT_OFF_WORDS = "tilted", "cut off at the edge"

# Shares of captions that say or leave out something.
NOUN_ALONE_SHARE, NO_COLOUR_SHARE, NO_SCENE_SHARE = 0.06, 0.1, 0.1
FLAT_NAMED_SHARE, STYLE_NAMED_SHARE = 0.3, 0.95
MOTION_SHARE, FACING_SHARE, VERB_SHARE = 0.25, 0.4, 0.25
TILT_NAMED_SHARE, CUT_OFF_NAMED_SHARE, SIZE_NAMED_SHARE = 0.7, 0.8, 0.5
LARGE_SIZE, SMALL_SIZE, MIN_NAMED_TILT = 0.37, 0.18, 0.2  # half-sizes in units of the frame; radians


class Caption(NamedTuple):
    """A caption and the facts that it names: of `thing`, `colour`, `scene`, `style`, `second`, `second_colour`,
    `facing`, `motion`, `camera`."""

    text: str
    named: dict[str, str]


def caption_wide_image(shot: Shot, rng: Rng) -> Caption:
    """Return a caption of one frame, at times with words for the motion."""
    return _caption(shot, rng, motion=rng.uniform() < MOTION_SHARE, camera=rng.uniform() < 0.3)


def caption_wide_clip(shot: Shot, rng: Rng) -> Caption:
    """Return a caption of a clip: the motion is named nearly always, and the camera's always."""
    return _caption(shot, rng, motion=rng.uniform() < 0.95, camera=True)


def _caption(shot: Shot, rng: Rng, *, motion: bool, camera: bool) -> Caption:
    main = shot.things[0]
    named = {"thing": main.kind}
    if len(shot.things) == 1 and shot.style == "flat" and rng.uniform() < NOUN_ALONE_SHARE:
        return Caption(with_article(pick_word(rng, KINDS[main.kind])), named | {"style": "flat"})
    does, more = _describe_action(main, rng, motion=motion)
    named |= more
    first, said = _describe(main, rng, after=0.0 if does else 0.03)
    named |= said
    rest = ""
    for second in shot.things[1:]:
        name, said = _describe(second, rng, after=0.0)
        rest += f" and {name}"
        named |= {"second": second.kind} | ({"second_colour": said["colour"]} if "colour" in said else {})
    scene = "" if rng.uniform() < NO_SCENE_SHARE else pick_word(rng, SCENES[shot.scene])
    named |= {"scene": shot.scene} if scene else {}
    text = _arrange(first, does, rest, scene, rng)
    style = "{}"
    if rng.uniform() < (FLAT_NAMED_SHARE if shot.style == "flat" else STYLE_NAMED_SHARE):
        style = STYLES[shot.style][int(rng.integers(len(STYLES[shot.style])))]
        named["style"] = shot.style
    elif shot.style == "flat":
        named["style"] = "flat"  # what no word for a style means
    text = style.format(text)
    if camera and shot.camera != "still":
        text += f", {pick_word(rng, CAMERAS[shot.camera])}"
        named["camera"] = shot.camera
    return Caption(text, named)


def _arrange(first: str, does: str, rest: str, scene: str, rng: Rng) -> str:
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


def _describe_action(thing: Subject, rng: Rng, *, motion: bool) -> tuple[str, dict[str, str]]:
    """Return words for what the thing does, where it faces and how it stands, and the facts among them."""
    words: list[str] = []
    named: dict[str, str] = {}
    verbs, sideways = VERBS.get(thing.kind, ()), thing.motion in SIDEWAYS
    if motion:
        named["motion"] = thing.motion
        if verbs and sideways and rng.uniform() < 0.6:
            words.append(f"{pick_word(rng, verbs)} to the {thing.motion}")
        else:
            words.append(pick_word(rng, MOTIONS[thing.motion]))
    elif verbs and rng.uniform() < VERB_SHARE:
        words.append(pick_word(rng, verbs))
    if motion and sideways:
        named["facing"] = thing.motion
    elif rng.uniform() < FACING_SHARE:
        words.append(FACINGS[thing.facing])
        named["facing"] = "left" if thing.facing < 0 else "right"
    if abs(thing.tilt) > MIN_NAMED_TILT and rng.uniform() < TILT_NAMED_SHARE:
        words.append(TILTED_WORD)
    if is_cut_off(thing) and rng.uniform() < CUT_OFF_NAMED_SHARE:
        words.append(CUT_OFF_WORDS)
    return " ".join(words), named


def _describe(thing: Subject, rng: Rng, *, after: float) -> tuple[str, dict[str, str]]:
    """Return for example "a small red fish", and its colour where it is said.

    after: share of names with the colour after the noun: "a fish, red".
    """
    size = ""
    if not SMALL_SIZE <= thing.size <= LARGE_SIZE and rng.uniform() < SIZE_NAMED_SHARE:
        size = "big " if thing.size > LARGE_SIZE else "small "
    kind, colour = pick_word(rng, KINDS[thing.kind]), pick_word(rng, COLOURS[thing.colour])
    if rng.uniform() < NO_COLOUR_SHARE:
        return with_article(size + kind), {}
    if rng.uniform() < after:
        return f"{with_article(size + kind)}, {colour}", {"colour": thing.colour}
    return with_article(f"{size}{colour} {kind}"), {"colour": thing.colour}


def wide_vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    forms = (KINDS, COLOURS, SCENES, STYLES, MOTIONS, VERBS, CAMERAS)
    texts = [text for table in forms for each in table.values() for text in each]
    texts += [*FACINGS.values(), TILTED_WORD, CUT_OFF_WORDS, "a an and big small to the left right"]
    return sorted({word for text in texts for word in text.replace("{}", "").replace(",", "").lower().split()})


def wide_image_text(shot: Shot, rng: Rng) -> str:
    """Return a caption of one frame, its text alone."""
    return caption_wide_image(shot, rng).text


def wide_clip_text(shot: Shot, rng: Rng) -> str:
    """Return a caption of a clip, its text alone."""
    return caption_wide_clip(shot, rng).text


def wide_image_texts(shot: Shot, rng: Rng, count: int) -> list[str]:
    """Return different captions of one frame."""
    return [caption_wide_image(shot, rng).text for _ in range(count)]


def encode_facts(named: dict[str, str], choices: dict[str, tuple[str, ...]]) -> np.ndarray:
    """Return each fact as the number of its choice, the number after the last where it is not named. int64 [facts]."""
    return np.array([all_.index(named[name]) if name in named else len(all_) for name, all_ in choices.items()])
