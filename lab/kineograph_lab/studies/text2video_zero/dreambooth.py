"""A DreamBooth subject as a LoRA, with a stock ControlNet, on the pocket world: it keeps who it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies.frame_metrics import share_equal
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.report import Claim, better
from kineograph_lab.studies.study import Study, column
from kineograph_lab.studies.text2video_zero.controlled import FPS, FRAMES, draw, drawn, truths
from kineograph_lab.studies.text2video_zero.subjects import STEPS as TRAINED
from kineograph_lab.studies.text2video_zero.subjects import DreamBoothSubject, learnt, subject_of, subjects
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import KEYPOINTS

STEPS, SCALE, KIND = 20, 3.0, "pose"
FOLDER = Path("runs/subjects")


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The base model and the subject's LoRA, both told the subject's prompt and shown the same poses."""
    steps = steps or STEPS
    cases = [_of_a_subject(case, subject_of(case)) for case in held_out_cases(count)]
    return Study(
        name="specialised",
        title="Specialised by a DreamBooth LoRA, guided by a stock ControlNet (pose)",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS, "control": KIND,
            "lora_steps": TRAINED,
        },
        cases=cases,
        arms={"base": partial(filmed, lambda case: model, steps), "LoRA": partial(filmed, with_lora, steps)},
        measured=lambda frames, case: measured(frames, case, subject_of(case), witnesses),
        claims=claims,
        rows=ROWS,
    )  # fmt: skip


def _of_a_subject(case: Case, subject: DreamBoothSubject) -> Case:
    """The case with another individual of the subject's kind in its shot, whose poses guide, and its prompt."""
    thing = replace(case.shot.things[0], kind=subject.kind)
    shot = replace(case.shot, things=(thing,))
    return replace(case, prompt=subject.prompt(shot.scene), shot=shot)


def filmed(chosen: Callable[[Case], Model], steps: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, each by the model that is chosen for it."""
    return [_filmed(chosen(case), steps, case) for case in cases]


def with_lora(case: Case) -> Model:
    """The pocket model with the LoRA of the case's subject, trained unless it is there."""
    return _with_lora(subject_of(case).number)


@cache
def _with_lora(number: int) -> Model:
    return load(lora=str(learnt(subjects()[number], FOLDER, TRAINED)))


def _filmed(model: Model, steps: int, case: Case) -> Frames:
    maps = drawn(KIND, case.shot)
    return draw(model, case.prompt, case.seed, steps=steps, scale=SCALE, kind=KIND, maps=maps)


def measured(frames: Frames, case: Case, subject: DreamBoothSubject, witnesses: Witnesses) -> Mapping[str, float]:
    """All that is measured of one video."""
    seen, theirs = witnesses.look(frames), witnesses.look(subject.pictures)
    points = np.array([[each.keypoints[0][name] for name in KEYPOINTS] for each in truths(case.shot)]) / SIDE
    return {
        "CLIP-I": float((witnesses.embed(frames) @ witnesses.embed(subject.pictures).T).mean()),
        "individual": float((seen.individuals @ theirs.individuals.T).mean()),
        "thing": share_equal(seen.things, subject.kind),
        "scene": share_equal(seen.scenes, case.scene),
        "points": float(np.linalg.norm(witnesses.survey(frames).points - points, axis=-1).mean()),
    }


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue claims."""
    ours, base = (partial(column, made, arm) for arm in ("LoRA", "base"))
    return [
        better("CLIP-I with the subject's pictures, LoRA - base", ours("CLIP-I"), base("CLIP-I"), errors=3),
        better("likeness of the individual, LoRA - base", ours("individual"), base("individual"), errors=3),
    ]


ROWS = {
    "CLIP-I": "CLIP-I: mean cosine with the subject's pictures",
    "individual": "likeness of the individual to the subject's, by the judge",
    "thing": "frames with the subject's kind",
    "scene": "frames with the prompt's scene",
    "points": "points: mean distance from the control's (parts of the picture)",
}
