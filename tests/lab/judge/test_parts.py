"""The judge of anatomy: its rule on true maps, its training data, its losses and its metric."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from tiny_metrics import decoded

from kineograph_lab.judge import parts_training
from kineograph_lab.judge.corruption import CORRUPTIONS, corrupt, is_apart
from kineograph_lab.judge.metrics import judge_metric, parse_kinds
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.judge.parts import (
    WEIGHTS,
    FoundParts,
    PartCentre,
    PartsNetwork,
    Piece,
    are_parts_right,
    find_peaks,
    load_parts_network,
    locate_parts,
    parts_right,
    true_parts,
)
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.world import wide, world
from kineograph_lab.world.anatomy import frame_anatomy, shot_anatomy
from kineograph_lab.world.shapes import PART_NAMES
from kineograph_lab.world.world import ShotSpec, Subject

FISH = Counter({"body": 1, "tail": 1, "eye": 1, "fin": 2})


def kinds_of(shot: ShotSpec) -> list[str]:
    return [subject.kind for subject in shot.things]


def test_the_true_parts_of_all_renderings_are_right() -> None:
    for seed in range(300):
        rng = np.random.default_rng((11, seed))
        shot = wide.sample_wide_shot(rng)
        time = 0.0 if seed % 4 or any(wide.is_cut_off(each) for each in shot.things) else rng.uniform(-0.9, 0.9)
        assert are_parts_right(true_parts(shot_anatomy(shot, time)), kinds_of(shot)), (seed, time)


def test_the_true_parts_of_no_corrupted_rendering_are_right() -> None:
    right = defaultdict[str, list[bool]](list)
    for seed in range(150):
        rng = np.random.default_rng((12, seed))
        shot, way = wide.sample_wide_shot(rng), CORRUPTIONS[seed % 3]
        corrupted = corrupt(shot, rng, way) if is_apart(shot_anatomy(shot)) else None
        if corrupted and is_apart(anatomy := frame_anatomy(shot, corrupted[0])):
            right[way].append(are_parts_right(true_parts(anatomy), kinds_of(shot)))
    assert min(len(right[way]) for way in CORRUPTIONS) > 20
    assert not any(any(each) for each in right.values())


def piece(parts: Counter[str] = FISH, *, cells: int = 600, x: float = 32, is_cut_off: bool = False) -> Piece:
    return Piece(cells, x, is_cut_off, parts)


@pytest.mark.parametrize(
    ("pieces", "outside", "expected"),
    [
        ([piece()], 0, True),
        ([], 0, False),
        ([piece()], 1, False),
        ([piece(FISH + Counter({"tail": 1}))], 0, False),
        ([piece(FISH - Counter({"eye": 1}))], 0, False),
        ([piece(FISH + Counter({"wheel": 1}))], 0, False),
        ([piece(), piece(Counter({"eye": 1}), cells=8)], 0, False),
        ([piece(FISH - Counter({"tail": 1}), is_cut_off=True)], 0, True),
        ([piece(FISH + Counter({"tail": 1}), is_cut_off=True)], 0, False),
        ([piece(FISH - Counter({"eye": 1}), cells=60)], 0, True),  # too small for eyes
    ],
)
def test_the_rule_for_a_fish(pieces, outside, expected) -> None:
    assert are_parts_right(FoundParts(pieces, outside), ["fish"]) is expected


def test_the_rule_for_two_subjects() -> None:
    car = Counter({"body": 1, "wheel": 2, "window": 2})
    apart = [piece(x=15), piece(car, x=50)]
    assert are_parts_right(FoundParts(apart, 0), ["fish", "car"])
    assert not are_parts_right(FoundParts([piece(FISH - Counter({"eye": 1}), x=15), apart[1]], 0), ["fish", "car"])
    touching = piece(FISH + car - Counter({"tail": 1}), cells=1300)  # the car may hide it
    assert are_parts_right(FoundParts([touching], 0), ["fish", "car"])
    assert not are_parts_right(FoundParts([touching._replace(parts=FISH + FISH + car)], 0), ["fish", "car"])
    assert not are_parts_right(FoundParts([*apart, piece(x=60)], 0), ["fish", "car"])


def test_peaks_and_pieces() -> None:
    heat = torch.zeros(1, len(PART_NAMES), 64, 64)
    heat[0, 5, 10, 10], heat[0, 5, 10, 12], heat[0, 5, 11, 12], heat[0, 2, 40, 60] = 0.9, 0.8, 0.5, 0.6
    heat[0, 0, 40, 20], heat[0, 0, 42, 22] = 0.9, 0.8  # the centre of a body is vague
    peaks = find_peaks(heat, torch.full((len(PART_NAMES),), 0.35))
    assert peaks[0].pop(0) == PartCentre("body", 20, 40)
    assert sorted(peaks[0]) == [PartCentre("eye", 10, 10), PartCentre("eye", 12, 10), PartCentre("tail", 60, 40)]
    covered = np.zeros((64, 64), bool)
    covered[5:20, 5:20] = covered[30, 30] = covered[63, 0:8] = True
    found = locate_parts(covered, peaks[0])
    assert [(each.cells, each.is_cut_off, dict(each.parts)) for each in found.pieces] == [
        (8, True, {}),
        (225, False, {"eye": 2}),
    ]
    assert found.outside == 1


def test_heat_maps_of_training_images_give_the_true_counts() -> None:
    for seed in range(20):
        item, fact = parts_training.training_image(np.random.default_rng((1, seed)), "train")
        assert item.shape == (128, 128, 4) and item.dtype == np.uint8 and item[..., 3].max() <= len(PART_NAMES)
        centres = fact["centres"]
        for mirrored in (False, True):
            heat = parts_training.heat_maps(parts_training.mirror_centres(centres) if mirrored else centres)
            peaks = find_peaks(torch.from_numpy(heat).float()[None], torch.full((len(PART_NAMES),), 0.99))[0]
            assert Counter(peak.name for peak in peaks) == Counter(PART_NAMES[n] for n, *_, known in centres if known)
            assert ((heat <= 1) & (heat >= parts_training.UNKNOWN)).all()


def test_mirrored_images_have_mirrored_maps() -> None:
    centres = [(5, 10.3, 20.6, 4.0, True)]
    plain, mirrored = (parts_training.heat_maps(each)[5] for each in (centres, parts_training.mirror_centres(centres)))
    assert np.argwhere(plain == 1).tolist() == [[20, 10]]
    assert np.argwhere(mirrored == 1).tolist() == [[20, 53]]


def test_varied_parts_keep_their_names_and_stay_near() -> None:
    parts = world.subject_parts(Subject("cat", "red", 3))
    varied = parts_training.vary_parts(parts, np.random.default_rng(0))
    assert [part.name for part in varied] == [part.name for part in parts]
    distances = [np.abs(a.outline - b.outline).max() for a, b in zip(parts, varied, strict=True)]
    assert 0.01 < max(distances) < 0.3


def small_pool(count: int = 6) -> Pool:
    items = [parts_training.evaluation_image(np.random.default_rng((2, k)), "held_out") for k in range(count)]
    return Pool(np.stack([array for array, _ in items]), [fact for _, fact in items])


def test_batches_losses_and_reports() -> None:
    pool = small_pool()
    images, labels, heat = parts_training.parts_batches(pool, 4)(np.random.default_rng(0), 0.0)
    assert images.shape == (4, 3, 128, 128) and labels.shape == (4, 64, 64) and heat.shape == (4, 18, 64, 64)
    torch.manual_seed(0)
    network = PartsNetwork()
    assert sum(each.numel() for each in network.parameters()) < 1.1e6
    losses = parts_training.parts_losses(network, (images, labels, heat))
    assert set(losses) == {"labels", "centres"}
    sum(losses.values()).backward()
    assert all(each.grad is not None for each in network.parameters())
    thresholds = parts_training.choose_thresholds(network, pool)
    assert thresholds.shape == network.thresholds.shape and 0.1 < thresholds.min() <= thresholds.max() < 0.75
    report = parts_training.parts_report(pool)(network.eval())
    assert set(report) <= {"fresh", *CORRUPTIONS} and all(0 <= value <= 1 for value in report.values())


def test_the_losses_are_small_for_true_maps_and_ignore_unknown_centres() -> None:
    images, labels, heat = parts_training.parts_batches(small_pool(2), 2)(np.random.default_rng(0), 0.0)

    class True_(torch.nn.Module):  # a network that knows the answer
        def forward(self, images):
            logits = torch.where(heat == 1, 12.0, torch.where(heat < 0, 9.0, -12.0))
            return 20.0 * torch.nn.functional.one_hot(labels.long(), 19).permute(0, 3, 1, 2), logits

    losses = parts_training.parts_losses(True_(), (images, labels, heat))
    assert float(losses["labels"]) < 1e-3 and float(losses["centres"]) < 1e-3


def test_images_of_any_size_are_judged() -> None:
    assert len(parts_right(PartsNetwork().eval(), np.zeros((2, 96, 160, 3), np.uint8), "fish")) == 2


def test_kinds_of_a_prompt_in_its_order() -> None:
    assert parse_kinds("A blue kitten and a red beach ball indoors, panning to the left") == ["cat", "ball"]
    assert parse_kinds("a hot air balloon among the stars") == ["balloon"]
    assert parse_kinds("a dog") == []


def test_the_metric_has_the_parts_accuracy_with_a_judge_of_anatomy_alone() -> None:
    frames = world.render_clip(ShotSpec("sea", "flat", (Subject("fish", "red", 1),)), 2)
    plain, anatomy = judge_metric(load_judge()), judge_metric(load_judge(), PartsNetwork().eval())
    assert "parts accuracy" not in plain.aspects and set(plain.protocol) == {"weights"}
    assert "parts accuracy" in anatomy.aspects and set(anatomy.protocol) == {"weights", "parts weights"}
    assert 0 <= dict(anatomy.measure(decoded(frames, "a red fish")))["parts accuracy"] <= 1
    assert "parts accuracy" not in dict(anatomy.measure(decoded(frames, "a dog")))


@pytest.mark.claims
@pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights: python -m kineograph_lab.recipe.run --export")
def test_parts_of_fresh_and_corrupted_renderings() -> None:
    network = load_parts_network()
    right = defaultdict[str, list[bool]](list)
    for number in range(1000):
        item, fact = parts_training.evaluation_image(np.random.default_rng((99, number)), "held_out")
        kind, *others = fact["kinds"]
        right[fact["way"]] += parts_right(network, item[None, ..., :3], kind, others)
    print({way or "fresh": (np.mean(each), len(each)) for way, each in right.items()})
    assert np.mean(right.pop("")) >= 0.97
    assert all(np.mean(each) <= 0.1 for each in right.values())
