"""What a customised model's stills show, and the natural videos that a video model draws itself, unless one says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kineograph.methods import dreambooth
from kineograph.models.model import Model
from kineograph.recipes.customising.words import Words

# Of all that is listed here, a model that comes with a list of its words is told what it knows.
PLACES = (
    "in the snow", "on the beach", "in a forest", "in a city", "over the sea", "in a meadow", "in the desert",
    "in a room", "in the street at night", "on a wooden floor", "in front of a mountain", "in the rain",
    "in a garden", "on a bridge", "in a kitchen", "among the stars",
)  # fmt: skip
CONTENTS = (
    "a cat", "a house", "a tree", "a car", "a fish", "a boat", "a bird", "a woman", "a mushroom", "a robot", "a flower",
    "a dog", "a rabbit", "a man", "a mountain", "a rocket", "a bicycle", "a butterfly", "a castle", "a turtle",
)  # fmt: skip
MOVING = (
    "a fish swimming", "a dog running", "a bird flying", "a car driving", "a tree swaying", "a boat sailing",
    "a woman walking", "a ball bouncing", "a butterfly flying", "a horse galloping", "a flower swaying",
    "a cat moving to the left", "a man dancing", "a rabbit hopping up and down", "a truck driving", "a robot spinning",
    "a balloon rising", "a child playing", "a turtle moving to the right", "a star spinning", "a whale swimming",
    "an airplane flying", "a bicycle rolling", "a kite circling",
)  # fmt: skip
MOTIONS = (
    "moving to the left", "moving to the right", "rising", "sinking", "growing", "shrinking", "spinning",
    "moving in a circle",
)  # fmt: skip
PLACE = re.compile(r" (?=(?:in|on|over|under|at|among) )")


def motions(model: Model) -> list[str]:
    """Words for motion that the model knows."""
    return _known(model, MOTIONS)


def in_motion(caption: str, moving: Sequence[str]) -> list[str]:
    """A picture's caption in turn with those of videos that it could be of: "a fish in the sea", "a fish rising in the
    sea"; the caption alone where nothing moves."""
    thing, *where = PLACE.split(caption, maxsplit=1)
    return [each for motion in moving for each in (caption, " ".join([thing, motion, *where]))] or [caption]


def of_stills(model: Model, words: Words, count: int) -> list[str]:
    """What so many stills show: a subject, or several things in a style, alone and in several places."""
    places = ["", *_known(model, PLACES)]
    if words.name.endswith(" style"):
        things = [f"{each} in {words.name}" for each in _met(_known(model, CONTENTS), places)]
        return repeated(things or [words.captions[0]], count)
    return repeated([*_met([dreambooth.caption(*words.name.split(maxsplit=1))], places)], count)


def of_videos(model: Model, count: int) -> list[str]:
    """What so many natural videos show: many things that move in many ways and places."""
    return repeated([*_met(_known(model, MOVING), _known(model, PLACES))], count)


def _met(things: Sequence[str], places: Sequence[str]) -> Iterator[str]:
    """Each thing in each place, another place each time; the place "" is none."""
    for turn in range(len(places)):
        for number, thing in enumerate(things):
            yield f"{thing} {places[(number + turn) % len(places)]}".rstrip()


def _known(model: Model, texts: Iterable[str]) -> list[str]:
    return [each for each in texts if not model.unknown_words(each)]


def repeated(texts: Sequence[str], count: int) -> list[str]:
    """So many of them, in turn; none of none."""
    return [texts[number % len(texts)] for number in range(count)] if texts else []
