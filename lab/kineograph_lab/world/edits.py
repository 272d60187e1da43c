"""Edits of the pocket world: a shot, the same shot with one aspect changed, and instructions for the edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from kineograph_lab.world import wide, world
from kineograph_lab.world.captions import COLOURS, KINDS, SCENES, pick_word, with_article
from kineograph_lab.world.world import ShotSpec, Subject, is_held_out

ASPECTS = ("colour", "scene", "style", "thing")
INSTRUCTIONS_PER_EDIT = 6  # different instructions of an edit
Rng = np.random.Generator

# {kind}: the subject's word, {new}: the value after the edit
TEMPLATES: dict[str, tuple[str, ...]] = {
    "colour": ("make the {kind} {new}", "make it {new}", "paint the {kind} {new}", "turn the {kind} {new}", "change its colour to {new}"),
    "scene": ("put it {new}", "put the {kind} {new}", "move the {kind} {new}", "make it be {new}", "let it be {new}"),
    "style": ("turn it into {new}", "make it {new}", "draw it as {new}", "as {new}"),
    "thing": ("turn the {kind} into {new}", "replace the {kind} with {new}", "swap the {kind} for {new}", "make it {new}", "make the {kind} {new}"),
}  # fmt: skip
SCENE_PHRASES = {"snow": ("make it snow", "let it snow", "make it winter"), "space": ("send it to outer space",), "room": ("bring it indoors",)}  # fmt: skip
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "flat": ("a flat drawing", "a drawing in flat colours"), "cartoon": ("a cartoon", "a drawing with bold outlines"),
    "paper": ("a paper cutout", "a picture cut out of paper"), "sketch": ("a pencil sketch", "a pencil drawing", "a sketch"),
    "clay": ("a clay model", "a model made of clay"),
}  # fmt: skip


class Edit(NamedTuple):
    """The changed aspect (one of ASPECTS) and the shots before and after."""

    aspect: str
    before: ShotSpec
    after: ShotSpec


def sample_edit(rng: Rng, aspect: str, before: ShotSpec, *, split: str) -> Edit:
    """Return the shot with another colour, scene, style or kind of its main subject, all else unchanged.

    split: "train" never makes a held-out pair of subject and colour, or of subject and scene; "held_out" changes to any
        value.
    """
    main = before.things[0]
    choices = {
        "colour": [_with_main(before, replace(main, colour=value)) for value in world.COLOURS if value != main.colour],
        "scene": [replace(before, scene=value) for value in world.SCENES if value != before.scene],
        "style": [replace(before, style=value) for value in world.STYLES if value != before.style],
        "thing": [_with_main(before, replace(main, kind=value)) for value in world.SUBJECTS if value != main.kind],
    }[aspect]
    allowed = [shot for shot in choices if split == "held_out" or not _held_out(shot)]
    return Edit(aspect, before, allowed[int(rng.integers(len(allowed)))])


def _with_main(shot: ShotSpec, main: Subject) -> ShotSpec:
    return replace(shot, things=(main, *shot.things[1:]))


def _held_out(shot: ShotSpec) -> bool:
    return is_held_out(shot.things[0].kind, colour=shot.things[0].colour, scene=shot.scene)


def edit_instruction(edit: Edit, rng: Rng) -> str:
    """Return an instruction for the edit, for example "turn the fish into a cat" or "make it snow"."""
    main, new = edit.before.things[0], edit.after.things[0]
    phrases = {
        "colour": COLOURS[new.colour],
        "scene": SCENES[edit.after.scene],
        "style": STYLE_PHRASES[edit.after.style],
        "thing": [with_article(word) for word in KINDS[new.kind]],
    }[edit.aspect]
    if edit.aspect == "scene" and edit.after.scene in SCENE_PHRASES and rng.uniform() < 0.3:
        return _pick(rng, SCENE_PHRASES[edit.after.scene])
    return _pick(rng, TEMPLATES[edit.aspect]).format(kind=pick_word(rng, KINDS[main.kind]), new=pick_word(rng, phrases))


def instruction_phrases() -> list[str]:
    """Return the forms of instructions; "..." stands for a subject, a colour, a scene or a style."""
    tables = (*TEMPLATES.values(), *SCENE_PHRASES.values(), *STYLE_PHRASES.values())
    texts = [text.replace("{kind}", "...").replace("{new}", "...") for texts in tables for text in texts]
    return list(dict.fromkeys(texts))


def _pick(rng: Rng, texts: Sequence[str]) -> str:
    return texts[int(rng.integers(len(texts)))]


def edit_family(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return five images, a shot and its four edits, and instructions for each edit and for its reverse."""
    return render_edit_family(world.sample_shot(rng, split=split), rng, split)


def wide_edit_family(rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a family whose shot is of the wider distribution."""
    return render_edit_family(wide.sample_wide_shot(rng, split), rng, split)


def render_edit_family(before: ShotSpec, rng: Rng, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the family of this shot."""
    time = 0.0 if rng.uniform() < 0.5 else rng.uniform(-0.9, 0.9)
    edits = [sample_edit(rng, aspect, before, split=split) for aspect in ASPECTS]
    shots = [before, *(edit.after for edit in edits)]
    back = [Edit(edit.aspect, edit.after, edit.before) for edit in edits]
    return np.stack([world.render(shot, time) for shot in shots]), {
        "shots": [{**asdict(shot), "time": time} for shot in shots],
        "there": [[edit_instruction(edit, rng) for _ in range(INSTRUCTIONS_PER_EDIT)] for edit in edits],
        "back": [[edit_instruction(edit, rng) for _ in range(INSTRUCTIONS_PER_EDIT)] for edit in back],
    }
