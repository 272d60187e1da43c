"""The judge as extractor and metric of `kineograph evaluate`, and its distances under known degradations."""

from itertools import islice

import numpy as np
import pytest
from tiny_metrics import decoded, noise

from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.extractors import load_extractor
from kineograph_lab.judge.metrics import judge_metric, parse_prompt
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies.vidrd.degraded_videos import DEGRADATIONS, freeze_frames, shuffle_frames
from kineograph_lab.world.captions import caption_clip
from kineograph_lab.world.world import ShotSpec, Subject, render_clip, sample_shots

FISH = "a red fish over the sea moving to the right"


def test_judge_features_and_classes() -> None:
    extractor = load_extractor("pocket")
    reading = extractor.extract(render_clip(ShotSpec("sea", "flat", (Subject("fish", "red", 1),)), 4))
    assert reading.features.shape == (224,) and reading.features.dtype == np.float64
    assert reading.probabilities.sum() == pytest.approx(1) and reading.probabilities.max() > 0.5


def fvd_of_degraded(extractor, real, others, degrade, degrees):
    """Return FVD of the others, degraded by each degree, against real videos."""

    def feature_moments(videos):
        return moments(np.stack([extractor.extract(video).features for video in videos]))

    reference = feature_moments(real)
    return [
        frechet_distance(
            feature_moments([degrade(video, degree, number) for number, video in enumerate(others)]), reference
        )
        for degree in degrees
    ]


@pytest.mark.slow
def test_distances_rise_with_damage_on_a_few_clips() -> None:
    extractor, clips = load_extractor("pocket"), [render_clip(shot) for shot in islice(sample_shots(7), 4)]
    for name in ("blur", "frozen frames"):
        degrade, degrees = DEGRADATIONS[name]
        found = fvd_of_degraded(extractor, clips, clips, degrade, (degrees[0], degrees[-2], degrees[-1]))
        assert found[0] == pytest.approx(0, abs=1e-6 * found[-1])
        assert found[0] < found[1] < found[2], name


@pytest.fixture(scope="module")
def world():
    """Two sets of 128 different clips."""
    drawn = sample_shots(11)
    return [[render_clip(shot) for shot in islice(drawn, 128)] for _ in range(2)]


@pytest.mark.claims
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_fvd_rises_with_damage(world, name) -> None:
    extractor, (real, others) = load_extractor("pocket"), world
    degrade, degrees = DEGRADATIONS[name]
    found = fvd_of_degraded(extractor, real, others, degrade, degrees)
    print(name, dict(zip(degrees, found, strict=True)))
    assert found == sorted(found) and found[-1] > 1.3 * found[0]


def test_damage_at_degrees_0_and_1() -> None:
    frames = noise(0, 8)
    for degrade, degrees in DEGRADATIONS.values():
        assert np.array_equal(degrade(frames, degrees[0], 3), frames)
        assert degrade(frames, degrees[-1], 3).shape == frames.shape
    assert np.array_equal(freeze_frames(frames, 1, 0), np.repeat(frames[:1], 8, axis=0))
    whole = shuffle_frames(frames, 1, 0)
    assert sorted(frame.tobytes() for frame in whole) == sorted(frame.tobytes() for frame in frames)
    assert not any(np.array_equal(*pair) for pair in zip(whole, frames, strict=True))


def test_judge_metric_compares_frames_with_the_prompt() -> None:
    metric = judge_metric(load_judge())
    moving = render_clip(ShotSpec("sea", "flat", (Subject("fish", "red", 1, motion="right"),)))
    found = dict(metric.measure(decoded(moving, FISH)))
    assert found == {"subject accuracy": 1, "colour accuracy": 1, "scene accuracy": 1, "motion accuracy": 1}
    wrong = dict(metric.measure(decoded(moving, "a blue cat in the snow")))
    assert wrong == {"subject accuracy": 0, "colour accuracy": 0, "scene accuracy": 0}
    assert dict(metric.measure(decoded(moving))) == {}


def test_each_part_of_a_video_is_compared_with_its_own_prompt() -> None:
    fish, cat = (
        render_clip(ShotSpec(place, "flat", (Subject(kind, colour, 1, motion="right"),)))
        for place, kind, colour in (("sea", "fish", "red"), ("snow", "cat", "blue"))
    )
    both = decoded(np.concatenate([fish, cat]), FISH)._replace(later_prompts=("a blue cat moving to the left",))
    seen = {"subject accuracy": 1, "colour accuracy": 1, "scene accuracy": 1, "motion accuracy": 0.5}
    assert dict(judge_metric(load_judge()).measure(both)) == seen


def test_prompts_of_the_world_are_parsed() -> None:
    rng = np.random.default_rng(0)
    for shot in islice(sample_shots(3), 200):
        main = shot.things[0]
        assert parse_prompt(caption_clip(shot, rng)) == {
            "subject": main.kind, "colour": main.colour, "scene": shot.scene, "motion": main.motion,
        }  # fmt: skip
    assert parse_prompt("a dog") == {}
