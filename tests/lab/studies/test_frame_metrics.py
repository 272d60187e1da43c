"""Measures of motion, background and identity on known frames."""

import numpy as np
import pytest
from PIL import Image

from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.frame_metrics import JudgedFrames
from kineograph_lab.studies.protocol import Case
from kineograph_lab.world.world import ShotSpec, Subject, render, sample_shots


def judged(subjects, colours=None, scenes=None):
    count = len(subjects)
    return JudgedFrames(
        subjects, colours or ["red"] * count, scenes or ["sea"] * count, ["flat"] * count, np.eye(count)
    )


def panned(speed: float, frames: int = 5, noise: float = 6.0):
    """Return frames of an image that moves `speed` pixels per frame to the right and half as far up, with noise."""
    wide = Image.fromarray(np.pad(render(next(sample_shots(5))), ((64, 64), (64, 64), (0, 0)), mode="symmetric"))
    grain = np.random.default_rng(0).normal(0, noise, (frames, 128, 128, 3))
    views = [
        wide.transform(
            (256, 256), Image.Transform.AFFINE, (1, 0, -k * speed, 0, 1, k * speed / 2), Image.Resampling.BICUBIC
        )
        for k in range(frames)
    ]
    return (np.stack([np.array(view)[64:-64, 64:-64] for view in views]) + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("speed", [-4.0, 0.0, 3.4])
def test_global_motion_is_exact_to_a_fraction_of_a_pixel(speed) -> None:
    frames = panned(speed)
    found = frame_metrics.global_motion(frames, frame_metrics.frame_shifts(frames))
    assert found["right"] * 128 == pytest.approx(speed, abs=0.05)
    assert found["down"] * 128 == pytest.approx(-speed / 2, abs=0.05)


def test_background_difference_ignores_motion() -> None:
    frames = panned(5.0, noise=0.0)
    same = frame_metrics.background_difference(frames, frame_metrics.frame_shifts(frames))
    others = frames.copy()
    others[1:] = 255 - others[1:]
    different = frame_metrics.background_difference(others, frame_metrics.frame_shifts(frames))
    assert same == pytest.approx(0, abs=2)
    assert different > 20


def test_prompt_agreement_and_identity_are_shares_of_frames() -> None:
    case = Case(0, "a red cat in the snow", ShotSpec("snow", "flat", (Subject("cat", "red", 0),)))
    agreement = frame_metrics.prompt_agreement(judged(["cat", "cat", "dog"]), case)
    assert agreement == {"thing": pytest.approx(2 / 3), "colour": 1, "scene": 0, "first right": 1}
    consistency = frame_metrics.identity_consistency(judged(["cat", "cat", "dog"]))
    assert consistency == {"same thing": 0.5, "same colour": 1, "always the same": 0, "individual": 0}
    assert frame_metrics.identity_consistency(judged(["cat"] * 3))["always the same"] == 1
    assert frame_metrics.clip_score(np.array([0.2, 0.4])) == pytest.approx(30)
