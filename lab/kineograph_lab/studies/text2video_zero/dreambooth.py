"""DreamBooth LoRAs with a stock ControlNet on the pocket world: similarity to the subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from kineograph.methods.controlnet import ControlOptions
from kineograph.methods.text2video_zero import METHOD as TEXT2VIDEO_ZERO
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.studies.claims import Claim, claim_better
from kineograph_lab.studies.frame_metrics import share_equal
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.splits import DEVELOPMENT, Split
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.studies.text2video_zero.controlnet import (
    FPS,
    FRAMES,
    generate_with_control,
    ground_truths,
)
from kineograph_lab.studies.text2video_zero.subjects import STEPS as LORA_STEPS
from kineograph_lab.studies.text2video_zero.subjects import (
    DreamBoothSubject,
    dreambooth_subjects,
    subject_of,
    train_lora_once,
)
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import KEYPOINTS

STEPS, SCALE, KIND = 20, 3.0, "pose"
FOLDER = Path("runs/subjects")


def dreambooth_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the base model and the subject's LoRA, with the same prompts and pose maps."""
    steps = steps or STEPS
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS, "control": KIND,
            "lora_steps": LORA_STEPS,
        },
        cases=dreambooth_cases(count),
        arms={"base": partial(_generate, lambda case: model, steps), "LoRA": partial(_generate, load_with_lora, steps)},
        measure=lambda frames, case: _measure(frames, case, subject_of(case), judges),
        trained=lambda arm, case: [lora_file(case)] if arm == "LoRA" else [],
    )  # fmt: skip


def dreambooth_cases(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return held-out cases of the subjects in turn; a subject, with one LoRA, is a cluster."""
    return [_with_subject(case, subject_of(case)) for case in held_out_cases(count, split)]


def _with_subject(case: Case, subject: DreamBoothSubject) -> Case:
    """Return the case with the subject's prompt, and a shot of another individual of its kind, for the pose maps."""
    main = replace(case.shot.things[0], kind=subject.kind)
    shot = replace(case.shot, things=(main,))
    return replace(case, prompt=subject.prompt(shot.scene), shot=shot, cluster=subject.number)


def _generate(model_for: Callable[[Case], Model], steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate the videos of some cases, each with its own model."""
    return [generate_with_control(model_for(case), case, KIND, steps=steps, scale=SCALE) for case in cases]


def lora_file(case: Case) -> Path:
    """Return the file of the LoRA of the case's subject, trained if there is none yet."""
    return train_lora_once(subject_of(case), FOLDER, LORA_STEPS)


def load_with_lora(case: Case) -> Model:
    """Load the pocket model with the LoRA of the case's subject, trained if there is none yet."""
    return _load_with_lora(case.split, subject_of(case).number)


@cache
def _load_with_lora(split: Split, number: int) -> Model:
    return load(lora=str(train_lora_once(dreambooth_subjects(split)[number], FOLDER, LORA_STEPS)))


def _measure(frames: Frames, case: Case, subject: DreamBoothSubject, judges: Judges) -> Mapping[str, float]:
    judged, theirs = judges.classify(frames), judges.classify(subject.images)
    points = np.array([[each.keypoints[0][name] for name in KEYPOINTS] for each in ground_truths(case.shot)]) / SIDE
    return {
        "CLIP-I": float((judges.embed(frames) @ judges.embed(subject.images).T).mean()),
        "individual": float((judged.identities @ theirs.identities.T).mean()),
        "thing": share_equal(judged.subjects, subject.kind),
        "scene": share_equal(judged.scenes, case.scene),
        "points": float(np.linalg.norm(judges.predict_geometry(frames).points - points, axis=-1).mean()),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    ours, base = (partial(metric_values, records, arm) for arm in ("LoRA", "base"))
    return [
        claim_better("CLIP-I with the subject's images, LoRA - base", ours("CLIP-I"), base("CLIP-I")),
        claim_better("similarity of the individual, LoRA - base", ours("individual"), base("individual")),
    ]


ROWS = {
    "CLIP-I": "CLIP-I: mean cosine with the subject's images",
    "individual": "similarity of the individual to the subject's, by the judge",
    "thing": "frames with the subject's kind",
    "scene": "frames with the prompt's scene",
    "points": "points: mean distance from the control's (fractions of the image)",
}

ANALYSIS = Analysis(
    name="specialised",
    title="Specialised by a DreamBooth LoRA, guided by a stock ControlNet (pose)",
    cases=dreambooth_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=("controlnet pose",),
    options=(*TEXT2VIDEO_ZERO.options, ControlOptions),
)
