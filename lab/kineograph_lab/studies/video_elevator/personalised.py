"""VideoElevator with a personalised image model, on the pocket world: the subject's looks, the video model's motion.

The video model never saw the subject, and is told its kind and how it moves; the image model has the subject's LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, claim_at_least_share, claim_better, claim_not_below
from kineograph_lab.studies.still_moving.items import caption
from kineograph_lab.studies.study import Study, metric_values
from kineograph_lab.studies.text2video_zero.dreambooth import load_with_lora
from kineograph_lab.studies.text2video_zero.subjects import STEPS as LORA_STEPS
from kineograph_lab.studies.text2video_zero.subjects import subject_of
from kineograph_lab.studies.video_elevator.two_models import (
    INDEPENDENT,
    OURS,
    PER_FRAME,
    STEPS,
    TOGETHER,
    VIDEO,
    generate_with_both,
    generate_with_video_model,
    elevator_settings,
    repeat_frames,
)
from kineograph_lab.world.captions import MOTIONS


def personalised_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """The pocket model with the LoRA of a subject, and the video model of bad films."""
    video, options = load("pocket-video-degraded"), {TOGETHER: OURS, PER_FRAME: INDEPENDENT}
    generate_with_both_ = partial(generate_with_both, load_with_lora, video, steps or STEPS, _image_prompt)
    return Study(
        name="video-elevator-personalised", title="A personalised image model and the same video model",
        cases=[_with_subject(case) for case in moving_cases(count)],
        elevator_settings={**elevator_settings(video, steps, options), "lora_steps": LORA_STEPS},
        arms={
            **{name: partial(generate_with_both_, way) for name, way in options.items()}, VIDEO: partial(generate_with_video_model, video, steps or STEPS),
        },
        measure=lambda frames, case: _measure(frames, case, judges), state_claims=_state_claims, rows=ROWS,
    )  # fmt: skip


def _image_prompt(case: Case) -> str:
    return subject_of(case).prompt(case.scene)


def _with_subject(case: Case) -> Case:
    """The case with a thing of its subject's kind, of which the prompt says no colour: the subject has its own."""
    thing = replace(case.shot.things[0], kind=subject_of(case).kind)
    shot = replace(case.shot, things=(thing,))
    return replace(case, prompt=caption("subject", shot, MOTIONS[case.motion][0]), shot=shot)


def _measure(frames: Frames, case: Case, judges: Judges) -> Mapping[str, float]:
    """Return all metrics of one video."""
    judged, theirs = judges.classify(frames), subject_of(case).images
    return {
        "CLIP-I": float((judges.embed(frames) @ judges.embed(theirs).T).mean()),
        "subject": float((judged.identities @ judges.classify(theirs).identities.T).mean()),
        "thing": frame_metrics.share_equal(judged.things, case.subject),
        "scene": frame_metrics.share_equal(judged.scenes, case.scene),
        **dict(frame_metrics.clip_score(judges.text_similarity(frames, caption("subject", case.shot)))),
        "motion": float(judges.classify_motion(repeat_frames(frames)) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """What the paper claims: looks as the image model's, motion as the video model's."""
    of, apart, video = (partial(metric_values, records, arm) for arm in (TOGETHER, PER_FRAME, VIDEO))
    return [
        claim_better("CLIP-I to the subject, together - video model", of("CLIP-I"), video("CLIP-I")),
        claim_better("likeness of the individual, together - video model", of("subject"), video("subject")),
        claim_not_below("CLIP score, together - image model per frame", of("text"), apart("text")),
        claim_better("frames agree, together - image model per frame", of("steady"), apart("steady")),
        claim_not_below("frames agree, together - video model", of("steady"), video("steady")),
        claim_better("motion as asked, together - image model per frame", of("motion"), apart("motion")),
        claim_at_least_share("motion as asked, of the video model's", of("motion"), video("motion"), 0.8),
    ]


ROWS: Mapping[str, str] = {
    "CLIP-I": "CLIP-I to the subject's pictures",
    "subject": "likeness of the individual to the subject's",
    "thing": "frames with the subject's kind",
    "scene": "frames with the prompt's scene",
    "text": "CLIP score (100 cos), of the kind in the scene",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}
