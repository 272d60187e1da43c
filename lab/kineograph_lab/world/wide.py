"""Shots and captions of a wider distribution than `world.sample_shot`, for training.

Half of the shots are the usual ones. The others are tilted, smaller, larger, off-centre or cut off by the border: guidance
and warped latents ask a network for such subjects, and one that was never trained on them doubles or dissolves them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import exp, log, pi
from typing import NamedTuple

import numpy as np

from kineograph_lab.world import captions, world
from kineograph_lab.world.captions import COLOURS, FACINGS, KINDS, Rng, pick_word, with_article
from kineograph_lab.world.world import ShotSpec, Subject

FLAT_SHARE = 0.4  # share of the flat style, which prompts without a style word mean
TILTED_SHARE = 0.25  # share of subjects with a tilt, up to 45 degrees either way
MAX_TILT = pi / 4
RESIZED_SHARE = 0.5  # share of subjects whose size is not the usual one
SIZE_RANGE = (0.4, 1.3)  # times the usual size
MOVED_SHARE = 0.3  # share of subjects off the middle
CUT_OFF_SHARE = 0.1  # share of subjects cut by the border
MAX_SIZE = 0.75  # half-size, in units of the frame, of a subject in a clip
BACKDROPS = 8 * world.BACKDROPS


def sample_wide_shot(rng: Rng, split: str = "train") -> ShotSpec:
    """Return a random shot of the wider distribution; "train" never holds a held-out pair."""
    shot = world.sample_shot(rng, split=split)
    style = "flat" if rng.uniform() < FLAT_SHARE else str(rng.choice([each for each in world.STYLES if each != "flat"]))
    alone = len(shot.things) == 1
    subjects = tuple(_widen(subject, rng, alone=alone) for subject in shot.things)
    return replace(shot, style=style, things=subjects, backdrop=int(rng.integers(BACKDROPS)))


def _widen(subject: Subject, rng: Rng, *, alone: bool) -> Subject:
    tilt = float(rng.uniform(-MAX_TILT, MAX_TILT)) if rng.uniform() < TILTED_SHARE else 0.0
    low, high = SIZE_RANGE if alone else (SIZE_RANGE[0], 1.15)  # two large subjects would hide each other
    size = subject.size * exp(rng.uniform(log(low), log(high))) if rng.uniform() < RESIZED_SHARE else subject.size
    x, y = subject.x, subject.y
    if rng.uniform() < MOVED_SHARE:
        room = max(0.0, 0.5 - size)  # largest offset from the middle with the whole subject in the frame
        x = 0.5 + rng.uniform(-room, room) if alone else x + rng.uniform(-0.08, 0.08)
        y = 0.5 + rng.uniform(-room, room)
    if alone and rng.uniform() < CUT_OFF_SHARE:
        x, y = _move_to_border(x, y, size, rng)
    return replace(subject, x=float(x), y=float(y), size=float(size), tilt=tilt)


def _move_to_border(x: float, y: float, size: float, rng: Rng) -> tuple[float, float]:
    """Return a centre that puts up to half of the subject outside one side of the image."""
    distance, side = size * rng.uniform(0.0, 0.5), int(rng.integers(4))
    return ((distance, y), (1 - distance, y), (x, distance), (x, 1 - distance))[side]


def sample_wide_clip_shot(rng: Rng, split: str = "train", *, reach: float = 1.4) -> ShotSpec:
    """Return a shot for a clip, in which the main subject is always in the frame and not larger than it.

    reach: seconds before and after the middle that a clip can cover.
    """
    while True:
        shot = sample_wide_shot(rng, split)
        main, *others = shot.things
        in_view = [_is_in_view(shot, time) for time in (-reach, 0.0, reach)]
        if (others and rng.uniform() < 0.5) or not all(in_view):
            continue
        return replace(shot, things=(main, *(replace(other, motion="still") for other in others)))


def _is_in_view(shot: ShotSpec, time: float) -> bool:
    """Return True if the main subject's centre is in the frame and the subject not larger than it."""
    axes, centre = world.placement(shot.things[0], time, world.camera_shift(shot, time))
    return bool(min(centre) > 0 and max(centre) < 1 and np.hypot(*axes[0]) < MAX_SIZE)


