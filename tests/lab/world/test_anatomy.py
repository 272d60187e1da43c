"""Anatomy of rendered frames: names and numbers of parts, and label maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kineograph_lab.world import world
from kineograph_lab.world.anatomy import count_parts, expected_parts, frame_anatomy, shot_anatomy
from kineograph_lab.world.shapes import COVERS, PART_NAMES, Part
from kineograph_lab.world.world import ShotSpec, Subject, placement, subject_parts

EXPECTED = {
    "fish": "tail eye 2 fin", "whale": "tail eye fin", "turtle": "head tail 2 leg eye", "crab": "4 leg 2 eye 2 claw",
    "bird": "tail 2 leg eye wing beak", "butterfly": "4 wing", "cat": "head tail 4 leg 2 ear 2 eye",
    "rabbit": "head tail 2 leg 2 ear eye", "elephant": "head tail 4 leg ear eye trunk", "snail": "2 eye",
    "car": "2 wheel 2 window", "truck": "head 3 wheel window", "boat": "2 sail", "airplane": "tail 2 wing",
    "rocket": "tail 2 fin window", "tree": "stem", "flower": "stem 2 leaf", "cactus": "2 arm base",
    "mushroom": "2 eye stem", "ball": "",
    "robot": "head 2 leg 2 eye 2 arm", "kite": "tail 2 sail", "balloon": "base", "star": "2 eye",
}  # fmt: skip


def one(kind: str, individual: int = 3, *, style: str = "flat", tilt: float = 0.0, size: float = 0.3) -> ShotSpec:
    return ShotSpec("desert", style, (Subject(kind, "red", individual, size=size, tilt=tilt),), backdrop=5)


def numbers_of(text: str) -> dict[str, int]:
    """Return the numbers in a text such as "tail 2 fin"."""
    found, number = {}, 1
    for word in text.split():
        if word.isdigit():
            number = int(word)
        else:
            found[word], number = number, 1
    return found


@pytest.mark.parametrize("kind", world.SUBJECTS)
def test_each_kind_has_its_parts(kind) -> None:
    body = {} if kind == "kite" else {"body": 1}
    expected = {name: (number, number) for name, number in (body | numbers_of(EXPECTED[kind])).items()}
    assert {name: (each.least, each.most) for name, each in expected_parts(kind).items()} == expected
    assert all(each.min_size < 0.22 for each in expected_parts(kind).values())  # seen at the usual sizes


def test_names_are_of_the_vocabulary_and_every_one_is_used() -> None:
    names = {part.name for kind in world.SUBJECTS for part in subject_parts(Subject(kind, "red", 3))}
    assert names - {"", *COVERS} == set(PART_NAMES)


@pytest.mark.parametrize("kind", world.SUBJECTS)
def test_individuals_tilts_and_facings_have_the_same_parts(kind) -> None:
    expected = {name: each.most for name, each in expected_parts(kind).items()}
    for individual in range(12):
        counts = count_parts(shot_anatomy(one(kind, individual, tilt=0.2 * individual)))
        assert {name: count for name, count in counts.items() if count} == expected


@pytest.mark.parametrize("kind", world.SUBJECTS)
def test_labels_agree_with_the_drawn_outlines(kind) -> None:
    shot = one(kind)
    anatomy, subject = shot_anatomy(shot), shot.things[0]
    axes, centre = placement(subject, 0.0, 0.0)
    empty = world.render(ShotSpec(shot.scene, shot.style, (), shot.camera, shot.backdrop))
    differs = (world.render(shot) != empty).any(-1)
    covered = anatomy.labels > 0
    assert (differs & covered).sum() / (differs | covered).sum() > 0.85  # they part on the blended rim alone
    assert np.array_equal(covered, anatomy.subjects > 0)
    for part in subject_parts(subject):
        if part.name in PART_NAMES:
            mask = Image.new("1", (128, 128))
            ImageDraw.Draw(mask).polygon(((part.outline @ axes + centre) * 128 - 0.5).ravel().tolist(), fill=1)
            assert (np.asarray(mask) & (anatomy.labels == PART_NAMES.index(part.name) + 1)).any()
    for each in anatomy.instances:
        assert 0 < each.area == each.in_sight <= 1.3 * each.outline_area + 40


def test_parts_that_the_border_or_another_subject_hides_are_not_clear() -> None:
    cut = ShotSpec("sea", "flat", (Subject("fish", "red", 1, x=0.0),))
    assert count_parts(shot_anatomy(cut))["tail"] == 0
    hidden = ShotSpec("sea", "flat", (Subject("fish", "red", 1), Subject("ball", "blue", 1)))
    assert count_parts(shot_anatomy(hidden))["eye"] == 0
    assert count_parts(shot_anatomy(hidden), 1)["body"] == 1
    tiny = one("fish", size=0.05)
    assert count_parts(shot_anatomy(tiny))["eye"] == 0


def test_details_do_not_hide_the_part_that_they_are_painted_on() -> None:
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    shot = one("ball")
    parts = [Part(square, "body", "body"), Part(0.5 * square, "dark"), Part(0.4 * square, "dark", "hat")]
    plain, detailed, hidden = (frame_anatomy(shot, [parts[:k]]) for k in (1, 2, 3))
    assert np.array_equal(plain.labels, detailed.labels)
    assert plain.instances == detailed.instances
    assert hidden.instances[0].area < plain.instances[0].area
