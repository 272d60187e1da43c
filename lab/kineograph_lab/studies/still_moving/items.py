"""Subjects and styles for customisation that no model of the pocket world was trained on.

Each has a few rendered reference images and some prompts, in other scenes or of other subjects, each with another
motion. Everything follows from the split, the item's number and the prompt's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from kineograph.media.files import replace_atomically
from kineograph.methods import dreambooth
from kineograph.metrics.features import Frames
from kineograph.training.customise.prompts import styled_caption
from kineograph_lab.studies.protocol import Case
from kineograph_lab.studies.splits import DEVELOPMENT, TEST, Split, seed_offset, unseen_styles, unseen_subjects
from kineograph_lab.world import unseen
from kineograph_lab.world.captions import KINDS, MOTIONS, with_article
from kineograph_lab.world.captions import SCENES as WHERE
from kineograph_lab.world.unseen import Renderer
from kineograph_lab.world.world import COLOURS, MOTION_FACINGS, SCENES, SUBJECTS, ShotSpec, Subject, is_held_out

SEED, RARE_TOKEN, STYLE = 61_007, "sks", "flat"  # of all subjects: one of the world's drawing styles
PROMPTS = 10  # of each item of the development split, and the step between the first cases of items
PROMPTS_OF_SPLIT: Mapping[Split, int] = {DEVELOPMENT: PROMPTS, TEST: 4}  # errors are over items: rather more of them
HELD_OUT = 10_000  # first number of the cases that choose a baseline's setting
NUM_REFERENCES = {"subject": 5, "style": 4}
MOVING = tuple(motion for motion in MOTIONS if motion != "still")

Kind = Literal["subject", "style"]


class Reference(NamedTuple):
    """Shot of a reference image, and its caption without the item's name."""

    shot: ShotSpec
    caption: str


class Item(NamedTuple):
    """A subject or a style to customise to.

    name        of the subject or style in the pocket world: "owl", "neon"
    phrase      its name in prompts, an argument of customising: "sks bird", "neon"
    render      renders a shot with it
    references  its reference images
    """

    split: Split
    number: int
    kind: Kind
    name: str
    phrase: str
    render: Renderer
    references: tuple[Reference, ...]

    @property
    def images(self) -> Frames:
        """Reference images, uint8 [n h w 3]."""
        return np.stack([self.render(reference.shot, 0.0) for reference in self.references])

    def prompt(self, content: str) -> str:
        """Return the prompt for content of its kind: "a bird at sea" becomes "a sks bird at sea"."""
        if self.kind == "style":
            return styled_caption(content, self.phrase)
        kind = self.phrase.removeprefix(f"{RARE_TOKEN} ")
        return content.replace(dreambooth.prior_caption(kind), dreambooth.subject_caption(RARE_TOKEN, kind), 1)


def items(split: Split = DEVELOPMENT) -> tuple[Item, ...]:
    """Return subjects and styles in turn while there are both, so that the first few are of both kinds."""
    return _items(split)


@cache
def _items(split: Split) -> tuple[Item, ...]:
    all_items = list[Item]()
    for subject, style in zip_longest(unseen_subjects(split).items(), unseen_styles(split)):
        if subject is not None:
            name, (kind, _) = subject
            renderer = unseen.unseen_subject_renderer(name)
            all_items.append(_item(split, len(all_items), "subject", name, f"{RARE_TOKEN} {kind}", renderer))
        if style is not None:
            renderer = unseen.unseen_style_renderer(style)
            all_items.append(_item(split, len(all_items), "style", style, style, renderer))
    return tuple(all_items)


def _item(split: Split, number: int, kind: Kind, name: str, phrase: str, render: Renderer) -> Item:
    rng = np.random.default_rng((SEED + seed_offset(split), number))
    count = NUM_REFERENCES[kind]
    scenes = rng.permutation(SCENES)[:count]
    subjects = rng.permutation(SUBJECTS)[:count] if kind == "style" else [phrase.split()[1]] * count
    shots = [
        _reference_shot(rng, str(scene), _subject(kind, str(subject), place, COLOURS[(3 * place + 1) % len(COLOURS)]))
        for place, (scene, subject) in enumerate(zip(scenes, subjects, strict=True))
    ]
    return Item(
        split, number, kind, name, phrase, render, tuple(Reference(shot, item_caption(kind, shot)) for shot in shots)
    )