def is_cut_off(subject: Subject) -> bool:
    """Return True if the border cuts off much of the subject at time 0."""
    return bool(min(subject.x, subject.y, 1 - subject.x, 1 - subject.y) < 0.55 * subject.size)


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

# Shares of captions that name or omit a fact.
NOUN_ALONE_SHARE, NO_COLOUR_SHARE, NO_SCENE_SHARE = 0.06, 0.1, 0.1
FLAT_NAMED_SHARE, STYLE_NAMED_SHARE = 0.3, 0.95
MOTION_SHARE, FACING_SHARE, VERB_SHARE = 0.25, 0.4, 0.25
TILT_NAMED_SHARE, CUT_OFF_NAMED_SHARE, SIZE_NAMED_SHARE = 0.7, 0.8, 0.5
LARGE_SIZE, SMALL_SIZE, MIN_NAMED_TILT = 0.37, 0.18, 0.2  # half-sizes in units of the frame; radians


class Caption(NamedTuple):
    """A caption and the facts that it names: of `thing`, `colour`, `scene`, `style`, `second`, `second_colour`,
    `facing`, `motion`, `camera`.
    """

    text: str
    named: dict[str, str]


def caption_wide_image(shot: ShotSpec, rng: Rng) -> Caption:
    """Return a caption of one frame, sometimes with words for the motion."""
    return _caption(shot, rng, motion=rng.uniform() < MOTION_SHARE, camera=rng.uniform() < 0.3)


def caption_wide_clip(shot: ShotSpec, rng: Rng) -> Caption:
    """Return a caption of a clip: it names the motion in 95 of 100 cases, and the camera's always."""
    return _caption(shot, rng, motion=rng.uniform() < 0.95, camera=True)


def _caption(shot: ShotSpec, rng: Rng, *, motion: bool, camera: bool) -> Caption:
    main = shot.things[0]
    named = {"thing": main.kind}
    if len(shot.things) == 1 and shot.style == "flat" and rng.uniform() < NOUN_ALONE_SHARE:
        return Caption(with_article(pick_word(rng, KINDS[main.kind])), named | {"style": "flat"})
    action, action_facts = _describe_action(main, rng, motion=motion)
    named |= action_facts
    first, colour_fact = _describe(main, rng, colour_after=0.0 if action else 0.03)
    named |= colour_fact
    rest = ""
    for second in shot.things[1:]:
        name, colour_fact = _describe(second, rng, colour_after=0.0)
        rest += f" and {name}"
        named |= {"second": second.kind} | ({"second_colour": colour_fact["colour"]} if "colour" in colour_fact else {})
    scene = "" if rng.uniform() < NO_SCENE_SHARE else pick_word(rng, SCENES[shot.scene])
    named |= {"scene": shot.scene} if scene else {}
    text = _arrange(first, action, rest, scene, rng)
    style = "{}"
    if rng.uniform() < (FLAT_NAMED_SHARE if shot.style == "flat" else STYLE_NAMED_SHARE):
        style = STYLES[shot.style][int(rng.integers(len(STYLES[shot.style])))]
        named["style"] = shot.style
    elif shot.style == "flat":
        named["style"] = "flat"  # no word for a style means flat
    text = style.format(text)
    if camera and shot.camera != "still":
        text += f", {pick_word(rng, CAMERAS[shot.camera])}"
        named["camera"] = shot.camera
    return Caption(text, named)


def _arrange(first: str, action: str, rest: str, scene: str, rng: Rng) -> str:
    """Return the phrases in one of the orders "a fish rising at sea", "a fish at sea rising", "at sea, a fish rising"."""
    order = rng.uniform()
    if action and scene and not rest and order < 0.2:
        return f"{first} {scene} {action}"
    phrase = f"{first} {action}".strip() + rest
    if scene and order > 0.9:
        return f"{scene}, {phrase}"
    if scene and order > 0.85:
        return f"{phrase}, {scene}"
    return f"{phrase} {scene}".strip()


