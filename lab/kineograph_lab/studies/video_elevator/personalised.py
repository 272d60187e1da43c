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
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, at_least_a_share, better, not_below
from kineograph_lab.studies.still_moving.items import caption
from kineograph_lab.studies.study import Study, column
from kineograph_lab.studies.text2video_zero.dreambooth import with_lora
from kineograph_lab.studies.text2video_zero.subjects import STEPS as TRAINED
from kineograph_lab.studies.text2video_zero.subjects import subject_of
from kineograph_lab.studies.video_elevator.two_models import (
    APART,
    OURS,
    PER_FRAME,
    STEPS,
    TOGETHER,
    VIDEO,
    drawn,
    filmed,
    settings,
    slowly,
)
from kineograph_lab.world.captions import MOTIONS


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The pocket model with the LoRA of a subject, and the video model of bad films."""
    video, ways = load("pocket-video-degraded"), {TOGETHER: OURS, PER_FRAME: APART}
    draw = partial(drawn, with_lora, video, steps or STEPS, _asked_for)
    return Study(
        name="video-elevator-personalised", title="A personalised image model and the same video model",
        cases=[_of_a_subject(case) for case in moving_cases(count)],
        settings={**settings(video, steps, ways), "lora_steps": TRAINED},
        arms={
            **{name: partial(draw, way) for name, way in ways.items()}, VIDEO: partial(filmed, video, steps or STEPS),
        },
        measured=lambda frames, case: measured(frames, case, witnesses), claims=claims, rows=ROWS,
    )  # fmt: skip


def _asked_for(case: Case) -> str:
    return subject_of(case).prompt(case.scene)


def _of_a_subject(case: Case) -> Case:
    """The case with a thing of its subject's kind, of which the prompt says no colour: the subject has its own."""
    thing = replace(case.shot.things[0], kind=subject_of(case).kind)
    shot = replace(case.shot, things=(thing,))
    return replace(case, prompt=caption("subject", shot, MOTIONS[case.motion][0]), shot=shot)


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> Mapping[str, float]:
    """All that is measured of one video."""
    seen, theirs = witnesses.look(frames), subject_of(case).pictures
    return {
        "CLIP-I": float((witnesses.embed(frames) @ witnesses.embed(theirs).T).mean()),
        "subject": float((seen.individuals @ witnesses.look(theirs).individuals.T).mean()),
        "thing": frame_metrics.share_equal(seen.things, case.thing),
        "scene": frame_metrics.share_equal(seen.scenes, case.scene),
        **dict(frame_metrics.clip_score(witnesses.alike(frames, caption("subject", case.shot)))),
        "motion": float(witnesses.move(slowly(frames)) == case.motion),
        "steady": video_metrics.frame_consistency(witnesses.embed(frames)),
    }


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the paper claims: looks as the image model's, motion as the video model's."""
    of, apart, video = (partial(column, made, arm) for arm in (TOGETHER, PER_FRAME, VIDEO))
    return [
        better("CLIP-I to the subject, together - video model", of("CLIP-I"), video("CLIP-I")),
        better("likeness of the individual, together - video model", of("subject"), video("subject")),
        not_below("CLIP score, together - image model per frame", of("text"), apart("text")),
        better("frames agree, together - image model per frame", of("steady"), apart("steady")),
        not_below("frames agree, together - video model", of("steady"), video("steady")),
        better("motion as asked, together - image model per frame", of("motion"), apart("motion")),
        at_least_a_share("motion as asked, of the video model's", of("motion"), video("motion"), 0.8),
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
