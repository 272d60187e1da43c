"""Edits of the pocket world, and the eye that judges control: what they learn from is what it says."""

from itertools import count

import numpy as np
import pytest
import torch

from kineograph_lab.judge import geometry
from kineograph_lab.judge.training import is_inside_frame
from kineograph_lab.recipe import pool as feed
from kineograph_lab.recipe.image import edit
from kineograph_lab.recipe.networks import build_tokenizer
from kineograph_lab.world.captions import COLOURS, KINDS
from kineograph_lab.world.edits import ASPECTS, edit_family, edit_instruction, instruction_words, sample_edit
from kineograph_lab.world.world import is_held_out, sample_shot


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_edit_changes_one_thing_and_says_so(aspect):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = sample_edit(rng, aspect, sample_shot(rng), split="train")
        before, after = made.before, made.after
        facts = [(shot.things[0].colour, shot.scene, shot.style, shot.things[0].kind) for shot in (before, after)]
        changed = [name for name, one, other in zip(ASPECTS, *facts, strict=True) if one != other]
        assert changed == [aspect] and after.things[1:] == before.things[1:] and after.backdrop == before.backdrop
        main = after.things[0]
        assert not is_held_out(main.kind, colour=main.colour, scene=after.scene)
        said = edit_instruction(made, rng)
        assert "{" not in said
        if aspect == "colour":
            assert any(word in said for word in COLOURS[main.colour])
        if aspect == "thing":
            assert any(word in said for word in KINDS[main.kind])


def test_pairs_go_there_and_back(tmp_path):
    families = feed.load_pool(tmp_path, 3, seed=0, split="train", paint=edit_family)
    said = [text for fact in families.facts for way in ("there", "back") for each in fact[way] for text in each]
    tokens = build_tokenizer(said)
    found, flat = edit.edit_pairs(families, tokens), edit.flatten_families(families)
    assert flat.items.shape == (15, 128, 128, 3) and len(flat.facts) == 15
    assert len(found.before) == len(found.after) == len(found.words) == 2 * 3 * len(ASPECTS)
    assert found.before[:4].tolist() == [0] * 4 and found.after[:4].tolist() == [1, 2, 3, 4]
    assert found.before[12:16].tolist() == [1, 2, 3, 4] and found.after[12:16].tolist() == [0] * 4
    read = tokens.batch_decode(found.words[5, :1].astype(int), skip_special_tokens=True)[0]
    assert read.replace(" ", "") == families.facts[1]["there"][1][0].replace(" ", "")
    assert "snow" in " ".join(instruction_words())


def test_the_geometry_eye_finds_depth_and_points():
    known = []
    for number in count():
        picture, fact = feed.random_image(np.random.default_rng(number), "held_out")
        if is_inside_frame(fact):
            known.append((picture, fact))
        if len(known) == 16:
            break
    pool = feed.Pool(np.stack([picture for picture, _ in known]), [fact for _, fact in known])
    wanted, found = geometry.ground_truth_geometry(pool), geometry.load_geometry_network().look(pool.items)
    assert np.abs(found.depth - wanted.depth).mean() < 0.06
    assert np.linalg.norm(found.points - wanted.points, axis=-1).mean() < 0.1  # of a star, which end is the front?


def test_the_middle_of_a_heat_is_where_it_is():
    heat = torch.full((1, 5, 32, 32), -100.0)
    heat[:, :, 8, 24] = 100.0
    torch.testing.assert_close(geometry.soft_argmax(heat)[0, 0], torch.tensor([24.5 / 32, 8.5 / 32]))
