"""Text2Video-Zero's studies on one case in few steps, and their metrics."""

import numpy as np
import pytest

from kineograph.generation.api import edit
from kineograph.media.video import Video
from kineograph.metrics import video_metrics
from kineograph.models.loading.load import load
from kineograph.models.unet.frame_attention import first
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import load_pocket_judges
from kineograph_lab.studies.protocol import held_out_cases
from kineograph_lab.studies.study import Study, run_study, summarise_study
from kineograph_lab.studies.text2video_zero import controlnet, dreambooth, editing, smoothing, subjects
from kineograph_lab.world.edits import ASPECTS
from kineograph_lab.world.world import frame_times, render

STAMP = {"protocol": "test", "commit": "none"}


@pytest.fixture(scope="module")
def model():
    return load(dtype="float32")


@pytest.fixture(scope="module")
def judges():
    return load_pocket_judges()


@pytest.fixture(autouse=True)
def _short_videos(monkeypatch):
    for study in (controlnet, editing, dreambooth):
        monkeypatch.setattr(study, "FRAMES", 3)


def run_and_check(study: Study, folder) -> list[dict]:
    """Run a study, check its summary and images, and return its records."""
    records = list(run_study(study, folder, STAMP))
    summary = summarise_study(study.analysis, records, folder)
    assert len(records) == len(study.arms) * len(study.cases)
    assert all(
        (folder / file.rpartition("/")[2]).exists() for files in summary.images.values() for file in files.values()
    )
    assert {row for cells in summary.table.values() for row in cells} == set(study.arms)
    return records


@pytest.mark.slow
def test_controlnet_study(model, judges, tmp_path) -> None:
    records = {each["arm"]: each for each in run_and_check(controlnet.controlnet_study(model, judges, 1, 2), tmp_path)}
    assert (
        records["rendering"]["edges"] == 1
        and records["rendering"]["depth"] < 0.1
        and records["rendering"]["points"] < 0.1
    )
    assert set(records) == {"unguided", "unguided, moving", "canny", "depth", "pose", "rendering"}
    assert records["unguided"]["individual"] > records["unguided, moving"]["individual"]  # one image, and a moving one


def test_both_videos_without_maps_are_baselines_of_control() -> None:
    shares = {controlnet.STILL: 0.2, controlnet.MOVING: 0.4, "rendering": 1.0}
    metrics = (*controlnet.CONTROL_METRICS.values(), *controlnet.BARS)
    records = [
        {"arm": arm, "case": case, **dict.fromkeys(metrics, shares.get(arm, 0.8) + 0.001 * (case * 7 % 5))}
        for arm in (*shares, *controlnet.CONTROL_METRICS)
        for case in range(8)
    ]
    by_name = {each.name: each for each in controlnet._state_claims(records)}
    share = "canny: edges, share of the way from {} to the rendering"
    assert by_name[share.format(controlnet.STILL)].value == pytest.approx(0.75, abs=0.01)
    assert by_name[share.format(controlnet.MOVING)].value == pytest.approx(2 / 3, abs=0.01)
    earlier = [each for each in records if each["arm"] != controlnet.MOVING]
    earlier = {each.name: each for each in controlnet._state_claims(earlier)}
    assert earlier.keys() == by_name.keys() and not earlier[share.format(controlnet.MOVING)].measured


@pytest.mark.slow
def test_first_frame_attention_edits_equal_the_front_door(tmp_path) -> None:
    (case,) = held_out_cases(1)
    editor = load("pocket-edit", dtype="float32")
    source = Video(controlnet.render_shot(case.shot), controlnet.FPS).save(tmp_path / "source")
    video = edit(editor, source, case.prompt, num_inference_steps=2, guidance_scale=editing.SCALE, seed=case.seed)
    assert np.array_equal(editing._edit_case(editor, first, 2, case), video.frames)


@pytest.mark.slow
def test_editing_study(model, judges, tmp_path) -> None:
    records = run_and_check(editing.editing_study(model, judges, 4, 2), tmp_path)
    rendered = [each for each in records if each["arm"] == "rendering"]
    assert [next(name for name in each if name.startswith("asked ")) for each in rendered] == [
        f"asked {aspect}" for aspect in ASPECTS
    ]
    assert all(each["background"] > 30 for each in rendered if "background" in each)
    assert len(editing._state_claims(records)) == 6 and all(each["sharp"] > 0 for each in records)


@pytest.mark.slow
def test_smoothing_study(model, judges, tmp_path) -> None:
    records = {each["arm"]: each for each in run_and_check(smoothing.smoothing_study(model, judges, 1, 3), tmp_path)}
    assert records["on"]["iou"] == records["off"]["iou"] > 0
    assert np.isfinite(records["on"]["background"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pocket has never seen the words sks")
def test_dreambooth_study(model, judges, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dreambooth, "FOLDER", tmp_path / "subjects")
    monkeypatch.setattr(dreambooth, "LORA_STEPS", 2)
    records = run_and_check(dreambooth.dreambooth_study(model, judges, 1, 2), tmp_path)
    assert [each["arm"] for each in records] == ["base", "LoRA"]
    assert len(list((tmp_path / "subjects").glob("*/pytorch_lora_weights.safetensors"))) == 1
    known = subjects.dreambooth_subjects()
    assert len({subject.kind for subject in known}) == subjects.COUNTS["development"]
    assert all(len({shot.things[0].individual for shot in each.shots}) == 1 for each in known)


def test_edge_f1_tolerates_a_pixel() -> None:
    line, neighbour, far = (np.zeros((1, 16, 16), bool) for _ in range(3))
    line[:, 4], neighbour[:, 5], far[:, 9] = True, True, True
    assert frame_metrics.edge_f1(line, neighbour) == 1
    assert frame_metrics.edge_f1(line, far) < 1e-6


def test_background_psnr_undoes_the_camera_motion_and_ignores_masks() -> None:
    wide = render(held_out_cases(1)[0].shot)
    frames = np.stack([wide[:96, left : left + 96] for left in (0, 3, 6)])
    masks = np.zeros(frames.shape[:3], bool)
    assert frame_metrics.background_psnr(frames, masks, np.array([3, 0])) == pytest.approx(60, abs=0.2)
    assert frame_metrics.background_psnr(frames, masks, np.array([0, 0])) < 35
    damaged = frames.copy()
    damaged[1, :20] = 0
    masks[1, :20] = True
    assert frame_metrics.background_psnr(damaged, masks, np.array([3, 0])) == pytest.approx(60, abs=0.2)


def test_true_flow_has_a_lower_warp_error() -> None:
    (case,) = held_out_cases(1)
    frames, flows = controlnet.render_shot(case.shot), [each.flow for each in controlnet.ground_truths(case.shot)]
    reversed_flows = [-2 * flow - 3 for flow in flows]
    assert frame_metrics.warp_error(frames, flows) < frame_metrics.warp_error(frames, reversed_flows)
    assert len(frames) == len(frame_times(controlnet.FRAMES, controlnet.FPS))


def test_frame_consistency_compares_neighbours() -> None:
    assert video_metrics.frame_consistency(np.eye(3)) == 0
    assert video_metrics.frame_consistency(np.eye(3)[[0, 0, 1]]) == 0.5
