"""Development and test splits: disjoint from training and from each other, and functions of code and seed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from kineograph_lab.studies import reproduce, splits
from kineograph_lab.studies.protocol import held_out_cases, moving_cases
from kineograph_lab.studies.still_moving.items import customisation_cases, item_of, items
from kineograph_lab.studies.text2video_zero.subjects import dreambooth_subjects
from kineograph_lab.world.painting import COLOURS
from kineograph_lab.world.unseen import unseen_style_renderer, unseen_subject_renderer
from kineograph_lab.world.unseen_subjects import COMPOSED_SUBJECTS, PALETTES
from kineograph_lab.world.world import ShotSpec, Subject, is_held_out, sample_shots

SHOTS = {"images": splits.image_shots, "clips": splits.clip_shots, "references": splits.reference_shots}
COUNT = 300


@pytest.mark.parametrize("kind", SHOTS)
def test_splits_share_no_combination_with_each_other_or_with_training(kind) -> None:
    shots = {split: islice(SHOTS[kind](split), COUNT) for split in splits.SPLITS}
    combinations = {split: {splits.combination(shot) for shot in of_split} for split, of_split in shots.items()}
    assert not combinations[splits.DEVELOPMENT] & combinations[splits.TEST]
    assert all(is_held_out(k, colour=c, scene=s) for each in combinations.values() for k, c, s in each)
    trained = {splits.combination(shot) for shot in islice(sample_shots(3), COUNT)}
    assert not trained & (combinations[splits.DEVELOPMENT] | combinations[splits.TEST])


def test_the_test_split_has_no_combination_of_the_first_development_cases_and_all_of_its_own() -> None:
    fresh = splits.fresh_combinations()
    seen = {splits.combination(case.shot) for case in (*held_out_cases(100), *moving_cases(100))}
    assert len(fresh) > 150 and not fresh & seen
    assert {splits.combination(shot) for shot in islice(splits.image_shots(splits.TEST), len(fresh))} == fresh
    assert {kind for kind, _, _ in fresh} == {kind for kind, _, _ in splits.held_out_combinations()}


@pytest.mark.parametrize("cases", [held_out_cases, moving_cases])
def test_cases_of_a_split_follow_from_code_and_seed(cases) -> None:
    many = {split: cases(30, split) for split in splits.SPLITS}
    for split in splits.SPLITS:
        assert cases(30, split) == many[split] and cases(5, split) == many[split][:5]
        assert {case.split for case in many[split]} == {split}
    assert not {case.seed for case in many[splits.DEVELOPMENT]} & {case.seed for case in many[splits.TEST]}
    assert not {case.prompt for case in many[splits.DEVELOPMENT]} & {case.prompt for case in many[splits.TEST]}
    assert [case.shot for case in cases(4)] == [case.shot for case in many[splits.DEVELOPMENT][:4]]


def test_the_test_split_has_twenty_unseen_subjects_and_eight_styles_of_its_own() -> None:
    for of_split in (splits.unseen_subjects, splits.unseen_styles):
        assert not {*of_split(splits.DEVELOPMENT)} & {*of_split(splits.TEST)}
    assert len(splits.unseen_subjects(splits.TEST)) >= 20 and len(splits.unseen_styles(splits.TEST)) >= 8
    assert not {colour for palette in PALETTES for colour in palette} & {*COLOURS.values()}
    assert len({kind for kind, _ in COMPOSED_SUBJECTS.values()}) == len(COMPOSED_SUBJECTS)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_items_render_unlike_each_other_and_are_found_by_their_cases(split) -> None:
    for name in splits.unseen_subjects(split):
        points = np.concatenate([part.outline for part in splits.unseen_subjects(split)[name][1]()])
        assert np.abs(points).max() < 1.2
    shot = ShotSpec("meadow", "flat", (Subject("fish", "red", 1),))
    images = [unseen_style_renderer(name)(shot, 0.0) for name in splits.unseen_styles(split)]
    images += [unseen_subject_renderer(name)(shot, 0.0) for name in islice(splits.unseen_subjects(split), 4)]
    assert len({image.tobytes() for image in images}) == len(images)
    cases = customisation_cases(1000, split)
    assert [item_of(case).number for case in cases[:: len(cases) // len(items(split))]] == [*range(len(items(split)))]
    assert {case.cluster for case in cases} == {item.number for item in items(split)}


def test_dreambooth_subjects_of_the_test_split_are_twenty_others() -> None:
    development, test = (dreambooth_subjects(split) for split in splits.SPLITS)
    assert len(test) == 20 and len({each.kind for each in test}) == 20
    individuals = [{each.shots[0].things[0].individual for each in subjects} for subjects in (development, test)]
    assert not individuals[0] & individuals[1]


@pytest.mark.parametrize(
    "analysis", [each for studies in reproduce.PAPERS.values() for each, _ in studies], ids=lambda each: each.name
)
def test_every_study_has_cases_of_both_splits(analysis) -> None:
    for split in splits.SPLITS:
        assert {case.split for case in analysis.cases(3, split)} == {split}
