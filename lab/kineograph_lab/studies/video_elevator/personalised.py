"""VideoElevator with a personalised image model on the pocket world: the subject's look, the video model's motion.

The image model has the LoRA of a subject that the video model was not trained on. The video model's prompt names the
subject's kind and motion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from kineograph.methods.video_elevator import METHOD as VIDEO_ELEVATOR
from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import (
    CLIP_MARGIN,
    SIMILARITY_MARGIN,
    Claim,
    claim_better,
    claim_not_below,
    claim_ratio_at_least,
)
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.splits import DEVELOPMENT, Split
from kineograph_lab.studies.still_moving.items import item_caption
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.studies.text2video_zero.dreambooth import load_with_lora, lora_file
from kineograph_lab.studies.text2video_zero.subjects import STEPS as LORA_STEPS
from kineograph_lab.studies.text2video_zero.subjects import subject_of
from kineograph_lab.studies.video_elevator.two_models import (
    INDEPENDENT,
    OURS,
    PER_FRAME,
    STEPS,
    TOGETHER,
    VIDEO,
    elevator_settings,
    generate_with_both,
    generate_with_video_model,
    repeat_frames,
)
from kineograph_lab.world.captions import MOTIONS


def personalised_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the pocket model with a subject's LoRA, and the video model of degraded clips."""
    video, options = load("pocket-video-degraded"), {TOGETHER: OURS, PER_FRAME: INDEPENDENT}
    generate_arm = partial(generate_with_both, load_with_lora, video, steps or STEPS, _image_prompt)
    return Study(
        ANALYSIS,
        cases=personalised_cases(count),
        settings={**elevator_settings(video, steps, options), "lora_steps": LORA_STEPS},
        arms={
            **{name: partial(generate_arm, each) for name, each in options.items()},
            VIDEO: partial(generate_with_video_model, video, steps or STEPS),
        },
        measure=lambda frames, case: _measure(frames, case, judges),
        trained=lambda arm, case: [] if arm == VIDEO else [lora_file(case)],
    )  # fmt: skip


def _image_prompt(case: Case) -> str:
    return subject_of(case).prompt(case.scene)


def personalised_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return moving cases of the subjects in turn; a subject, with one LoRA, is a cluster."""
    return [_with_subject(case) for case in moving_cases(count, split)]


def _with_subject(case: Case) -> Case:
    """Return the case with a subject of the LoRA's kind, and a prompt without the colour, which is the LoRA's."""
    subject = subject_of(case)
    shot = replace(case.shot, things=(replace(case.shot.things[0], kind=subject.kind),))
    prompt = item_caption("subject", shot, MOTIONS[case.motion][0])
    return replace(case, prompt=prompt, shot=shot, cluster=subject.number)


def _measure(frames: Frames, case: Case, judges: Judges) -> Mapping[str, float]:
    judged, theirs = judges.classify(frames), subject_of(case).images
    return {
        "CLIP-I": float((judges.embed(frames) @ judges.embed(theirs).T).mean()),
        "subject": float((judged.identities @ judges.classify(theirs).identities.T).mean()),
        "thing": frame_metrics.share_equal(judged.subjects, case.subject),
        "scene": frame_metrics.share_equal(judged.scenes, case.scene),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, item_caption("subject", case.shot))),
        "motion": float(judges.classify_motion(repeat_frames(frames)) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the paper's claims: the image model's look, the video model's motion."""
    ours, per_frame, video = (partial(metric_values, records, arm) for arm in (TOGETHER, PER_FRAME, VIDEO))
    return [
        claim_better("CLIP-I to the subject, together - video model", ours("CLIP-I"), video("CLIP-I")),
        claim_better("similarity of the individual, together - video model", ours("subject"), video("subject")),
        claim_not_below("CLIP score, together - image model per frame", ours("text"), per_frame("text"), CLIP_MARGIN),
        claim_better("frames agree, together - image model per frame", ours("steady"), per_frame("steady")),
        claim_not_below("frames agree, together - video model", ours("steady"), video("steady"), SIMILARITY_MARGIN),
        claim_better("motion as prompted, together - image model per frame", ours("motion"), per_frame("motion")),
        claim_ratio_at_least("motion as prompted, of the video model's", ours("motion"), video("motion"), 0.8),
    ]


ROWS: Mapping[str, str] = {
    "CLIP-I": "CLIP-I to the subject's images",
    "subject": "similarity of the individual to the subject's",
    "thing": "frames with the subject's kind",
    "scene": "frames with the prompt's scene",
    "text": "CLIP score (100 cos), of the kind in the scene",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}

ANALYSIS = Analysis(
    name="video-elevator-personalised",
    title="A personalised image model and the same video model",
    cases=personalised_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=("pocket-video-degraded",),
    options=VIDEO_ELEVATOR.options,
)
