"""Captions of the pocket world: a small grammar with synonyms and word orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kineograph_lab.world.world import ShotSpec, Subject

Rng = np.random.Generator

# The first word is the usual one.
KINDS: dict[str, tuple[str, ...]] = {
    "fish": ("fish", "goldfish"), "whale": ("whale",), "turtle": ("turtle", "tortoise"), "crab": ("crab",), "bird": ("bird", "songbird"),
    "butterfly": ("butterfly",), "cat": ("cat", "kitten"), "rabbit": ("rabbit", "bunny"), "elephant": ("elephant",), "snail": ("snail",),
    "car": ("car", "automobile"), "truck": ("truck", "lorry"), "boat": ("boat", "sailboat"), "airplane": ("airplane", "plane"),
    "rocket": ("rocket", "spaceship"), "tree": ("tree",), "flower": ("flower", "blossom"), "cactus": ("cactus",), "mushroom": ("mushroom", "toadstool"),
    "ball": ("ball", "beach ball"), "robot": ("robot", "toy robot"), "kite": ("kite",), "balloon": ("balloon", "hot air balloon"), "star": ("star",),
}  # fmt: skip
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet", "crimson"), "orange": ("orange",), "yellow": ("yellow", "golden"), "green": ("green", "emerald"),
    "blue": ("blue", "azure"), "purple": ("purple", "violet"), "pink": ("pink", "rosy"), "brown": ("brown", "chocolate"),
}  # fmt: skip
SCENES: dict[str, tuple[str, ...]] = {
    "sea": ("over the sea", "at sea", "by the ocean", "above the waves"), "meadow": ("in a meadow", "in a green field", "on the grass"),
    "desert": ("in the desert", "on the sand", "among the dunes"), "snow": ("in the snow", "in snowy mountains", "in winter"),
    "forest": ("in a forest", "in the woods", "among the trees"), "city": ("in a city", "in the street", "downtown"),
    "space": ("in space", "among the stars", "in outer space"), "room": ("in a room", "indoors", "at home"),
}  # fmt: skip
STYLES: dict[str, tuple[str, ...]] = {
    "flat": ("a flat drawing of {}", "{}, flat design", "{} in flat colours"), "cartoon": ("a cartoon of {}", "{}, cartoon style", "{} with bold outlines"),
    "paper": ("a paper cutout of {}", "{}, paper cutout style", "{} cut out of paper"), "sketch": ("a sketch of {}", "{}, pencil sketch", "a pencil drawing of {}"),
    "clay": ("a clay model of {}", "{}, clay style", "{} made of clay"),
}  # fmt: skip
MOTIONS: dict[str, tuple[str, ...]] = {
    "still": ("standing still", "resting"), "left": ("moving to the left", "going left"), "right": ("moving to the right", "going right"),
    "up": ("rising", "moving up"), "down": ("sinking", "moving down"), "bouncing": ("bouncing", "hopping up and down"), "spinning": ("spinning", "turning around"),
    "growing": ("growing", "getting bigger"), "shrinking": ("shrinking", "getting smaller"), "swaying": ("swaying", "rocking to and fro"),
    "circling": ("moving in a circle", "circling"),
}  # fmt: skip
VERBS = {"fish": "swimming", "whale": "swimming", "bird": "flying", "butterfly": "flying", "airplane": "flying", "rocket": "flying", "boat": "sailing", "car": "driving", "truck": "driving"}
CAMERAS: dict[str, tuple[str, ...]] = {"pan left": ("the camera pans left", "panning to the left"), "pan right": ("the camera pans right", "panning to the right")}
FACINGS = {-1: "facing left", 1: "facing right"}


def pick_word(rng: Rng, words: Sequence[str]) -> str:
    """Return the first word with probability 0.7, else a random one of all."""
    return words[0] if rng.uniform() < 0.7 else words[int(rng.integers(len(words)))]


def with_article(words: str) -> str:
    """Return the words with "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def describe_subject(subject: Subject, rng: Rng) -> str:
    """Return a noun phrase for the subject, for example "a small red fish"."""
    size = ""
    if subject.size > 0.34 and rng.uniform() < 0.3:
        size = "big "
    if subject.size < 0.21 and rng.uniform() < 0.3:
        size = "small "
    return with_article(size + pick_word(rng, COLOURS[subject.colour]) + " " + pick_word(rng, KINDS[subject.kind]))


def caption_image(shot: ShotSpec, rng: Rng) -> str:
    """Return a caption of one frame: subjects, colours, scene, sometimes style and the main subject's facing.

    Examples:
        "a red fish over the sea", "in a room, a small blue cat and a pink car, pencil sketch"
    """
    first = describe_subject(shot.things[0], rng)
    if rng.uniform() < 0.3:
        first += " " + FACINGS[shot.things[0].facing]
    elif shot.things[0].kind in VERBS and rng.uniform() < 0.3:
        first += " " + VERBS[shot.things[0].kind]
    return _compose(shot, first, rng)


def caption_clip(shot: ShotSpec, rng: Rng) -> str:
    """Return a caption of a clip: that of an image with the main subject's motion and the camera's."""
    first = describe_subject(shot.things[0], rng)
    motion = pick_word(rng, MOTIONS[shot.things[0].motion])
    verb = VERBS.get(shot.things[0].kind)
    if verb and shot.things[0].motion in ("left", "right") and rng.uniform() < 0.5:
        motion = f"{verb} to the {shot.things[0].motion}"
    caption = _compose(shot, f"{first} {motion}", rng)
    return caption if shot.camera == "still" else f"{caption}, {pick_word(rng, CAMERAS[shot.camera])}"


def _compose(shot: ShotSpec, first: str, rng: Rng) -> str:
    subjects = " and ".join([first, *(describe_subject(subject, rng) for subject in shot.things[1:])])
    scene = pick_word(rng, SCENES[shot.scene])
    style = pick_word(rng, STYLES[shot.style]) if rng.uniform() < 0.7 else "{}"
    place_first = style.startswith("{}") and rng.uniform() < 0.2
    return style.format(f"{scene}, {subjects}" if place_first else f"{subjects} {scene}")
