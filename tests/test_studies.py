"""The studies of Text2Video-Zero's applications, on a case of the pocket world in a few steps, and their measures."""

import numpy as np
import pytest

from kineograph.generation import generate
from kineograph.metrics import video_metrics
from kineograph.models.loading.load import load
from kineograph_lab.studies import frame_metrics, report
from kineograph_lab.studies.judges import pocket_witnesses
from kineograph_lab.studies.protocol import held_out_cases
from kineograph_lab.studies.study import Study, part, records
from kineograph_lab.studies.text2video_zero import controlled, dreambooth, editing, smoothing, subjects
from kineograph_lab.world.edits import ASPECTS
from kineograph_lab.world.world import frame_times, render

STAMP = {"protocol": "test", "commit": "none"}


@pytest.fixture(scope="module")
def model():
    return load(dtype="float32")


@pytest.fixture(scope="module")
def witnesses():
    return pocket_witnesses()


@pytest.fixture(autouse=True)
def _short_videos(monkeypatch):
    for study in (controlled, editing, dreambooth):
        monkeypatch.setattr(study, "FRAMES", 3)


def ran(study: Study, folder) -> list[dict]:
    made = list(records(study, folder, STAMP))
    told = part(study, made, folder)
    assert len(made) == len(study.arms) * len(study.cases)
    assert all(
        (folder / file.rpartition("/")[2]).exists() for files in told.pictures.values() for file in files.values()
    )
    assert {row for cells in told.table.values() for row in cells} == set(study.arms)
    return made


def test_guided(model, witnesses, tmp_path):
    made = {each["arm"]: each for each in ran(controlled.studied(model, witnesses, 1, 2), tmp_path)}
    assert made["rendering"]["edges"] == 1 and made["rendering"]["depth"] < 0.1 and made["rendering"]["points"] < 0.1
    assert set(made) == {"unguided", "canny", "depth", "pose", "rendering"}


def test_guided_draws_what_generate_does(model, tmp_path):
    from kineograph.media.video import Video

    (case,) = held_out_cases(1)
    maps = controlled.drawn("pose", case.shot)
    path = Video(maps, controlled.FPS).save(tmp_path / "maps")
    ours = controlled.draw(model, case.prompt, case.seed, steps=2, scale=3.0, kind="pose", maps=maps)
    video = generate(
        model, case.prompt, control={"pose-map": path}, num_inference_steps=2, guidance_scale=3.0, seed=case.seed
    )
    assert np.array_equal(video.frames, ours)


def test_editing(model, witnesses, tmp_path):
    made = ran(editing.studied(model, witnesses, 4, 2), tmp_path)
    rendered = [each for each in made if each["arm"] == "rendering"]
    assert [next(name for name in each if name.startswith("asked ")) for each in rendered] == [
        f"asked {aspect}" for aspect in ASPECTS
    ]
    assert all(each["background"] > 30 for each in rendered if "background" in each)
    assert len(editing.claims(made)) == 5


def test_smoothing(model, witnesses, tmp_path):
    made = {each["arm"]: each for each in ran(smoothing.studied(model, witnesses, 1, 3), tmp_path)}
    assert made["on"]["iou"] == made["off"]["iou"] > 0
    assert np.isfinite(made["on"]["background"])


def test_specialised(model, witnesses, tmp_path, monkeypatch):
    monkeypatch.setattr(dreambooth, "FOLDER", tmp_path / "subjects")
    monkeypatch.setattr(dreambooth, "TRAINED", 2)
    made = ran(dreambooth.studied(model, witnesses, 1, 2), tmp_path)
    assert [each["arm"] for each in made] == ["base", "LoRA"]
    assert len(list((tmp_path / "subjects").glob("*/pytorch_lora_weights.safetensors"))) == 1
    known = subjects.subjects()
    assert len({subject.kind for subject in known}) == subjects.COUNT
    assert all(len({shot.things[0].individual for shot in each.shots}) == 1 for each in known)


def test_a_share_of_the_way_is_a_ratio_of_sums_with_an_error():
    none, got, whole = np.array([0.2, 0.3, 0.25]), np.array([0.6, 0.8, 0.7]), np.ones(3)
    values = controlled.shares(none, got, whole)
    assert np.mean(values) == pytest.approx((got - none).sum() / (whole - none).sum(), abs=0.01)
    assert report.at_least("x", values, 0.5).holds


def test_edges_beside_one_another_count_as_the_same():
    line, beside, far = (np.zeros((1, 16, 16), bool) for _ in range(3))
    line[:, 4], beside[:, 5], far[:, 9] = True, True, True
    assert frame_metrics.edge_f1(line, beside) == 1
    assert frame_metrics.edge_f1(line, far) < 1e-6


def test_the_background_is_compared_where_the_camera_left_it():
    wide = render(held_out_cases(1)[0].shot)
    frames = np.stack([wide[:96, left : left + 96] for left in (0, 3, 6)])
    masks = np.zeros(frames.shape[:3], bool)
    assert frame_metrics.background_psnr(frames, masks, np.array([3, 0])) == pytest.approx(60, abs=0.2)
    assert frame_metrics.background_psnr(frames, masks, np.array([0, 0])) < 35
    spoilt = frames.copy()
    spoilt[1, :20] = 0
    masks[1, :20] = True
    assert frame_metrics.background_psnr(spoilt, masks, np.array([3, 0])) == pytest.approx(60, abs=0.2)


def test_true_flow_explains_a_rendering():
    (case,) = held_out_cases(1)
    frames, flows = controlled.rendering(case.shot), [each.flow for each in controlled.truths(case.shot)]
    reversed_flows = [-2 * flow - 3 for flow in flows]
    assert frame_metrics.warp_error(frames, flows) < frame_metrics.warp_error(frames, reversed_flows)
    assert len(frames) == len(frame_times(controlled.FRAMES, controlled.FPS))


def test_steadiness_is_of_neighbours():
    assert video_metrics.frame_consistency(np.eye(3)) == 0
    assert video_metrics.frame_consistency(np.eye(3)[[0, 0, 1]]) == 0.5


def test_unchanged_is_within_a_standard_error():
    assert report.unchanged("x", [1.0, 0.0], [0.0, 1.0]).holds
    assert not report.unchanged("x", [1.0, 1.1], [0.0, 0.0]).holds
    assert not report.better("x", [1.0, 0.9, 0.2], [0.0, 0.0, 0.0], errors=3).holds