def _subject(kind: Kind, name: str, number: int, colour: str) -> Subject:
    """Return the subject of a shot: for a subject always the same individual, for a style another one each time."""
    return Subject(name, colour, number if kind == "style" else 0, y=0.54)


def _reference_shot(rng: np.random.Generator, scene: str, subject: Subject) -> ShotSpec:
    x, size, facing = rng.uniform(0.42, 0.58), rng.uniform(0.27, 0.36), int(rng.choice((-1, 1)))
    return ShotSpec(scene, STYLE, (replace(subject, x=x, size=size, facing=facing),), backdrop=int(rng.integers(512)))


def item_caption(kind: Kind, shot: ShotSpec, motion: str = "") -> str:
    """Return the caption of a shot in the pocket vocabulary; a customised subject is named by its kind alone."""
    subject = shot.things[0]
    what = f"{subject.colour} {KINDS[subject.kind][0]}" if kind == "style" else KINDS[subject.kind][0]
    return " ".join(filter(None, (with_article(what), motion, WHERE[shot.scene][0])))


def customisation_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return up to `count` cases: all prompts of the first item, then of the second, and so on."""
    return [_case(item, prompt) for item in items(split) for prompt in range(PROMPTS_OF_SPLIT[split])][:count]


def held_out_case(item: Item) -> Case:
    """Return a case of one more prompt of an item."""
    case = _case(item, PROMPTS)
    return replace(case, number=HELD_OUT + item.number)


def item_of(case: Case) -> Item:
    """Return the item of a case."""
    return items(case.split)[case.number - HELD_OUT if case.number >= HELD_OUT else case.number // PROMPTS]


def _case(item: Item, prompt: int) -> Case:
    first_motion = 0 if item.split == DEVELOPMENT else PROMPTS_OF_SPLIT[item.split] * item.number
    motion, scene = MOVING[(first_motion + prompt) % len(MOVING)], SCENES[(3 * prompt + item.number) % len(SCENES)]
    name = item.phrase.split()[1] if item.kind == "subject" else _unused_subjects(item)[prompt]
    subject = _subject(item.kind, name, prompt, _pick_colour(name, scene, prompt))
    shot = ShotSpec(
        scene, STYLE, (replace(subject, facing=MOTION_FACINGS.get(motion, (-1, 1)[prompt % 2]), motion=motion),)
    )
    caption = item_caption(item.kind, shot, MOTIONS[motion][0])
    return Case(PROMPTS * item.number + prompt, item.prompt(caption), shot, item.number, item.split)


def _unused_subjects(item: Item) -> list[str]:
    """Return the subjects that are on none of a style's reference images."""
    used = {reference.shot.things[0].kind for reference in item.references}
    return [
        str(each)
        for each in np.random.default_rng((SEED + seed_offset(item.split), item.number, 1)).permutation(SUBJECTS)
        if each not in used
    ]


def _pick_colour(kind: str, scene: str, prompt: int) -> str:
    """Return a colour that the training set has for this subject and scene."""
    rotated = [COLOURS[(prompt + k) % len(COLOURS)] for k in range(len(COLOURS))]
    return next((each for each in rotated if not is_held_out(kind, colour=each, scene=scene)), rotated[0])


def content(case: Case) -> str:
    """Return a case's caption without the customised subject or style, and without motion."""
    return item_caption(item_of(case).kind, case.shot)


def content_and_motion(case: Case) -> str:
    """Return a case's caption with motion, without the customised words: the prompt for the original model."""
    return item_caption(item_of(case).kind, case.shot, MOTIONS[case.motion][0])


def write_reference_images(item: Item, folder: Path) -> Path:
    """Write the reference images to a folder, a style's with caption files beside them, and return the folder."""
    for number, (reference, pixels) in enumerate(zip(item.references, item.images, strict=True)):
        with replace_atomically(folder / f"{number}.png") as part:
            Image.fromarray(pixels).save(part, "PNG")
        if item.kind == "style":
            with replace_atomically(folder / f"{number}.txt") as part:
                part.write_text(reference.caption)
    return folder
