"""Development and test splits of the pocket world: shots, seeds, subjects and styles.

No generative model was trained on either. Tuning may look at the development split, whose first cases are those of all
reports before December 2026; nothing but the measurement of a locked study may look at the test split. Both follow from
code and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import count, islice, product
from typing import Literal

import numpy as np

from kineograph_lab.world.shapes import Part
from kineograph_lab.world.unseen import COMPOSED_STYLES, UNSEEN_STYLES
from kineograph_lab.world.unseen_subjects import COMPOSED_SUBJECTS, UNSEEN_SUBJECTS
from kineograph_lab.world.world import COLOURS, SCENES, SUBJECTS, ShotSpec, is_held_out, sample_shot, sample_shots

Split = Literal["development", "test"]
Combination = tuple[str, str, str]  # kind, colour and scene

DEVELOPMENT: Split = "development"
TEST: Split = "test"
SPLITS = (DEVELOPMENT, TEST)
SHOT_SEED, TEST_SHOT_SEED = 20231, 2_023_101  # of the shots of images; those of clips have one more, of references two
NUM_SEEN = 100  # development shots of each kind that reports and tuning have seen
TEST_SEED_OFFSET = 1_000_000  # added to the seeds of noise, captions and individuals


def held_out_combinations() -> list[Combination]:
    """Return all combinations of kind, colour and scene that training never shows."""
    every = product(SUBJECTS, COLOURS, SCENES)
    return [(kind, colour, scene) for kind, colour, scene in every if is_held_out(kind, colour=colour, scene=scene)]


def combination(shot: ShotSpec) -> Combination:
    """Return the combination of a shot's main subject."""
    return shot.things[0].kind, shot.things[0].colour, shot.scene


@cache
def fresh_combinations() -> frozenset[Combination]:
    """Return the held-out combinations of the test split: those that no development case had when it was set up."""
    seen = {combination(shot) for shots in (_images(), _clips()) for shot in islice(shots, NUM_SEEN)}
    return frozenset(held_out_combinations()) - seen


def image_shots(split: Split) -> Iterator[ShotSpec]:
    """Yield shots of one subject without end, for captions of images."""
    return _test_shots(TEST_SHOT_SEED) if split == TEST else _without_fresh_combinations(_images())


def clip_shots(split: Split) -> Iterator[ShotSpec]:
    """Yield shots of one moving subject before a still camera without end, for captions of clips."""
    return _test_shots(TEST_SHOT_SEED + 1) if split == TEST else _without_fresh_combinations(_clips())


def reference_shots(split: Split) -> Iterator[ShotSpec]:
    """Yield shots of clips without end for a set of real videos: the split's combinations, but of no case."""
    if split == TEST:
        return _test_shots(TEST_SHOT_SEED + 2)
    return _without_fresh_combinations(_of_one_subject(SHOT_SEED + 2, still_camera=True))


def seed_offset(split: Split) -> int:
    """Return what is added to the seeds of a split."""
    return TEST_SEED_OFFSET if split == TEST else 0


def unseen_subjects(split: Split) -> Mapping[str, tuple[str, Callable[[], list[Part]]]]:
    """Return the subjects to customise to, by name: the kind that each is called by, and its parts."""
    return COMPOSED_SUBJECTS if split == TEST else UNSEEN_SUBJECTS


def unseen_styles(split: Split) -> list[str]:
    """Return the names of the styles to customise to."""
    return [*(COMPOSED_STYLES if split == TEST else UNSEEN_STYLES)]


def _images() -> Iterator[ShotSpec]:
    return _of_one_subject(SHOT_SEED, still_camera=False)


def _clips() -> Iterator[ShotSpec]:
    return _of_one_subject(SHOT_SEED + 1, still_camera=True)


def _of_one_subject(seed: int, *, still_camera: bool) -> Iterator[ShotSpec]:
    shots = sample_shots(seed, split="held_out")
    return (each for each in shots if len(each.things) == 1 and (each.camera == "still" or not still_camera))


def _without_fresh_combinations(shots: Iterator[ShotSpec]) -> Iterator[ShotSpec]:
    return (shot for shot in shots if combination(shot) not in fresh_combinations())


def _test_shots(seed: int) -> Iterator[ShotSpec]:
    """Yield a shot of every test combination in random order, then one of each in another order, and so on."""
    for turn in count():
        rng = np.random.default_rng((seed, turn))
        for kind, colour, scene in rng.permutation(sorted(fresh_combinations())).tolist():
            shot = next(each for each in _random_shots(rng) if len(each.things) == 1)
            main = replace(shot.things[0], kind=kind, colour=colour)
            yield replace(shot, scene=scene, things=(main,), camera="still")


def _random_shots(rng: np.random.Generator) -> Iterator[ShotSpec]:
    while True:
        yield sample_shot(rng, split="held_out")
