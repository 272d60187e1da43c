"""VideoCrafter1's text-to-video on the pocket world: what the prompt says is there and moves so, as fast as told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from kineograph.metrics import video_metrics
from kineograph.metrics.distances import mean
from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, claim_at_least
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS, sample_frames
from kineograph_lab.studies.study import COMMON_ROWS, Study, metric_values
from kineograph_lab.world.world import render_clip

FASTER = 2 * FPS
STRAIGHT = ("left", "right", "up", "down")  # motions whose speed is a slope


def text_to_video_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """The model told the usual frame rate and twice that, and the world's own rendering."""
    steps = steps or STEPS
    return Study(
        name="text-to-video",
        title="Text to video",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "motion eye": fingerprint(load_judge().motion_eye),
        },
        cases=moving_cases(count),
        arms={
            f"{FPS:g} fps": partial(generate_cases, model, FPS, steps),
            f"{FASTER:g} fps": partial(generate_cases, model, FASTER, steps),
            "rendering": lambda cases: [render_clip(case.shot, FRAMES, FPS) for case in cases],
        },
        measure=lambda frames, case: _measure(frames, case, judges),
        state_claims=_state_claims,
        rows=ROWS,
    )  # fmt: skip


def generate_cases(model: Model, fps: float, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases."""
    return [sample_frames(model, case.prompt, case.seed, steps=steps, fps=fps) for case in cases]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    """Return all metrics of one video."""
    judged = judges.classify(frames)
    metrics = {
        **dict(frame_metrics.prompt_agreement(judged, subject=case.subject, colour=case.colour, scene=case.scene)),
        **dict(frame_metrics.identity_consistency(judged)),
        **dict(frame_metrics.clip_score(judges.text_similarity(frames, case.prompt))),
        "motion": float(judges.classify_motion(frames) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
    }
    return metrics | ({"speed": subject_speed(judges.predict_geometry(frames).points)} if case.motion in STRAIGHT else {})


def subject_speed(points: np.ndarray) -> float:
    """How far a thing goes from frame to frame, in parts of the picture: the slope of its middle's way. [f 5 2] -> 1"""
    number = np.arange(len(points)) - (len(points) - 1) / 2
    return float(np.linalg.norm(number @ points.mean(1) / (number @ number)))


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """What the issue claims."""
    of = partial(metric_values, records, f"{FPS:g} fps")
    return [
        claim_at_least("frames show the thing", of("thing"), 0.85),
        claim_at_least("frames show the colour", of("colour"), 0.90),
        claim_at_least("frames show the scene", of("scene"), 0.95),
        claim_at_least("the thing moves as the prompt says", of("motion"), 0.85),
        claim_at_least("same thing as in the first frame", of("same thing"), 0.90),
        claim_at_least("same colour as in the first frame", of("same colour"), 0.90),
        claim_ratio_within(
            "speed a frame at twice the frame rate, over that at the usual", metric_values(records, f"{FASTER:g} fps", "speed"),
            of("speed"), 0.4, 0.6,
        ),
    ]  # fmt: skip


def claim_ratio_within(name: str, faster: Sequence[float], usual: Sequence[float], low: float, high: float) -> Claim:
    """The ratio of the means lies between the two; its error is that of the first order (delta method)."""
    over = float(np.mean(faster) / np.mean(usual))
    rest = mean([a - over * b for a, b in zip(faster, usual, strict=True)]).error / float(np.mean(usual))
    return Claim(name, over, rest, len(usual), f"{low:g} to {high:g}", low <= over <= high)


ROWS: Mapping[str, str] = {
    **COMMON_ROWS,
    "same thing": "frames with the first frame's thing",
    "same colour": "frames with the first frame's colour",
    "motion": "videos that move as the prompt says",
    "speed": "way of the thing from frame to frame (parts of the picture; straight motions)",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}
