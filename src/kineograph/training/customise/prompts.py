"""Words and captions of a subject or style, and default prompts of generated images and natural videos."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kineograph.errors import InputError, InputWarning
from kineograph.methods import dreambooth
from kineograph.models.model import Model
from kineograph.training.customise.image_data import Photo

# A model that comes with a vocabulary is prompted only with those of these texts whose words it knows.
PLACES = (
    "in the snow", "on the beach", "in a forest", "in a city", "over the sea", "in a meadow", "in the desert",
    "in a room", "in the street at night", "on a wooden floor", "in front of a mountain", "in the rain",
    "in a garden", "on a bridge", "in a kitchen", "among the stars",
)  # fmt: skip
CONTENTS = (
    "a cat", "a house", "a tree", "a car", "a fish", "a boat", "a bird", "a woman", "a mushroom", "a robot", "a flower",
    "a dog", "a rabbit", "a man", "a mountain", "a rocket", "a bicycle", "a butterfly", "a castle", "a turtle",
)  # fmt: skip
MOVING_CONTENTS = (
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
BEFORE_PLACE = re.compile(r" (?=(?:in|on|over|under|at|among) )")


def known_motions(model: Model) -> list[str]:
    """Return the words for motion that the model knows."""
    return _known(model, MOTIONS)


def with_motions(caption: str, motions: Sequence[str]) -> list[str]:
    """Return an image's caption, then the same with a motion, for each motion; the caption alone if there are none.

    For example "a fish in the sea", "a fish rising in the sea".
    """
    content, *where = BEFORE_PLACE.split(caption, maxsplit=1)
    return [each for motion in motions for each in (caption, " ".join([content, motion, *where]))] or [caption]


def still_prompts(model: Model, words: CustomisationWords, count: int) -> list[str]:
    """Return `count` prompts of images: a subject, or several contents in a style, alone and in several places."""
    places = ["", *_known(model, PLACES)]
    if words.name.endswith(" style"):
        contents = [f"{each} in {words.name}" for each in _combine(_known(model, CONTENTS), places)]
        return repeat_to(contents or [words.captions[0]], count)
    return repeat_to([*_combine([dreambooth.subject_caption(*words.name.split(maxsplit=1))], places)], count)


def natural_video_prompts(model: Model, count: int) -> list[str]:
    """Return `count` prompts of natural videos: many contents in many motions and places."""
    return repeat_to([*_combine(_known(model, MOVING_CONTENTS), _known(model, PLACES))], count)


def _combine(contents: Sequence[str], places: Sequence[str]) -> Iterator[str]:
    """Yield every content in every place, the places rotated from one content to the next; "" stands for no place."""
    for turn in range(len(places)):
        for number, content in enumerate(contents):
            yield f"{content} {places[(number + turn) % len(places)]}".rstrip()


def _known(model: Model, texts: Iterable[str]) -> list[str]:
    return [each for each in texts if not model.unknown_words(each)]


def repeat_to(texts: Sequence[str], count: int) -> list[str]:
    """Return `count` texts, repeated in turn; none if there are none."""
    return [texts[number % len(texts)] for number in range(count)] if texts else []


# Words without a meaning, the usual one first. CLIP reads "sks" as one token, of the rarest; the pocket model's
# tokenizer as three, of letters that no caption of its world had in a row.
RARE_WORDS = ("sks", "zwx", "xjy", "ohwx", "qvz")
DEFAULT_CAPTION = "a picture"  # of a style's image without a caption


class CustomisationWords(NamedTuple):
    """Name of the subject or style in prompts, and the captions of its images.

    prior: captions of the prior's images: of others of the subject's class, or of the style's contents.
    new: words that are added to the model's vocabulary.
    """

    name: str
    captions: tuple[str, ...]
    prior: tuple[str, ...]
    new: tuple[str, ...]


def subject_words(model: Model, subject: str, photos: Sequence[Photo]) -> CustomisationWords:
    """Return the words of a subject, "sks dog": a rare word and the class; before a class alone a rare word is put.

    Raises InputError for a subject without a class, and for captions that do not name it. Warns (InputWarning) of a
    rare word that has a meaning to the model already, and of a class that has none.
    """
    word, kind = _split_subject(model, subject)
    if knows_word(model, word):
        _warn(
            f"{model.name} knows the word {word!r} already, and would unlearn its meaning: put a rare word in front, "
            f"such as {rare_word(model)!r}"
        )
    if unknown := model.unknown_words(kind):
        _warn(f"{model.name} does not know the words {', '.join(unknown)}: name a class that it knows")
    default = dreambooth.subject_caption(word, kind)
    captions = tuple(photo.caption or default for photo in photos)
    for photo, each in zip(photos, captions, strict=True):
        check_prompt_contains(f"{word} {kind}", each, f"the caption of {photo.name}")
    return CustomisationWords(f"{word} {kind}", captions, (dreambooth.prior_caption(kind),), (word,))


def style_words(model: Model, style: str, photos: Sequence[Photo]) -> CustomisationWords:
    """Return the words of a style, "watercolour painting": "a fish" becomes "a fish in watercolour painting style".

    A caption that names the style is not changed. Raises InputError for a style without words. Warns (InputWarning)
    of images without a caption, whose contents may be learnt as a part of the style.
    """
    name = style.strip().removesuffix("style").strip()
    if not name:
        raise InputError(f"the style is called {style!r}: name it in a word or two, such as 'watercolour painting'")
    uncaptioned = [photo.name for photo in photos if photo.caption is None]
    if uncaptioned:
        named = f"{', '.join(uncaptioned[:3])}{' and others' if len(uncaptioned) > 3 else ''}"
        _warn(f"{named} have no caption beside (a.txt for a.jpg): their contents may be learnt as a part of the style")
    given = [photo.caption or DEFAULT_CAPTION for photo in photos]
    bare = [each for each in given if name.lower() not in each.lower()]
    captions = tuple(styled_caption(each, name) if each in bare else each for each in given)
    return CustomisationWords(f"{name} style", captions, tuple(dict.fromkeys(bare)), tuple(model.unknown_words(name)))


def styled_caption(content: str, style: str) -> str:
    """Return the caption of a content in a style (StyleDrop, Sohn et al. 2023, section 3.2)."""
    return f"{content} in {style} style"


def check_prompt_contains(name: str, prompt: str, what: str = "the prompt") -> None:
    """Raise InputError unless a prompt contains the name of the subject or style."""
    if name.lower() not in " ".join(prompt.lower().split()):
        raise InputError(f"{what} does not contain {name!r}, the name of the subject or style: {prompt!r}. Add it")


def rare_word(model: Model) -> str:
    """Return a word without meaning to the model: of those with the fewest tokens, the most usual one."""
    free = [word for word in RARE_WORDS if not knows_word(model, word)]
    if not free:
        raise InputError(
            f"{model.name} knows {', '.join(RARE_WORDS)}: put a word that it does not know before the class"
        )
    return min(free, key=lambda word: len(_tokens(model, word)))


def knows_word(model: Model, word: str) -> bool:
    """Return True if a word has a meaning to the model: by its vocabulary, or as one of the more frequent tokens.

    Byte-pair encodings number tokens by frequency: CLIP's "sks" is 48136 of 49408.
    """
    if model.vocabulary is not None:
        return not model.unknown_words(word)
    tokens = _tokens(model, word)
    return len(tokens) == 1 and tokens[0] < len(model.text_encoders[0].tokenizer) / 2


def _tokens(model: Model, word: str) -> list[int]:
    """Return the ids of a word's tokens, without start and end tokens."""
    return list(model.text_encoders[0].tokenizer(word).input_ids[1:-1])


def _split_subject(model: Model, subject: str) -> tuple[str, str]:
    words = subject.split()
    if not words:
        raise InputError("the subject is empty: name a rare word and the class, such as 'sks dog', or the class alone")
    if len(words) == 1 and words[0].lower() in RARE_WORDS:
        raise InputError(f"the subject is called {subject!r}, without its class: say what it is, '{words[0]} dog'")
    return (rare_word(model), words[0]) if len(words) == 1 else (words[0], " ".join(words[1:]))


def _warn(text: str) -> None:
    warnings.warn(text, InputWarning, stacklevel=4)
