"""VideoElevator on the pocket world: an image model of clean pictures and a video model of bad films draw together.

The video model saw few films, blurred and watermarked (`pocket/degraded.py`), as public video data are; the image model
is the pocket model, or that with the LoRA of a subject. Beside what both draw together stand the image model frame by
frame and the video model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import inf
from pathlib import Path

import numpy as np

from kineograph.evaluation import metrics
from kineograph.evaluation.elevating import FPS, FRAMES, SCALE, STEPS, Choice, alone, chosen, drawn, per_frame
from kineograph.evaluation.metrics import Frames
from kineograph.evaluation.protocol import Case, Record, moving_cases
from kineograph.evaluation.quality import marked, sharpness
from kineograph.evaluation.report import Claim, at_least, better
from kineograph.evaluation.study import Study, column
from kineograph.evaluation.subjects import STEPS as TRAINED
from kineograph.evaluation.subjects import Subject, learnt, subjects
from kineograph.evaluation.witnesses import Witnesses
from kineograph.models.checkpoints import load
from kineograph.models.model import Model
from kineograph.models.origin import fingerprint
from kineograph.pocket.captions import of_picture
from kineograph.pocket.judge import load_judge
from kineograph.pocket.world import clip

FOLDER = Path("runs/subjects")
TOGETHER, PER_FRAME, VIDEO = "together", "image model per frame", "video model alone"


ABLATIONS: Mapping[str, Choice] = {
    "no low pass": Choice(temporal=inf),
    "low pass in space too": Choice(spatial=1.0),
    "same noise": Choice(back="same"),
    "fresh noise": Choice(back="fresh"),
    "refined once": Choice(refine_at=(0.9,)),
    "refined late": Choice(refine_at=(0.5, 0.3)),
    "2 video steps": Choice(video_steps=2),
    "inversion by all steps": Choice(inversion_steps=None),
}


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The pocket model with the video model of bad films, and the paper's ablations."""
    video = load("pocket-video-degraded")
    draw = partial(drawn, lambda case: model, video, steps or STEPS, _said)
    arms = {TOGETHER: partial(draw, chosen(Choice())), PER_FRAME: partial(draw, per_frame)}
    arms |= {VIDEO: partial(draw, alone), **{name: partial(draw, chosen(each)) for name, each in ABLATIONS.items()}}
    return Study(
        name="video-elevator", title="An image model and a video model of bad films", cases=moving_cases(count),
        settings=_settings(video, steps), arms=arms, measured=lambda frames, case: measured(frames, case, witnesses),
        claims=claims, rows=ROWS,
    )  # fmt: skip


def personalised(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The pocket model with the LoRA of a subject, and the same video model, which never saw that subject."""
    video, known = load("pocket-video-degraded"), subjects()
    cases = [_of_a_subject(case, known[case.number % len(known)]) for case in moving_cases(count)]
    draw = partial(drawn, lambda case: _specialised(case.number % len(known)), video, steps or STEPS, _asked_for)
    return Study(
        name="video-elevator-personalised", title="A personalised image model and the same video model", cases=cases,
        settings={**_settings(video, steps), "lora_steps": TRAINED},
        arms={
            TOGETHER: partial(draw, chosen(Choice())), PER_FRAME: partial(draw, per_frame),
            VIDEO: partial(draw, alone),
        },
        measured=lambda frames, case: measured_subject(frames, case, known[case.number % len(known)], witnesses),
        claims=claims_of_a_subject, rows={**ROWS, **SUBJECT_ROWS},
    )  # fmt: skip


def _settings(video: Model, steps: int | None) -> dict[str, object]:
    return {
        "num_inference_steps": steps or STEPS, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
        "video model": fingerprint(video.net), "motion eye": fingerprint(load_judge().motion_eye),
    }  # fmt: skip


def _said(case: Case) -> tuple[str, str]:
    """What the image model is told, which knows no words for motion, and what the video model is told."""
    return of_picture(case.shot, np.random.default_rng(case.number)), case.prompt


def _asked_for(case: Case) -> tuple[str, str]:
    known = subjects()
    return known[case.number % len(known)].prompt(case.scene), case.prompt


def _of_a_subject(case: Case, subject: Subject) -> Case:
    """The case with a thing of the subject's kind."""
    shot = replace(case.shot, things=(replace(case.shot.things[0], kind=subject.kind),))
    return replace(case, prompt=case.prompt.replace(case.thing, subject.kind), shot=shot)


@cache
def _specialised(number: int) -> Model:
    return load(lora=learnt(subjects()[number], FOLDER, TRAINED))


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> dict[str, float]:
    """All that is measured of one video."""
    seen = witnesses.look(frames)
    return {
        **dict(metrics.prompted(seen, thing=case.thing, colour=case.colour, scene=case.scene)),
        **dict(metrics.text_alignment(witnesses.alike(frames, _said(case)[0]))),
        "sharp": sharpness(frames) / sharpness(clip(case.shot, FRAMES, FPS)),
        "marked": marked(frames),
        "motion": float(witnesses.move(_slowly(frames)) == case.motion),
        "steady": metrics.steadiness(witnesses.embed(frames)),
        "individual": dict(metrics.identity(seen))["individual"],
    }


def measured_subject(frames: Frames, case: Case, subject: Subject, witnesses: Witnesses) -> dict[str, float]:
    """The same, and how like the subject it is."""
    who, theirs = (witnesses.look(each).individuals for each in (frames, subject.pictures))
    like = witnesses.embed(frames) @ witnesses.embed(subject.pictures).T
    return {
        **measured(frames, case, witnesses), "CLIP-I": float(like.mean()), "subject": float((who @ theirs.T).mean()),
    }  # fmt: skip


def _slowly(frames: Frames) -> Frames:
    """As many frames as the motion eye was taught to see, each shown twice."""
    return np.repeat(frames, 2, axis=0)


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the paper claims: frames as the image model's, motion as the video model's."""
    of = partial(column, made, TOGETHER)
    by = {name: partial(column, made, name) for name in (PER_FRAME, VIDEO)}
    return [
        better("sharpness, together - video model", of("sharp"), by[VIDEO]("sharp")),
        better("watermark, video model - together", by[VIDEO]("marked"), of("marked")),
        better("CLIP score, together - video model", of("text"), by[VIDEO]("text")),
        better("frames agree, together - image model per frame", of("steady"), by[PER_FRAME]("steady")),
        better("motion as asked, together - image model per frame", of("motion"), by[PER_FRAME]("motion")),
        at_least("motion as asked", of("motion"), 0.8 * float(np.mean(by[VIDEO]("motion")))),
    ]


def claims_of_a_subject(made: Sequence[Record]) -> list[Claim]:
    """The same, and the subject's looks."""
    of, video = (partial(column, made, name) for name in (TOGETHER, VIDEO))
    return [
        *claims(made),
        better("CLIP-I to the subject, together - video model", of("CLIP-I"), video("CLIP-I")),
        better("individual, together - video model", of("subject"), video("subject")),
    ]


ROWS: Mapping[str, str] = {
    "thing": "frames with the prompt's thing",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
    "text": "CLIP score (100 cos)",
    "sharp": "sharpness, over that of the world's own rendering",
    "marked": "watermark (correlation)",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
    "individual": "likeness of the individual to the first frame's",
}
SUBJECT_ROWS: Mapping[str, str] = {
    "CLIP-I": "CLIP-I to the subject's pictures",
    "subject": "likeness of the individual to the subject's",
}
