"""VidRD's long videos on the pocket world: constant content over many clips, and no jump at the seams.

They are compared with independent clips joined and, over two clips of fewer prompts, with the paper's own numbers and
the method without each of its three parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from jaxtyping import Float, UInt8

from kineograph.generation.api import generate
from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.methods.vidrd import REVERSED, USUAL_OVERLAP, ClipOptions
from kineograph.metrics import optical_flow
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.options import defaults
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import SMOOTH, Claim, Values, claim_better, claim_ratio_within, claim_within
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import ENGINE, SCALE
from kineograph_lab.studies.study import Analysis, GenerateClips, Study, metric_values

FRAMES, FPS = 8, 8.0  # of a clip, as in the paper
STEPS = 15  # of each clip; a case has sixteen clips
CLIPS, ABLATED_CLIPS, ABLATED_CASES = 8, 2, 40
WHOLE, JOINED, PAPER = "reuse and diffuse", "clips joined", "as published"
BOTH: Mapping[str, ClipOptions] = {
    WHOLE: {},
    JOINED: {"clip_overlap": 0, "clip_noise_ratio": 0.0, "clip_guidance": 0.0},
}
THEIRS: Mapping[str, ClipOptions] = {PAPER: {"clip_overlap": 4, "clip_guidance": 0.4}}
WITHOUT: Mapping[str, ClipOptions] = {
    "no noise reversion": {"clip_noise_order": "kept"},
    "no past-dependent noise": {"clip_noise_ratio": 0.0},
    "no staged guidance": {"clip_guidance": 0.0},
}
# option -> its name in the recorded settings, by which earlier records are found
RECORDED_NAMES = {
    "clip_overlap": "keep", "clip_noise_ratio": "noise_ratio", "clip_guidance": "guidance", "clip_anchor": "anchor",
    "clip_noise_order": "order",
}  # fmt: skip
# the options of clips, whatever a model's own order is
IN_THE_PAPERS_ORDER = {**defaults(ClipOptions), "clip_order": REVERSED, "clip_overlap": USUAL_OVERLAP[REVERSED]}
PROMPT_METRICS = {"thing": "subject", "colour": "colour", "scene": "scene"}  # metric -> its name in the report
DEPARTURE = "jump or standstill at a seam"
CHANGES = {"flow": "optical flow per frame in thousandths of the image", "pixels": "change of a pixel in grey levels"}


def long_videos_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of eight clips by VidRD, and of as many independent clips joined."""
    steps = steps or STEPS
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS, "clips": CLIPS,
            "reuse": _recorded_defaults(), "motion": optical_flow.PROTOCOL,
        },
        cases=moving_cases(count),
        arms=_arms(model, steps, CLIPS, BOTH),
        measure=lambda frames, case: _measure(frames, case, judges),
        select_frames=seam_frames,
    )  # fmt: skip


