"""VideoCrafter1's and VideoElevator's studies: frames equal to the front doors', metrics and claims."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from generation.test_animate import animator, model  # noqa: F401
from models.conftest import sd

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation.check import check, complete
from kineograph.models.loading.describe import describe
from kineograph.models.model import Model
from kineograph_lab.studies import sample
from kineograph_lab.studies.judges import load_pocket_judges
from kineograph_lab.studies.protocol import held_out_cases, moving_cases
from kineograph_lab.studies.study import run_study, summarise_study
from kineograph_lab.studies.text2video_zero.subjects import subject_of
from kineograph_lab.studies.video_elevator import personalised, two_models
from kineograph_lab.studies.videocrafter1 import image_to_video, joint_training, text_to_video
from kineograph_lab.world.world import is_held_out

RESULTS = Path(__file__).parents[3] / "docs" / "results"
STAMP = {"protocol": "p", "commit": "c"}


def test_moving_cases_have_one_moving_subject_and_a_still_camera() -> None:
    cases = moving_cases(30)
    assert [case.number for case in cases] == list(range(30))
    assert moving_cases(5) == cases[:5]
    assert all(len(case.shot.things) == 1 and case.shot.camera == "still" for case in cases)
    assert all(is_held_out(case.subject, colour=case.colour, scene=case.scene) for case in cases)
    assert len({case.motion for case in cases}) > 5
    assert not {case.prompt for case in cases} & {case.prompt for case in held_out_cases(30)}


@pytest.mark.slow
def test_decoded_latents_equal_the_generated_video(model: Model) -> None:  # noqa: F811
    (case,) = moving_cases(1)
    frames = sample.decode_frames(model, sample.sample_latents(model, case, steps=2))
    assert np.array_equal(frames, sample.generate_frames(model, case, steps=2))


@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
@pytest.mark.slow
def test_animated_videos_depend_on_the_image_and_on_how_it_is_used(animator: Model) -> None:  # noqa: F811
    (case,) = moving_cases(1)
    images = np.random.default_rng(0).integers(255, size=(2, 1, *animator.default_size, 3), dtype=np.uint8)
    animate = partial(sample.animate_frames, animator, case, steps=2, scale=3.0)
    shown, other, pinned = animate(images[0]), animate(images[1]), animate(images[0], first_frame="pinned")
    assert not np.array_equal(shown, other) and not np.array_equal(shown, pinned)


@pytest.mark.slow
def test_image_to_video_study(tmp_path) -> None:
    study = image_to_video.image_to_video_study(kg.load("pocket-video"), load_pocket_judges(), 1, 1)
    records = [*run_study(study, tmp_path, STAMP)]
    assert {each["arm"] for each in records} == {"text alone", "picture shown", "first frame pinned"}
    claims = summarise_study(study.analysis, records, tmp_path).claims
    assert [each.name for each in claims if not each.measured] == ["CLIP-I, all patches - class token alone"]


def test_an_image_that_changes_nothing_holds_no_claim_of_a_gain() -> None:
    values = {"CLIP-I": 0.9, "first frame": 30.0, "thing": 0.99, "colour": 0.99, "individual": 0.9, "motion": 1.0}

    def held(shown: float, text: float) -> list[str]:
        records = [
            {
                "arm": arm,
                "case": case,
                **{name: value * (1 - 0.01 * (case * 7 % 5) * spread) for name, value in values.items()},
            }
            for arm, spread in (("picture shown", shown), ("text alone", text))
            for case in range(40)
        ]
        return [each.name for each in image_to_video._state_claims(records) if each.holds]

    assert all(name.startswith(("frames with", "videos that move")) for name in held(1, 1))  # no worse, and no better
    assert len(held(0, 1)) == 6 and not held(20, 1)


def test_subject_speed_is_the_slope_of_the_keypoints() -> None:
    points = np.zeros((16, 5, 2)) + np.arange(16)[:, None, None] * np.array([0.03, -0.04])
    assert text_to_video.subject_speed(points) == pytest.approx(0.05)
    assert text_to_video.subject_speed(np.ones((16, 5, 2))) == pytest.approx(0)


def test_missing_trained_networks_name_the_recipe_stages(model: Model, tmp_path) -> None:  # noqa: F811
    with pytest.raises(InputError, match="--stages joint,films_only"):
        joint_training.load_jointly_trained(model, tmp_path / "joint.safetensors")


def test_image_models_have_no_video_latents() -> None:
    image = replace(kg.load(sd()), name="image")
    with pytest.raises(AssertionError, match="no videos of its own"):
        sample.sample_latents(image, *moving_cases(1), steps=2)


@pytest.mark.slow
def test_two_models_study(tmp_path) -> None:
    judges = load_pocket_judges()
    study = two_models.two_models_study(kg.load(), judges, 1, 4)
    few = {name: study.arms[name] for name in (two_models.TOGETHER, two_models.PER_FRAME, two_models.VIDEO)}
    records = {each["arm"]: each for each in run_study(study._replace(arms=few), tmp_path, STAMP)}
    assert set(records) == set(few) and all(set(study.analysis.rows) <= set(record) for record in records.values())
    assert len({record["steady"] for record in records.values()}) == 3


@pytest.mark.slow
def test_two_models_options_are_used_and_recorded_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    image, video = describe("pocket"), describe("pocket-video")
    assert image is not None and video is not None
    arms = {two_models.TOGETHER: two_models.OURS, two_models.PER_FRAME: two_models.INDEPENDENT, **two_models.ABLATIONS}
    for options in arms.values():
        check(image, video, complete(options))
    monkeypatch.setattr(two_models, "fingerprint", lambda network: "")
    recorded = two_models.elevator_settings(replace(kg.load(sd()), name="video"), None, arms)
    earlier = json.loads((RESULTS / "video-elevator.json").read_text())["settings"]["video-elevator"]
    assert json.loads(json.dumps(recorded["ways"])) == earlier["ways"]


def test_two_models_claims_hold_for_better_frames_and_equal_motion() -> None:
    better = {"sharp": 0.8, "marked": 0.0, "text": 70.0, "steady": 0.97, "motion": 1.0, "thing": 1.0, "style": 1.0}
    worse = {"sharp": 0.5, "marked": 0.3, "text": 60.0, "steady": 0.9, "motion": 0.5, "thing": 0.9, "style": 0.5}
    better["features"], worse["features"] = [0.0, 0.1], [5.0, 4.0]
    others = (two_models.PER_FRAME, two_models.VIDEO, *two_models.ABLATIONS)

    def claimed(ours, theirs):
        arms = {two_models.TOGETHER: ours, two_models.TRUTH: better, **dict.fromkeys(others, theirs)}
        records = [
            {"arm": arm, "case": case}
            | {name: np.multiply(value, 1 + 0.01 * (case % 3)).tolist() for name, value in values.items()}
            for arm, values in arms.items()
            for case in range(12)
        ]
        claims = two_models._state_all_claims(records)
        assert [each.name for each in claims if not each.measured] == ["FVD, video model - together"]  # of 12 videos
        return [claim.holds for claim in claims if claim.measured]

    assert all(claimed(better, worse)) and not any(claimed(worse, better))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pocket has never seen the words sks")
def test_personalised_study_prompts_have_no_colour(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personalised, "load_with_lora", lambda case: kg.load())
    monkeypatch.setattr(personalised, "lora_file", lambda case: Path(__file__))
    study = personalised.personalised_study(kg.load(), load_pocket_judges(), 1, 4)
    (case,) = study.cases
    assert case.colour not in case.prompt.split() and case.subject == subject_of(case).kind
    records = list(run_study(study, tmp_path, STAMP))
    assert {each["arm"] for each in records} == set(study.arms) and all(
        set(study.analysis.rows) <= set(each) for each in records
    )


def test_personalised_claims_hold_for_better_looks_and_equal_motion() -> None:
    looks = {"CLIP-I": 0.6, "subject": 0.7, "text": 60.0, "steady": 0.97, "motion": 0.9}
    worse = {"CLIP-I": 0.2, "subject": 0.1, "text": 50.0, "steady": 0.9, "motion": 0.5}

    def claimed(ours, theirs):
        arms = {two_models.TOGETHER: ours, two_models.PER_FRAME: theirs, two_models.VIDEO: theirs}
        records = [
            {"arm": arm, "case": case, **{name: value * (1 + 0.01 * (case % 3)) for name, value in values.items()}}
            for arm, values in arms.items()
            for case in range(12)
        ]
        return [claim.holds for claim in personalised._state_claims(records)]

    assert all(claimed(looks, worse)) and not any(claimed(worse, looks))
