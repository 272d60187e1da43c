"""The pocket world: shots as a function of a seed, and the ground truth of their renderings."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from kineograph_lab.world import wide, world
from kineograph_lab.world.truth import CONTROL_MAPS, KEYPOINT_COLOURS, KEYPOINTS, ground_truth
from kineograph_lab.world.world import ShotSpec, Subject


def shot(
    motion: str = "still", camera: str = "still", style: str = "flat", kind: str = "ball", x: float = 0.5
) -> ShotSpec:
    return ShotSpec("desert", style, (Subject(kind, "red", 3, x, 0.55, 0.25, 1, motion),), camera, 5)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(world.SUBJECTS) >= 24 and len(world.COLOURS) == 8 and len(world.SCENES) == 8 and len(world.STYLES) == 5
    assert len(world.MOTIONS) + len(world.CAMERA_MOTIONS) - 1 >= 10


@pytest.mark.parametrize("kind", world.SUBJECTS)
def test_every_subject_is_inside_the_frame_and_large_enough(kind) -> None:
    covered = ground_truth(shot(kind=kind)).mask > 0
    assert 0.04 < covered.mean() < 0.4
    assert not covered[0].any() and not covered[:, 0].any() and not covered[-1].any() and not covered[:, -1].any()


def test_renderings_are_a_function_of_the_seed() -> None:
    first, second = ([world.render(s) for s in islice(world.sample_shots(7), 3)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == (128, 128, 3) and first[0].dtype == np.uint8


def test_training_shots_have_no_held_out_pair_and_held_out_shots_always_do() -> None:
    for s in islice(world.sample_shots(1), 300):
        assert not any(world.is_held_out(t.kind, colour=t.colour, scene=s.scene) for t in s.things)
    for s in islice(world.sample_shots(1, split="held_out"), 300):
        assert world.is_held_out(s.things[0].kind, colour=s.things[0].colour, scene=s.scene)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out"):
        world.sample_shot(np.random.default_rng(0), split="test")


def test_the_mask_covers_the_pixels_that_differ_from_the_empty_scene() -> None:
    full = shot()
    empty = ShotSpec(full.scene, full.style, (), full.camera, full.backdrop)
    differs = (world.render(full).astype(int) != world.render(empty)).any(-1)
    mask = ground_truth(full).mask > 0
    assert (differs & mask).sum() / (differs | mask).sum() > 0.93  # they part on the blended rim alone


@pytest.mark.parametrize(
    ("motion", "camera"),
    [("right", "still"), ("growing", "still"), ("spinning", "still"), ("still", "pan left"), ("circling", "pan right")],
)
def test_the_flow_maps_one_frame_to_the_next(motion, camera) -> None:
    s = shot(motion, camera, kind="car")
    now, truth = world.render(s, 0.1).astype(float), ground_truth(s, 0.1, fps=4)
    later, covered = world.render(s, 0.1 + 1 / 4).astype(float), ground_truth(s, 0.1 + 1 / 4).mask
    rows, columns = np.nonzero(truth.mask if motion != "still" else truth.mask == 0)
    across, down = (
        (columns + truth.flow[rows, columns, 0]).round().astype(int),
        (rows + truth.flow[rows, columns, 1]).round().astype(int),
    )
    inside = (across >= 0) & (across < 128) & (down >= 0) & (down < 128)
    rows, columns, across, down = (v[inside] for v in (rows, columns, across, down))
    same_subject = covered[down, across] == truth.mask[rows, columns]
    moved = np.abs(later[down, across] - now[rows, columns]).mean(-1)
    stayed = np.abs(later[rows, columns] - now[rows, columns]).mean(-1)
    assert same_subject.mean() > 0.95
    assert moved.mean() < 0.5 * stayed.mean()


def test_scenery_is_behind_subjects_and_edges_follow_the_mask() -> None:
    truth = ground_truth(shot())
    assert truth.depth[truth.mask > 0].max() < truth.depth[truth.mask == 0].min()
    rim = truth.mask[:, :-1] != truth.mask[:, 1:]
    assert truth.edges[:, :-1][rim].all()
    assert 0.01 < truth.edges.mean() < 0.3


@pytest.mark.parametrize("facing", [-1, 1])
def test_keypoints_lie_on_the_subject_and_front_is_where_it_faces(facing) -> None:
    s = ShotSpec("sea", "flat", (Subject("fish", "blue", 1, 0.5, 0.5, 0.3, facing),))
    points = ground_truth(s).keypoints[0]
    assert tuple(points) == KEYPOINTS
    assert (points["front"][0] - points["back"][0]) * facing > 20
    assert points["top"][1] < points["centre"][1] < points["bottom"][1]


def test_subjects_face_their_direction_of_motion() -> None:
    for s in islice(world.sample_shots(2), 400):
        for subject in s.things:
            assert subject.facing == {"left": -1, "right": 1}.get(subject.motion, subject.facing)


def test_a_clip_moves_less_than_a_latent_cell_between_frames() -> None:
    for motion in world.MOTIONS:
        s = shot(motion)
        steps = [ground_truth(s, t).flow[ground_truth(s, t).mask > 0] for t in world.frame_times(4, 8.0)]
        assert max(np.abs(f).max() for f in steps) < 8


def test_individuals_of_one_kind_and_colour_differ() -> None:
    images = [world.render(ShotSpec("sea", "flat", (Subject("cat", "red", seed),))) for seed in range(4)]
    assert all(not np.array_equal(images[0], p) for p in images[1:])


# Sums of the bytes of `world.render` before subjects had a tilt.
RENDERED_SUMS = {
    7: [8789853, 10072270, 2510555, 10658862, 9514378, 4909381],
    8: [7925219, 9678025, 9306644, 9923252, 10918862, 10513686],
}


@pytest.mark.parametrize("seed", [7, 8])
def test_shots_without_a_tilt_render_as_before(seed) -> None:
    for number, (shot, time) in enumerate(
        zip(islice(world.sample_shots(seed), 6), (0.0, 0.4, -0.7, 0.0, 0.9, -0.2), strict=True)
    ):
        assert int(world.render(shot, time).astype(np.int64).sum()) == RENDERED_SUMS[seed][number]


def test_a_tilt_turns_the_subject() -> None:
    upright, tilted = (ShotSpec("sea", "flat", (Subject("car", "red", 1, tilt=tilt),)) for tilt in (0.0, np.pi / 4))
    front, back = (ground_truth(tilted).keypoints[0][name] for name in ("front", "back"))
    assert front[1] - back[1] > 10  # clockwise: its front is down
    assert not np.array_equal(world.render(upright), world.render(tilted))


def test_wide_shots_are_sometimes_tilted_resized_or_cut_off_and_never_held_out() -> None:
    rng = np.random.default_rng(0)
    shots = [wide.sample_wide_shot(rng) for _ in range(1000)]
    mains = [shot.things[0] for shot in shots]
    assert 0.2 < np.mean([main.tilt != 0 for main in mains]) < 0.3
    assert max(abs(main.tilt) for main in mains) <= np.pi / 4
    alone = [shot.things[0].size for shot in shots if len(shot.things) == 1]
    assert min(alone) < 0.15 and max(alone) > 0.42
    assert 0.03 < np.mean([wide.is_cut_off(main) for main in mains]) < 0.2
    assert {main.facing for main in mains} == {-1, 1}
    assert not any(world.is_held_out(t.kind, colour=t.colour, scene=shot.scene) for shot in shots for t in shot.things)


def test_a_clips_subject_stays_in_the_frame() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        shot = wide.sample_wide_clip_shot(rng)
        for time in (-1.3, 0.0, 1.3):
            _, centre = world.placement(shot.things[0], time, world.camera_shift(shot, time))
            assert min(centre) > -0.1 and max(centre) < 1.1


def test_control_maps_agree_with_the_ground_truth() -> None:
    fish = ShotSpec("sea", "flat", (Subject("fish", "red", 1),))
    image, truth = world.render(fish), ground_truth(fish)
    maps = {kind: render_map(image, truth) for kind, render_map in CONTROL_MAPS.items()}
    assert {each.shape for each in maps.values()} == {(128, 128, 3)}
    assert set(np.unique(maps["canny"])) == {0, 255}
    nearest = maps["depth"] == maps["depth"].max()
    assert nearest[..., 0][truth.mask == 1].all()
    x, y = truth.keypoints[0]["front"]
    assert tuple(maps["pose"][int(y), int(x)]) == KEYPOINT_COLOURS[KEYPOINTS.index("front")]