def long_videos_ablation(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of two clips: the whole method, the paper's numbers, and without each part; at most 40 cases."""
    long = long_videos_study(model, judges, min(count, ABLATED_CASES), steps)
    return long._replace(
        analysis=ABLATION,
        settings={**long.settings, "clips": ABLATED_CLIPS},
        arms=_arms(model, steps or STEPS, ABLATED_CLIPS, {**BOTH, **THEIRS, **WITHOUT}),
    )


def _recorded_defaults() -> dict[str, object]:
    return {recorded: IN_THE_PAPERS_ORDER[name] for name, recorded in RECORDED_NAMES.items()}


def _arms(model: Model, steps: int, clips: int, options: Mapping[str, ClipOptions]) -> dict[str, GenerateClips]:
    return {name: partial(generate_long_videos, model, steps, clips, each) for name, each in options.items()}


def generate_long_videos(
    model: Model, steps: int, clips: int, options: ClipOptions, cases: Sequence[Case]
) -> list[Frames]:
    """Generate the videos of some cases, of `clips` clips each."""
    with_clips: ClipOptions = {**options, "clips": clips, "clip_order": REVERSED}  # the paper's
    return [
        generate(
            model, case.prompt, num_frames=FRAMES, fps=FPS, num_inference_steps=steps, guidance_scale=SCALE,
            seed=case.seed, engine=ENGINE, **with_clips,
        ).frames
        for case in cases
    ]  # fmt: skip


def seam_frames(frames: Frames) -> UInt8[np.ndarray, "edges h w 3"]:
    """Return the first and the last frame of each clip, which are neighbours at a seam."""
    return frames[np.arange(len(frames)) % FRAMES % (FRAMES - 1) == 0]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    return measure_ends(frames, case, judges, FRAMES) | frame_changes(frames)


def measure_ends(frames: Frames, case: Case, judges: Judges, length: int) -> dict[str, float]:
    """Return agreement with the prompt in the first and in the last `length` frames, and their similarity."""
    ends = {"first": frames[:length], "last": frames[-length:]}
    judged = {where: judges.classify(clip) for where, clip in ends.items()}
    metrics: dict[str, float] = {}
    for where, clip in ends.items():
        right = frame_metrics.prompt_agreement(judged[where], case)
        metrics |= {f"{name}, {where} clip": right[name] for name in PROMPT_METRICS}
        metrics[f"motion, {where} clip"] = float(judges.classify_motion(clip) == case.motion)
    return metrics | {"individual": float((judged["last"].identities @ judged["first"].identities.T).mean())}


def frame_changes(frames: Frames) -> dict[str, float]:
    """Return the mean change from frame to frame, at the seams and inside of clips."""
    at_seam = np.arange(1, len(frames)) % FRAMES == 0
    return {
        f"{name}, {where}": float(values[chosen].mean())
        for (name, values), (where, chosen) in product(
            changes_by_frame(frames).items(), zip(WHERE, (at_seam, ~at_seam), strict=True)
        )
    }


def changes_by_frame(frames: Frames) -> dict[str, Float[np.ndarray, " pairs"]]:
    """Return the change from each frame to the next, as `CHANGES`."""
    differences = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    return {"flow": 1000 * optical_flow.motion_per_frame(frames), "pixels": differences}


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the claims about many clips."""
    whole, joined = (partial(metric_values, records, arm) for arm in (WHOLE, JOINED))
    lost = {name: whole(f"{name}, last clip").minus(whole(f"{name}, first clip")) for name in PROMPT_METRICS}
    return [
        *(
            claim_within(f"{PROMPT_METRICS[metric]} at the last clip - at the first", values, -0.1, 0.1)
            for metric, values in lost.items()
        ),
        *_claim_smooth_seams(records, WHOLE),
        *(
            claim_better(
                f"{DEPARTURE}, {JOINED} - {WHOLE}: {name}", _departures(joined, name), _departures(whole, name)
            )
            for name in CHANGES
        ),
    ]


def _state_ablation_claims(records: Sequence[Record]) -> list[Claim]:
    """State that each part is needed, as in the paper's ablation, and the claims about the paper's own numbers."""
    whole = partial(metric_values, records, WHOLE)
    return [
        *_claim_smooth_seams(records, WHOLE),
        *_claim_smooth_seams(records, PAPER),
        *(
            claim_better(
                f"{DEPARTURE}, {arm} - whole: {name}",
                _departures(partial(metric_values, records, arm), name),
                _departures(whole, name),
            )
            for arm, name in product(WITHOUT, CHANGES)
        ),
    ]


def _departures(values: Callable[[str], Values], name: str) -> Values:
    """Return how far the change at the seams is from that inside of clips, in either direction, of each video."""
    seam = values(f"{name}, seam")
    return replace(seam, values=tuple(map(abs, seam.minus(values(f"{name}, inside")).values)))


def _claim_smooth_seams(records: Sequence[Record], arm: str) -> list[Claim]:
    """Claim that there is neither a jump at the seams, nor a frozen frame."""
    values = partial(metric_values, records, arm)
    return [
        claim_ratio_within(
            f"change at a seam over inside, {arm}: {name}",
            values(f"{name}, seam"),
            values(f"{name}, inside"),
            *SMOOTH,
        )
        for name in CHANGES
    ]


WHERE = {"seam": "at a seam", "inside": "inside a clip"}
ROWS: Mapping[str, str] = {
    **{
        f"{metric}, {where} clip": f"frames of the {where} clip with the prompt's {name}"
        for where, (metric, name) in product(("first", "last"), PROMPT_METRICS.items())
    },
    **{f"motion, {where} clip": f"videos whose {where} clip moves as the prompt says" for where in ("first", "last")},
    "individual": "similarity of the last clip's individual to the first's",
    **{f"{name}, {where}": f"{CHANGES[name]}, {place}" for name, (where, place) in product(CHANGES, WHERE.items())},
}

ANALYSIS = Analysis(
    name="long-videos",
    title="Eight clips in sequence",
    cases=moving_cases,
    state_claims=_state_claims,
    rows=ROWS,
    options=(*VIDEOCRAFTER.options, ClipOptions),
)
ABLATION = Analysis(
    name="long-videos-ablation",
    title=f"Two clips in sequence, without each part of the method ({ABLATED_CASES} of the prompts)",
    cases=lambda count, split: moving_cases(min(count, ABLATED_CASES), split),
    state_claims=_state_ablation_claims,
    rows=ROWS,
    options=(*VIDEOCRAFTER.options, ClipOptions),
)
