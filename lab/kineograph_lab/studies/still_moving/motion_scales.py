"""Still-Moving's motion adapter at several scales, without customisation: from more motion to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import optical_flow
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import Claim, claim_better, claim_ratio_at_most
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS, generate_frames
from kineograph_lab.studies.still_moving.baselines import DEFAULT_MODEL, check_motion_adapter, for_model
from kineograph_lab.studies.study import PROMPT_ROWS, Analysis, Study, every_third_frame, metric_values

SPACE_TIME = "pocket-space-time"
SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0)
MAX_CASES, MAX_SPACE_TIME_CASES = 40, 20
STILL_SHARE = 0.1  # of the motion at scale 0; at most this counts as still


def motion_scale_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the same prompts and seeds at all scales."""
    check_motion_adapter(model)
    return Study(
        for_model(ANALYSIS, model),
        settings={
            "num_inference_steps": steps or STEPS, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "motion": optical_flow.PROTOCOL, "video model": fingerprint(model.net),
            "motion eye": fingerprint(load_judge().motion_eye),
        },
        cases=moving_cases(min(count, MAX_CASES)),
        arms={_arm(scale): partial(_generate, model, scale, steps or STEPS) for scale in SCALES},
        measure=lambda frames, case: _measure(frames, case, judges),
        select_frames=every_third_frame,
    )  # fmt: skip


def space_time_motion_scale_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the same study of `pocket-space-time`, a space-time U-Net after Lumiere, in place of the given model."""
    space_time = load(SPACE_TIME, device=model.device, dtype=model.dtype)
    return motion_scale_study(space_time, judges, min(count, MAX_SPACE_TIME_CASES), steps)


def _arm(scale: float) -> str:
    return f"scale {scale:g}"


def _generate(model: Model, scale: float, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [generate_frames(model, case, steps=steps, motion_scale=scale) for case in cases]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    judged = judges.classify(frames)
    return {
        "moved": float(FPS * optical_flow.motion_per_frame(frames).mean()),
        "motion": float(judges.classify_motion(frames) == case.motion),
        **frame_metrics.prompt_agreement(judged, case),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that motion falls from each scale to the next, to nearly none at 1."""
    motion = {scale: metric_values(records, _arm(scale), "moved") for scale in SCALES}
    falls = [
        claim_better(f"motion, at {less:g} - at {more:g}", motion[less], motion[more])
        for less, more in pairwise(SCALES)
    ]
    return [*falls, claim_ratio_at_most("motion at 1, over that at 0", motion[1.0], motion[0.0], STILL_SHARE)]


ROWS: Mapping[str, str] = {
    "moved": "motion: mean optical flow per second (widths and heights)",
    "motion": "videos that move as the prompt says",
    **PROMPT_ROWS,
    "text": "CLIP score (100 cos)",
}

ANALYSIS = Analysis(
    name="motion-scale",
    title=f"The motion adapter's scale, {DEFAULT_MODEL} ({MAX_CASES} of the prompts)",
    cases=lambda count, split: moving_cases(min(count, MAX_CASES), split),
    state_claims=_state_claims,
    rows=ROWS,
    options=VIDEOCRAFTER.options,
)
SPACE_TIME_ANALYSIS = ANALYSIS._replace(
    name=f"{ANALYSIS.name}-{SPACE_TIME}",
    title=f"The motion adapter's scale, {SPACE_TIME} ({MAX_SPACE_TIME_CASES} of the prompts)",
    cases=lambda count, split: moving_cases(min(count, MAX_SPACE_TIME_CASES), split),
    models=(SPACE_TIME,),
)
