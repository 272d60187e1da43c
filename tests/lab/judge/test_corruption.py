"""Corrupted anatomy: what belongs to a part, and what a corruption changes."""

from __future__ import annotations

import numpy as np
import pytest

from kineograph_lab.judge.corruption import CORRUPTIONS, corrupt, count_pieces, part_group
from kineograph_lab.world import wide, world
from kineograph_lab.world.anatomy import count_parts, frame_anatomy, shot_anatomy
from kineograph_lab.world.world import ShotSpec, Subject, subject_parts


def one(kind: str, *, size: float = 0.3) -> ShotSpec:
    return ShotSpec("desert", "flat", (Subject(kind, "red", 3, size=size),), backdrop=5)


def test_an_eye_is_one_part_with_all_that_is_painted_on_it() -> None:
    parts = subject_parts(Subject("fish", "red", 3))
    chosen = next(k for k, part in enumerate(parts) if part.name == "eye")
    assert part_group(parts, chosen)[:2] == [chosen, chosen + 1]
    assert {parts[k].name for k in part_group(parts, chosen)} == {"eye", ""}


def test_a_head_is_moved_with_its_eyes_and_ears() -> None:
    parts = subject_parts(Subject("cat", "red", 3))
    chosen = next(k for k, part in enumerate(parts) if part.name == "head")
    names = [parts[k].name for k in part_group(parts, chosen)]
    assert names.count("eye") == names.count("ear") == 2 and "leg" not in names and "body" not in names


@pytest.mark.parametrize("way", CORRUPTIONS)
def test_a_corruption_changes_the_parts_as_it_says(way) -> None:
    seen, change = set(), {"doubled": 1, "missing": -1, "moved": 0}[way]
    for seed in range(40):
        rng = np.random.default_rng((3, seed))
        shot = wide.sample_wide_shot(rng)
        corrupted = corrupt(shot, rng, way)
        if corrupted is None:
            continue
        parts, (named_way, name) = corrupted
        before, after = shot_anatomy(shot), frame_anatomy(shot, parts)
        assert named_way == way
        assert count_parts(after)[name] == count_parts(before)[name] + change
        assert (count_pieces(after) > count_pieces(before)) == (way == "moved") or way == "missing"
        assert not np.array_equal(world.render_parts(shot, parts), world.render(shot))
        seen.add(name)
    assert len(seen) > 8


def test_a_corruption_is_a_function_of_its_seed() -> None:
    shot = one("cat")
    first, second = (corrupt(shot, np.random.default_rng(1), "doubled") for _ in range(2))
    assert first is not None and second is not None and first[1] == second[1]
    assert np.array_equal(world.render_parts(shot, first[0]), world.render_parts(shot, second[0]))


def test_a_subject_too_small_to_see_is_not_corrupted() -> None:
    assert corrupt(one("fish", size=0.02), np.random.default_rng(0), "missing") is None
