"""The studies of video models: what they draw is what the front doors draw, and what they measure is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from generation.test_animate import animator, model  # noqa: F401
from models.conftest import sd
from PIL import Image

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models.model import Model
from kineograph_lab.studies import sample
from kineograph_lab.studies.judges import pocket_witnesses
from kineograph_lab.studies.protocol import held_out_cases, moving_cases
from kineograph_lab.studies.study import records
from kineograph_lab.studies.text2video_zero.subjects import subject_of
from kineograph_lab.studies.video_elevator import personalised, two_models
from kineograph_lab.studies.videocrafter1 import joint_training, text_to_video
from kineograph_lab.world.world import is_held_out

FEW = {"num_inference_steps": 2, "guidance_scale": sample.SCALE, "num_frames": sample.FRAMES, "seed": 5}


def test_moving_cases_say_how_one_thing_moves_before_a_still_camera():
    cases = moving_cases(30)
    assert [case.number for case in cases] == list(range(30))
    assert moving_cases(5) == cases[:5]
    assert all(len(case.shot.things) == 1 and case.shot.camera == "still" for case in cases)
    assert all(is_held_out(case.thing, colour=case.colour, scene=case.scene) for case in cases)
    assert len({case.motion for case in cases}) > 5
    assert not {case.prompt for case in cases} & {case.prompt for case in held_out_cases(30)}


def test_what_is_filmed_is_what_generate_draws(model: Model):  # noqa: F811
    frames = sample.film(model, "a fish", 5, steps=2, fps=12.0)
    assert np.array_equal(frames, kg.generate(model, "a fish", fps=12, **FEW).frames)


def test_what_is_filmed_from_a_picture_is_what_animate_draws(animator: Model, tmp_path):  # noqa: F811
    picture = np.random.default_rng(0).integers(255, size=(1, *animator.default_size, 3), dtype=np.uint8)
    Image.fromarray(picture[0]).save(tmp_path / "fish.png")
    for begun, first_frame in ((sample.as_it_is, "shown"), (sample.pinned_to(picture), "pinned")):
        frames = sample.film(animator, "a fish", 5, steps=2, picture=picture, begun=begun)
        video = kg.animate(animator, tmp_path / "fish.png", "a fish", first_frame=first_frame, **FEW)
        assert np.abs(frames.astype(int) - video.frames).max() <= 1


def test_speed_is_the_slope_of_a_way():
    way = np.zeros((16, 5, 2)) + np.arange(16)[:, None, None] * np.array([0.03, -0.04])
    assert text_to_video.speed(way) == pytest.approx(0.05)
    assert text_to_video.speed(np.ones((16, 5, 2))) == pytest.approx(0)


def test_half_the_speed_is_a_ratio_of_a_half():
    usual = [0.02, 0.03, 0.025]
    claim = text_to_video.ratio("speed", [each / 2 for each in usual], usual, 0.4, 0.6)
    assert claim.holds and claim.value == pytest.approx(0.5) and claim.error == pytest.approx(0, abs=1e-12)
    assert not text_to_video.ratio("speed", usual, usual, 0.4, 0.6).holds


def test_a_study_of_networks_that_were_not_trained_says_how_to(model: Model, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="--stages joint,films_only"):
        joint_training.trained(model, tmp_path / "joint.safetensors")


def test_an_image_model_films_nothing():
    image = replace(kg.load(sd()), name="image")
    with pytest.raises(AssertionError, match="no videos of its own"):
        sample.film(image, "a fish", 5, steps=2)


def test_both_models_draw_each_case_and_each_alone(tmp_path):
    witnesses = pocket_witnesses()
    study = two_models.studied(kg.load(), witnesses, 1, 4)
    few = {name: study.arms[name] for name in (two_models.TOGETHER, two_models.PER_FRAME, two_models.VIDEO)}
    made = {each["arm"]: each for each in records(study._replace(arms=few), tmp_path, {"protocol": "p", "commit": "c"})}
    assert set(made) == set(few) and all(set(study.rows) <= set(record) for record in made.values())
    assert len({record["steady"] for record in made.values()}) == 3


def test_better_frames_and_as_good_motion_are_claimed():
    better = {"sharp": 0.8, "marked": 0.0, "text": 70.0, "steady": 0.97, "motion": 1.0, "thing": 1.0, "style": 1.0}
    worse = {"sharp": 0.5, "marked": 0.3, "text": 60.0, "steady": 0.9, "motion": 0.5, "thing": 0.9, "style": 0.5}
    better["features"], worse["features"] = [0.0, 0.1], [5.0, 4.0]
    others = (two_models.PER_FRAME, two_models.VIDEO, *two_models.ABLATIONS)

    def claimed(ours, theirs):
        arms = {two_models.TOGETHER: ours, two_models.TRUTH: better, **dict.fromkeys(others, theirs)}
        made = [{"arm": arm, "case": case, **values} for arm, values in arms.items() for case in range(3)]
        return [claim.holds for claim in two_models.claims_of_all(made)]

    assert all(claimed(better, worse)) and not any(claimed(worse, better))


@pytest.mark.filterwarnings("ignore:pocket has never seen the words sks")
def test_a_personalised_model_lends_its_looks_and_no_prompt_says_a_colour(tmp_path, monkeypatch):
    monkeypatch.setattr(personalised, "with_lora", lambda case: kg.load())
    study = personalised.studied(kg.load(), pocket_witnesses(), 1, 4)
    (case,) = study.cases
    assert case.colour not in case.prompt.split() and case.thing == subject_of(case).kind
    made = list(records(study, tmp_path, {"protocol": "p", "commit": "c"}))
    assert {each["arm"] for each in made} == set(study.arms) and all(set(study.rows) <= set(each) for each in made)


def test_looks_and_motion_of_a_subject_are_claimed():
    looks = {"CLIP-I": 0.6, "subject": 0.7, "text": 60.0, "steady": 0.97, "motion": 0.9}
    worse = {"CLIP-I": 0.2, "subject": 0.1, "text": 50.0, "steady": 0.9, "motion": 0.5}

    def claimed(ours, theirs):
        arms = {two_models.TOGETHER: ours, two_models.PER_FRAME: theirs, two_models.VIDEO: theirs}
        made = [{"arm": arm, "case": case, **values} for arm, values in arms.items() for case in range(3)]
        return [claim.holds for claim in personalised.claims(made)]

    assert all(claimed(looks, worse)) and not any(claimed(worse, looks))
