"""Captions of the pocket world and instructions for its edits."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from kineograph_lab.world import captions, wide, world
from kineograph_lab.world.captions import COLOURS, KINDS
from kineograph_lab.world.edits import ASPECTS, edit_instruction, sample_edit
from kineograph_lab.world.world import ShotSpec, Subject, is_held_out, sample_shot


def test_captions_name_subject_colour_and_scene() -> None:
    rng = np.random.default_rng(0)
    for s in islice(world.sample_shots(3), 200):
        text, main = captions.caption_image(s, rng), s.things[0]
        assert any(word in text for word in captions.KINDS[main.kind])
        assert any(word in text for word in captions.COLOURS[main.colour])
        assert any(word in text for word in captions.SCENES[s.scene])
        assert "  " not in text and "{" not in text


def test_captions_of_clips_name_motion_and_camera() -> None:
    rng = np.random.default_rng(0)
    text = captions.caption_clip(
        ShotSpec("desert", "flat", (Subject("ball", "red", 3, motion="spinning"),), "pan left"), rng
    )
    assert any(word in text for word in captions.MOTIONS["spinning"])
    assert any(word in text for word in captions.CAMERAS["pan left"])


def test_wide_captions_hold_the_words_of_the_facts_they_name() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        shot = wide.sample_wide_shot(rng)
        for of in (wide.caption_wide_image, wide.caption_wide_clip):
            text, named = of(shot, rng)
            main = shot.things[0]
            assert any(word in text for word in KINDS[main.kind])
            assert ("colour" in named) <= any(word in text for word in COLOURS[main.colour])
            assert ("scene" in named) <= any(words in text for words in wide.SCENES[shot.scene])
            assert named.get("facing", "") in text
            assert "  " not in text and "{" not in text and text == text.strip()


def test_a_caption_without_a_style_mostly_means_the_flat_one() -> None:
    rng = np.random.default_rng(2)
    shots = [wide.sample_wide_shot(rng) for _ in range(1500)]
    unnamed = [
        shot.style
        for shot, text in ((shot, wide.caption_wide_image(shot, rng).text) for shot in shots)
        if not any(words.replace("{}", "").strip(", ") in text for forms in wide.STYLES.values() for words in forms)
    ]
    assert unnamed.count("flat") > 0.85 * len(unnamed) > 200


def test_some_captions_are_the_noun_alone_and_half_name_the_facing() -> None:
    rng = np.random.default_rng(3)
    text = [wide.caption_wide_image(wide.sample_wide_shot(rng), rng) for _ in range(1500)]
    assert any(text in ("a fish", "a car", "a cat", "a robot") for text, _ in text)
    assert 0.35 < np.mean(["facing" in named for _, named in text]) < 0.6


def test_the_vocabulary_has_the_words_of_readme_and_docs() -> None:
    words = set(wide.wide_vocabulary())
    words_of_prompt = (
        "a red fish swimming to the right over the sea, rising sinking growing shrinking jumping moving spinning"
    )
    assert set(words_of_prompt.replace(",", "").split()) <= words
    rng = np.random.default_rng(4)
    for _ in range(300):
        text = wide.caption_wide_clip(wide.sample_wide_shot(rng), rng).text
        assert set(text.lower().replace(",", "").split()) <= words


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_edit_changes_one_aspect_and_its_instruction_names_it(aspect) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        edit = sample_edit(rng, aspect, sample_shot(rng), split="train")
        before, after = edit.before, edit.after
        facts = [(shot.things[0].colour, shot.scene, shot.style, shot.things[0].kind) for shot in (before, after)]
        changed = [name for name, one, other in zip(ASPECTS, *facts, strict=True) if one != other]
        assert changed == [aspect] and after.things[1:] == before.things[1:] and after.backdrop == before.backdrop
        main = after.things[0]
        assert not is_held_out(main.kind, colour=main.colour, scene=after.scene)
        words_of_prompt = edit_instruction(edit, rng)
        assert "{" not in words_of_prompt
        if aspect == "colour":
            assert any(word in words_of_prompt for word in COLOURS[main.colour])
        if aspect == "thing":
            assert any(word in words_of_prompt for word in KINDS[main.kind])
