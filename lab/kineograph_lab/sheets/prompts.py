"""Prompts and seeds that follow from a SHA-256 digest, so that nobody chooses them.

Case k of a set is a function of the digest, of the set's name and of the cases before it: with fewer cases, the others
stay. Every 24 successive cases show each kind of subject once. Colours, scenes and motions are any of the world, also
the pairs that training never shows. No prompt is one of the development prompts, on which the models were tuned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kineograph_lab.recipe.long.training import DEVELOPMENT_PROMPTS
from kineograph_lab.world import captions, edits, wide, world
from kineograph_lab.world.captions import Rng, pick_word, with_article
from kineograph_lab.world.world import ShotSpec

PLAIN_SHARE = 0.6  # share of shots in the flat style, which prompts without a style word mean
FOX = "a sks cat"  # the subject of pocket-fox
MAX_SEED = 2**31
MAX_COUNT = 240  # cases of a set, of which all prompts differ


class SheetPrompt(NamedTuple):
    """A prompt, the facts that it names, and what its input is made of.

    shot: the shot that an input image or video is rendered from. image_prompt: the prompt that an input image is
        generated from, in place of a rendered one.
    """

    text: str
    named: Mapping[str, str]
    shot: ShotSpec | None = None
    image_prompt: str = ""


class SheetCase(NamedTuple):
    """A numbered prompt with the seed of its noise; the first number is 1."""

    number: int
    seed: int
    prompt: SheetPrompt


SamplePrompt = Callable[[Rng, str, int], SheetPrompt]  # (rng, kind of subject, number of the case) -> prompt


def sample_sheet_cases(digest: str, name: str, count: int, sample_prompt: SamplePrompt) -> list[SheetCase]:
    """Return the first cases of a set, with different prompts.

    digest: SHA-256 of the weights. name: of the set, so that sets of the same weights have other prompts.
    """
    cases, used = list[SheetCase](), set(DEVELOPMENT_PROMPTS)
    for number in range(1, count + 1):
        rng, kind = _rng(digest, name, number), _kind(digest, name, number)
        prompt = sample_prompt(rng, kind, number)
        while prompt.text in used:
            prompt = sample_prompt(rng, kind, number)
        used.add(prompt.text)
        cases.append(SheetCase(number, int(rng.integers(MAX_SEED)), prompt))
    return cases


def _rng(*words: object) -> Rng:
    text = " ".join(map(str, words))
    return np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest(), 16))


def _kind(digest: str, name: str, number: int) -> str:
    """Return the kind of subject of a case: every 24 cases are a random order of all kinds."""
    turn, place = divmod(number - 1, len(world.SUBJECTS))
    return str(_rng(digest, name, "kinds", turn).permutation(world.SUBJECTS)[place])


def _sample_shot(rng: Rng, kind: str) -> ShotSpec:
    """Return a random shot of a kind of subject, more often in the flat style than others; the camera may pan."""
    shot = world.sample_shot(rng)
    style = (
        "flat" if rng.uniform() < PLAIN_SHARE else str(rng.choice([each for each in world.STYLES if each != "flat"]))
    )
    main = replace(shot.things[0], kind=kind, colour=str(rng.choice(world.COLOURS)))
    return replace(shot, style=style, things=(main, *shot.things[1:]))


def _sample_single(rng: Rng, kind: str) -> ShotSpec:
    """Return a random shot with one subject and a camera that stands still."""
    while len((shot := _sample_shot(rng, kind)).things) > 1:
        pass
    return replace(shot, camera="still")


def sample_image_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return a prompt of an image of one or two subjects."""
    return SheetPrompt(*wide.caption_wide_image(replace(_sample_shot(rng, kind), camera="still"), rng))


def sample_clip_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return a prompt of a moving video of one or two subjects."""
    return SheetPrompt(*wide.caption_wide_clip(_sample_shot(rng, kind), rng))


def sample_animation_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return a prompt of a video that starts from an image: a rendered one, and in even cases a generated one."""
    shot = _sample_single(rng, kind)
    image_prompt = "" if number % 2 else _image_prompt(shot)
    return SheetPrompt(*wide.caption_wide_clip(shot, rng), shot, image_prompt)


def _image_prompt(shot: ShotSpec) -> str:
    """Return a prompt of the shot's image that names kind, colour, facing and scene, and a style that is not flat."""
    main = shot.things[0]
    subject = with_article(f"{captions.COLOURS[main.colour][0]} {captions.KINDS[main.kind][0]}")
    text = f"{subject} {captions.FACINGS[main.facing]} {captions.SCENES[shot.scene][0]}"
    return text if shot.style == "flat" else captions.STYLES[shot.style][0].format(text)


def sample_edit_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return an instruction that edits colour, scene, style and kind of subject, in turn, of a rendered video."""
    shot, aspect = _sample_single(rng, kind), edits.ASPECTS[(number - 1) % len(edits.ASPECTS)]
    edit = edits.sample_edit(rng, aspect, shot, split="held_out")
    after = edit.after.things[0]
    new = {"colour": after.colour, "scene": edit.after.scene, "style": edit.after.style, "thing": after.kind}[aspect]
    return SheetPrompt(edits.edit_instruction(edit, rng), {aspect: new}, shot)


def sample_control_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return a prompt of a rendered video's subject in another colour, scene or style."""
    shot = _sample_single(rng, kind)
    while (shown := _repaint(shot, _sample_single(rng, kind))) == shot:
        pass
    return SheetPrompt(*wide.caption_wide_image(shown, rng), shot)


def _repaint(shot: ShotSpec, other: ShotSpec) -> ShotSpec:
    """Return the shot with colour, scene and style of another one."""
    main = replace(shot.things[0], colour=other.things[0].colour)
    return replace(shot, things=(main,), scene=other.scene, style=other.style)


def sample_fox_prompt(rng: Rng, kind: str, number: int) -> SheetPrompt:
    """Return a prompt of pocket-fox's subject, in each of the motions in turn, in a random scene."""
    motion = world.MOTIONS[(number - 1) % len(world.MOTIONS)]
    scene = str(rng.choice(world.SCENES))
    text = f"{FOX} {pick_word(rng, wide.MOTIONS[motion])} {pick_word(rng, wide.SCENES[scene])}"
    return SheetPrompt(text, {"motion": motion, "scene": scene})
