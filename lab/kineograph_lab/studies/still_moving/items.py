"""Subjects and styles to customise to, that no model of the pocket world was shown: their stills, prompts and truth.

Of each there are a few rendered stills and ten prompts, in other scenes and of other things, each with another motion.
Everything is decided by the item's number and the prompt's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from kineograph.media.files import replace_atomically
from kineograph.methods import dreambooth
from kineograph.metrics.features import Frames
from kineograph.training.customise import styled_caption
from kineograph_lab.studies.protocol import Case
from kineograph_lab.world import unseen, unseen_subjects
from kineograph_lab.world import unseen as unseen_styles
from kineograph_lab.world.captions import KINDS, MOTIONS, with_article
from kineograph_lab.world.captions import SCENES as WHERE
from kineograph_lab.world.unseen import Renderer
from kineograph_lab.world.world import COLOURS, MOTION_FACINGS, SCENES, SUBJECTS, Shot, Subject, is_held_out

SEED, RARE_TOKEN, STYLE = 61_007, "sks", "flat"  # all subjects in one of the world's drawing styles
PROMPTS = 10  # of each item
HELD_OUT = 10_000  # numbers of the cases by which a baseline's setting is chosen, from here on
NUM_REFERENCES = {"subject": 5, "style": 4}
MOVING = tuple(motion for motion in MOTIONS if motion != "still")

Kind = Literal["subject", "style"]


class Reference(NamedTuple):
    """What a reference picture shows, and its caption, of which the item's name is not a part."""

    shot: Shot
    item_caption: str


class Item(NamedTuple):
    """A subject, "sks bird", or a style, "neon".

    called  what customising is told
    render  how a shot of it is rendered
    stills  its reference pictures
    """

    number: int
    kind: Kind
    name: str
    phrase: str
    render: Renderer
    references: tuple[Reference, ...]

    @property
    def images(self) -> Frames:
        """The reference pictures, uint8 [n h w 3]."""
        return np.stack([self.render(still.shot, 0.0) for still in self.references])

    def prompt(self, content: str) -> str:
        """What asks for it: content is of a thing of its kind, "a bird at sea"."""
        if self.kind == "style":
            return styled_caption(content, self.phrase)
        kind = self.phrase.removeprefix(f"{RARE_TOKEN} ")
        return content.replace(dreambooth.prior_caption(kind), dreambooth.subject_caption(RARE_TOKEN, kind), 1)


@cache
def items() -> tuple[Item, ...]:
    """A subject, a style, a subject, and so on, so that the first few are of both kinds."""
    both = zip(unseen_subjects.UNSEEN_SUBJECTS.items(), unseen_styles.UNSEEN_STYLES, strict=True)
    found = list[Item]()
    for (subject, (kind, _)), style in both:
        found.append(_item(len(found), "subject", subject, f"{RARE_TOKEN} {kind}", unseen.unseen_subject_renderer(subject)))
        found.append(_item(len(found), "style", style, style, unseen.unseen_style_renderer(style)))
    return tuple(found)


def _item(number: int, kind: Kind, name: str, phrase: str, render: Renderer) -> Item:
    rng = np.random.default_rng((SEED, number))
    count = NUM_REFERENCES[kind]
    scenes = rng.permutation(SCENES)[:count]
    shown = rng.permutation(SUBJECTS)[:count] if kind == "style" else [phrase.split()[1]] * count
    shots = [
        _reference_shot(rng, str(scene), _subject(kind, str(subject), place, COLOURS[(3 * place + 1) % len(COLOURS)]))
        for place, (scene, subject) in enumerate(zip(scenes, shown, strict=True))
    ]
    return Item(number, kind, name, phrase, render, tuple(Reference(shot, item_caption(kind, shot)) for shot in shots))


def _subject(kind: Kind, subject: str, number: int, colour: str) -> Subject:
    """The thing of a shot: always the same individual of a subject, another one each time in a style."""
    return Subject(subject, colour, number if kind == "style" else 0, y=0.54)


def _reference_shot(rng: np.random.Generator, scene: str, subject: Subject) -> Shot:
    x, size, facing = rng.uniform(0.42, 0.58), rng.uniform(0.27, 0.36), int(rng.choice((-1, 1)))
    return Shot(scene, STYLE, (replace(subject, x=x, size=size, facing=facing),), backdrop=int(rng.integers(512)))


def item_caption(kind: Kind, shot: Shot, motion: str = "") -> str:
    """What is seen in a shot, in words that the pocket world's models know: of a subject its kind alone."""
    subject = shot.things[0]
    what = f"{subject.colour} {KINDS[subject.kind][0]}" if kind == "style" else KINDS[subject.kind][0]
    return " ".join(filter(None, (with_article(what), motion, WHERE[shot.scene][0])))


def customisation_cases(count: int) -> list[Case]:
    """The first `count` cases: all prompts of the first item, then of the second. No more than there are."""
    return [_case(item, prompt) for item in items() for prompt in range(PROMPTS)][:count]


def held_out_case(item: Item) -> Case:
    """One more prompt of an item."""
    case = _case(item, PROMPTS)
    return Case(HELD_OUT + item.number, case.prompt, case.shot)


def item_of(case: Case) -> Item:
    return items()[case.number - HELD_OUT if case.number >= HELD_OUT else case.number // PROMPTS]


def _case(item: Item, prompt: int) -> Case:
    motion, scene = MOVING[prompt % len(MOVING)], SCENES[(3 * prompt + item.number) % len(SCENES)]
    subject = item.phrase.split()[1] if item.kind == "subject" else _unused_subjects(item)[prompt]
    subject = _subject(item.kind, subject, prompt, _pick_colour(subject, scene, prompt))
    shot = Shot(scene, STYLE, (replace(subject, facing=MOTION_FACINGS.get(motion, (-1, 1)[prompt % 2]), motion=motion),))
    return Case(PROMPTS * item.number + prompt, item.prompt(item_caption(item.kind, shot, MOTIONS[motion][0])), shot)


def _unused_subjects(item: Item) -> list[str]:
    """Things that are on none of a style's reference pictures."""
    shown = {still.shot.things[0].kind for still in item.references}
    return [
        str(each) for each in np.random.default_rng((SEED, item.number, 1)).permutation(SUBJECTS) if each not in shown
    ]


def _pick_colour(kind: str, scene: str, prompt: int) -> str:
    """One in which the world shows this thing."""
    turned = [COLOURS[(prompt + k) % len(COLOURS)] for k in range(len(COLOURS))]
    return next((each for each in turned if not is_held_out(kind, colour=each, scene=scene)), turned[0])


def content(case: Case, motion: Callable[[str], str] = lambda motion: "") -> str:
    """What a case shows, without what was learnt; motion: what is said of how it moves."""
    return item_caption(item_of(case).kind, case.shot, motion(case.motion))


def content_and_motion(case: Case) -> str:
    """The same and how it moves: what a model that was not customised is told."""
    return content(case, lambda motion: MOTIONS[motion][0])


def write_reference_images(item: Item, folder: Path) -> Path:
    """The reference pictures as files, a style's with captions beside them, as a user has them. The folder."""
    for number, (still, pixels) in enumerate(zip(item.references, item.images, strict=True)):
        with replace_atomically(folder / f"{number}.png") as part:
            Image.fromarray(pixels).save(part, "PNG")
        if item.kind == "style":
            with replace_atomically(folder / f"{number}.txt") as part:
                part.write_text(still.item_caption)
    return folder
