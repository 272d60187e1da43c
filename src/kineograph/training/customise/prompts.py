"""What a customised model's stills show, and the natural videos that a video model draws itself, unless one says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kineograph.errors import InputError, InputWarning
from kineograph.methods import dreambooth
from kineograph.models.model import Model
from kineograph.training.customise.photos import Photo

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


def known_motions(model: Model) -> list[str]:
    """Words for motion that the model knows."""
    return _known(model, MOTIONS)


def with_motions(caption: str, moving: Sequence[str]) -> list[str]:
    """A picture's caption in turn with those of videos that it could be of: "a fish in the sea", "a fish rising in the
    sea"; the caption alone where nothing moves."""
    thing, *where = PLACE.split(caption, maxsplit=1)
    return [each for motion in moving for each in (caption, " ".join([thing, motion, *where]))] or [caption]


def still_prompts(model: Model, words: Words, count: int) -> list[str]:
    """What so many stills show: a subject, or several things in a style, alone and in several places."""
    places = ["", *_known(model, PLACES)]
    if words.name.endswith(" style"):
        things = [f"{each} in {words.name}" for each in _met(_known(model, CONTENTS), places)]
        return repeat_to(things or [words.captions[0]], count)
    return repeat_to([*_met([dreambooth.subject_caption(*words.name.split(maxsplit=1))], places)], count)


def natural_video_prompts(model: Model, count: int) -> list[str]:
    """What so many natural videos show: many things that move in many ways and places."""
    return repeat_to([*_met(_known(model, MOVING), _known(model, PLACES))], count)


def _met(things: Sequence[str], places: Sequence[str]) -> Iterator[str]:
    """Each thing in each place, another place each time; the place "" is none."""
    for turn in range(len(places)):
        for number, thing in enumerate(things):
            yield f"{thing} {places[(number + turn) % len(places)]}".rstrip()


def _known(model: Model, texts: Iterable[str]) -> list[str]:
    return [each for each in texts if not model.unknown_words(each)]


def repeat_to(texts: Sequence[str], count: int) -> list[str]:
    """So many of them, in turn; none of none."""
    return [texts[number % len(texts)] for number in range(count)] if texts else []


# Words that nobody uses, the usual one first. CLIP reads "sks" as one token, of the rarest; the pocket model's
# tokenizer as three, of letters that no caption of its world had in a row.
RARE = ("sks", "zwx", "xjy", "ohwx", "qvz")
CONTENT = "a picture"  # of a style's picture that has no caption


class CustomisationWords(NamedTuple):
    """What asks for what is learnt, and what each of its pictures is told.

    prior: what is told of pictures that do not show it: of others of a subject's class, of a style's contents.
    new: the words that the model gets to know.
    """

    name: str
    captions: tuple[str, ...]
    prior: tuple[str, ...]
    new: tuple[str, ...]


def subject_words(model: Model, subject: str, photos: Sequence[Photo]) -> CustomisationWords:
    """Of a subject, "sks dog": a rare word and the class; of a class alone, "dog", a rare word is put in front.

    Raises InputError for a subject without a class, and for captions that never name it. Warns (InputWarning) of a
    word that means something to the model already, and of a class that means nothing to it.
    """
    word, kind = _split(model, subject)
    if knows_word(model, word):
        _warn(
            f"{model.name} knows the word {word!r} already, and would unlearn what it means: put a rare one in front, "
            f"such as {rare_word(model)!r}"
        )
    if unknown := model.unknown_words(kind):
        _warn(f"{model.name} has never seen the words {', '.join(unknown)}: name a class that it knows")
    usual = dreambooth.subject_caption(word, kind)
    captions = tuple(photo.caption or usual for photo in photos)
    for photo, each in zip(photos, captions, strict=True):
        check_prompt_contains(f"{word} {kind}", each, f"the caption of {photo.name}")
    return CustomisationWords(f"{word} {kind}", captions, (dreambooth.prior_caption(kind),), (word,))


def style_words(model: Model, style: str, photos: Sequence[Photo]) -> CustomisationWords:
    """Of a style, "watercolour painting": "a fish in watercolour painting style", where the caption is "a fish".

    A caption that names the style is left as it is. Raises InputError for a style without words. Warns (InputWarning)
    of pictures without a caption, whose contents will be taken for a part of the style.
    """
    name = style.strip().removesuffix("style").strip()
    if not name:
        raise InputError(f"the style is called {style!r}: name it in a word or two, such as 'watercolour painting'")
    silent = [photo.name for photo in photos if photo.caption is None]
    if silent:
        named = f"{', '.join(silent[:3])}{' and others' if len(silent) > 3 else ''}"
        _warn(f"{named} have no caption beside (a.txt for a.jpg): what they show may be taken for a part of the style")
    said = [photo.caption or CONTENT for photo in photos]
    bare = [each for each in said if name.lower() not in each.lower()]
    captions = tuple(styled_caption(each, name) if each in bare else each for each in said)
    return CustomisationWords(f"{name} style", captions, tuple(dict.fromkeys(bare)), tuple(model.unknown_words(name)))


def styled_caption(content: str, style: str) -> str:
    """What asks for something in a style (StyleDrop, Sohn et al. 2023, section 3.2)."""
    return f"{content} in {style} style"


def check_prompt_contains(name: str, prompt: str, what: str = "the prompt") -> None:
    """Raises InputError unless a prompt names what was learnt, which it would not draw otherwise."""
    if name.lower() not in " ".join(prompt.lower().split()):
        raise InputError(f"{what} never says {name!r}, which stands for what was learnt: {prompt!r}. Put it there")


def rare_word(model: Model) -> str:
    """A word that means nothing to the model: of those that it reads as the fewest tokens, the most usual one."""
    free = [word for word in RARE if not knows_word(model, word)]
    if not free:
        raise InputError(f"{model.name} knows {', '.join(RARE)}: put a word that it does not know before the class")
    return min(free, key=lambda word: len(_tokens(model, word)))


def knows_word(model: Model, word: str) -> bool:
    """Whether a word means something to the model: by its list of words, or the more frequent half of its tokens.

    Byte-pair encodings number the tokens by how frequent they were, so CLIP's "sks" is 48136 of 49408.
    """
    if model.vocabulary is not None:
        return not model.unknown_words(word)
    tokens = _tokens(model, word)
    return len(tokens) == 1 and tokens[0] < len(model.text[0].tokenizer) / 2


def _tokens(model: Model, word: str) -> list[int]:
    """The numbers of a word's tokens, without the marks of start and end."""
    return list(model.text[0].tokenizer(word).input_ids[1:-1])


def _split(model: Model, subject: str) -> tuple[str, str]:
    words = subject.split()
    if not words:
        raise InputError("the subject is empty: name a rare word and the class, such as 'sks dog', or the class alone")
    if len(words) == 1 and words[0].lower() in RARE:
        raise InputError(f"the subject is called {subject!r}, without its class: say what it is, '{words[0]} dog'")
    return (rare_word(model), words[0]) if len(words) == 1 else (words[0], " ".join(words[1:]))


def _warn(text: str) -> None:
    warnings.warn(text, InputWarning, stacklevel=4)