def _describe_action(subject: Subject, rng: Rng, *, motion: bool) -> tuple[str, dict[str, str]]:
    """Return words for the subject's motion, facing and tilt, and the facts that they name."""
    words: list[str] = []
    named: dict[str, str] = {}
    verbs, sideways = VERBS.get(subject.kind, ()), subject.motion in SIDEWAYS
    if motion:
        named["motion"] = subject.motion
        if verbs and sideways and rng.uniform() < 0.6:
            words.append(f"{pick_word(rng, verbs)} to the {subject.motion}")
        else:
            words.append(pick_word(rng, MOTIONS[subject.motion]))
    elif verbs and rng.uniform() < VERB_SHARE:
        words.append(pick_word(rng, verbs))
    if motion and sideways:
        named["facing"] = subject.motion
    elif rng.uniform() < FACING_SHARE:
        words.append(FACINGS[subject.facing])
        named["facing"] = "left" if subject.facing < 0 else "right"
    if abs(subject.tilt) > MIN_NAMED_TILT and rng.uniform() < TILT_NAMED_SHARE:
        words.append(TILTED_WORD)
    if is_cut_off(subject) and rng.uniform() < CUT_OFF_NAMED_SHARE:
        words.append(CUT_OFF_WORDS)
    return " ".join(words), named


def _describe(subject: Subject, rng: Rng, *, colour_after: float) -> tuple[str, dict[str, str]]:
    """Return a noun phrase such as "a small red fish", and the subject's colour if it is named.

    colour_after: share of phrases with the colour after the noun: "a fish, red".
    """
    size = ""
    if not SMALL_SIZE <= subject.size <= LARGE_SIZE and rng.uniform() < SIZE_NAMED_SHARE:
        size = "big " if subject.size > LARGE_SIZE else "small "
    kind, colour = pick_word(rng, KINDS[subject.kind]), pick_word(rng, COLOURS[subject.colour])
    if rng.uniform() < NO_COLOUR_SHARE:
        return with_article(size + kind), {}
    if rng.uniform() < colour_after:
        return f"{with_article(size + kind)}, {colour}", {"colour": subject.colour}
    return with_article(f"{size}{colour} {kind}"), {"colour": subject.colour}


def wide_phrases() -> dict[str, list[str]]:
    """Return the phrases that captions consist of, by what they say; "..." stands for the rest of a caption."""
    tables = {
        "subjects": KINDS, "colours": COLOURS, "scenes": SCENES, "styles": STYLES, "motions": MOTIONS, "verbs": VERBS,
        "camera": CAMERAS,
    }  # fmt: skip
    phrases = {
        name: [form.replace("{}", "...").strip(", ") for forms in table.values() for form in forms]
        for name, table in tables.items()
    }
    phrases["verbs"] += ["... to the left", "... to the right"]
    phrases["others"] = [*FACINGS.values(), TILTED_WORD, CUT_OFF_WORDS, "big", "small", "a ... and a ...", "an ..."]
    return {name: list(dict.fromkeys(each)) for name, each in phrases.items()}


def wide_vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    texts = " ".join(phrase for phrases in wide_phrases().values() for phrase in phrases)
    return sorted(set(re.findall(r"[a-z]+", texts.lower())))


def wide_image_text(shot: ShotSpec, rng: Rng) -> str:
    """Return the text of a caption of one frame."""
    return caption_wide_image(shot, rng).text


def wide_clip_text(shot: ShotSpec, rng: Rng) -> str:
    """Return the text of a caption of a clip."""
    return caption_wide_clip(shot, rng).text


def wide_image_texts(shot: ShotSpec, rng: Rng, count: int) -> list[str]:
    """Return the texts of several captions of one frame."""
    return [caption_wide_image(shot, rng).text for _ in range(count)]


def encode_facts(named: dict[str, str], choices: dict[str, tuple[str, ...]]) -> np.ndarray:
    """Return the index of each fact's choice, the index after the last if it is not named, int64 [facts]."""
    return np.array([values.index(named[name]) if name in named else len(values) for name, values in choices.items()])
