"""What a model is asked about a clip, and how its answers become a caption.

After VidRD (arXiv 2309.03549): a video that has only a label gets its caption from a multimodal model, which is asked
several questions about its key frames, the label among the words; the answers are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from kineograph.data.pipeline.settings import Captions
from kineograph.errors import InputError

Picture = UInt8[np.ndarray, "h w 3"]
Ask = Callable[[Sequence[Picture], str], str]
"""(pictures, a question about them) -> the answer; there may be no pictures. Raises NoAnswer."""

LONGEST = 2000  # characters of an answer
WORDS, OFTEN = 12, 0.5  # an answer of so many words of which one makes up more than this goes round in circles


class NoAnswer(InputError):
    """A model that could not be asked, or answered nonsense; the text says which."""


def caption(pictures: Sequence[Picture], label: str, ask: Ask, merge: Ask | None, told: Captions) -> str:
    """One caption for a clip by its key frames. Raises NoAnswer when one of the questions gets none."""
    answers = [sensible(ask(pictures, question)) for question in questions(told.questions, label)]
    if merge is None or len(answers) == 1:
        return joined(answers)
    listed = "\n".join(f"- {answer}" for answer in answers)
    question = told.merge.replace("{label}", label or "something").replace("{answers}", listed)
    return sensible(merge([], question))


def questions(templates: Sequence[str], label: str) -> list[str]:
    """The questions with the label in them; without one, those that name none."""
    asked = [text.replace("{label}", label) for text in templates if label or "{label}" not in text]
    return asked or [text.replace("{label}", "something") for text in templates]


def sensible(answer: str) -> str:
    """An answer on one line. Raises NoAnswer where it is none: without a word, endless, or going round in circles."""
    text = " ".join(answer.split())
    words = text.lower().split()
    if not any(character.isalpha() for character in text):
        raise NoAnswer(f"the answer {text[:40]!r} has no words")
    if len(text) > LONGEST:
        raise NoAnswer(f"the answer has {len(text)} characters, more than {LONGEST}: {text[:40]!r}...")
    if len(words) >= WORDS and Counter(words).most_common(1)[0][1] > OFTEN * len(words):
        raise NoAnswer(f"the answer goes round in circles: {text[:40]!r}...")
    return text


def joined(answers: Sequence[str]) -> str:
    """Answers one after another, as sentences; what was said twice is said once."""
    sentences = dict.fromkeys(answer if answer[-1] in ".!?" else f"{answer}." for answer in answers)
    return " ".join(sentences)
