"""VideoCrafter1's text-to-video on the pocket world: agreement with the prompt and with the frame rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import Claim, claim_at_least, claim_ratio_within
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS, generate_frames
from kineograph_lab.studies.study import COMMON_ROWS, Analysis, Study, metric_values
from kineograph_lab.world.world import render_clip

FASTER = 2 * FPS
STRAIGHT = ("left", "right", "up", "down")  # motions of constant speed


def text_to_video_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the usual frame rate as condition, twice that, and the world's own rendering."""
    steps = steps or STEPS
    return Study(
        ANALYSIS,
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
    )  # fmt: skip


def generate_cases(model: Model, fps: float, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate the videos of some cases."""
    return [generate_frames(model, case, steps=steps, fps=fps) for case in cases]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    judged = judges.classify(frames)
    metrics = {
        **frame_metrics.prompt_agreement(judged, case),
        **frame_metrics.identity_consistency(judged),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
        "motion": float(judges.classify_motion(frames) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
    }
    if case.motion in STRAIGHT:
        metrics["speed"] = subject_speed(judges.predict_geometry(frames).points)
    return metrics


def subject_speed(points: np.ndarray) -> float:
    """Return a subject's speed per frame, in image widths: the slope of the mean of its keypoints [f 5 2]."""
    number = np.arange(len(points)) - (len(points) - 1) / 2
    return float(np.linalg.norm(number @ points.mean(1) / (number @ number)))


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    values = partial(metric_values, records, f"{FPS:g} fps")
    return [
        claim_at_least("frames show the subject", values("thing"), 0.85),
        claim_at_least("frames show the colour", values("colour"), 0.90),
        claim_at_least("frames show the scene", values("scene"), 0.95),
        claim_at_least("the subject moves as the prompt says", values("motion"), 0.85),
        claim_at_least("same subject as in the first frame", values("same thing"), 0.90),
        claim_at_least("same colour as in the first frame", values("same colour"), 0.90),
        claim_ratio_within(
            "speed a frame at twice the frame rate, over that at the usual",
            metric_values(records, f"{FASTER:g} fps", "speed"),
            values("speed"),
            0.4,
            0.6,
        ),
    ]


ROWS: Mapping[str, str] = {
    **COMMON_ROWS,
    "same thing": "frames with the first frame's subject",
    "same colour": "frames with the first frame's colour",
    "motion": "videos that move as the prompt says",
    "speed": "displacement of the subject per frame (image widths; straight motions)",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}

ANALYSIS = Analysis(
    name="text-to-video",
    title="Text to video",
    cases=moving_cases,
    state_claims=_state_claims,
    rows=ROWS,
    options=VIDEOCRAFTER.options,
)
