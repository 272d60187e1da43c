"""FreeNoise on the pocket world: four times the frames that the video model was trained on, by three methods.

The others are sliding windows (the whole network in overlapping windows, its outputs averaged) and VidRD's clips, each
of which continues the previous one. A case has the same prompt and seed in all arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kineograph.generation.api import generate
from kineograph.methods.freenoise import FreeNoiseOptions, fused_windows
from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.methods.vidrd import ClipOptions
from kineograph.metrics import optical_flow
from kineograph.metrics.features import Frames
from kineograph.metrics.statistics import Estimate
from kineograph.models.model import Model
from kineograph.models.unet.windows import overlapping_windows
from kineograph.options import defaults
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import (
    SHARE_MARGIN,
    SMOOTH,
    Claim,
    Values,
    claim_better,
    claim_counted_at_most,
    claim_not_below,
    claim_ratio_within,
)
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import ENGINE, FPS, SCALE, count_evaluations
from kineograph_lab.studies.study import Analysis, Study, computed_values, metric_values
from kineograph_lab.studies.vidrd.long_videos import (
    CHANGES,
    IN_THE_PAPERS_ORDER,
    PROMPT_METRICS,
    changes_by_frame,
    measure_ends,
)

CLIPS, STEPS, SHOWN = 4, 10, 8
FREENOISE, WINDOWS, CONTINUED = "freenoise", "sliding windows", "vidrd's clips"
OTHERS = (WINDOWS, CONTINUED)
ARMS = (FREENOISE, *OTHERS)
PLACES = {"seam": "where a window or clip begins or ends", "inside": "elsewhere"}

Seams = Mapping[str, Sequence[int]]  # arm -> numbers of the frames that follow a seam


def three_methods_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of 64 frames by FreeNoise, by sliding windows and by four clips of VidRD."""
    assert model.temporal is not None, "an image model has no temporal attention"
    steps, clip = steps or STEPS, model.temporal.num_frames
    frames = CLIPS * clip
    options: Mapping[str, Mapping[str, Any]] = {
        FREENOISE: {"num_frames": frames, "method": "freenoise"},
        WINDOWS: {"num_frames": frames, "method": "videocrafter"},
        CONTINUED: {"num_frames": clip, "clips": CLIPS, "clip_order": "reversed"},
    }
    evaluations = dict[int, float]()  # of the video that was generated last, by the number of its case
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "fps": FPS, "arms": options,
            "freenoise": defaults(FreeNoiseOptions), "clips": {**IN_THE_PAPERS_ORDER, "keep_clips": None}, "seams": seams_by_arm(frames),
            "motion": optical_flow.PROTOCOL,
        },
        cases=moving_cases(count),
        arms={name: partial(_generate, model, steps, each, evaluations) for name, each in options.items()},
        measure=lambda video, case: _measure(video, case, judges, clip) | {"evaluations": evaluations[case.number]},
        select_frames=evenly_spread,
    )  # fmt: skip


def seams_by_arm(frames: int) -> Seams:
    """Return the seams of so many frames in CLIPS clips."""
    clip, free = frames // CLIPS, defaults(FreeNoiseOptions)
    windows = {
        FREENOISE: [each.frames for each in fused_windows(clip, free["window_stride"], free["window_weights"], frames)],
        WINDOWS: overlapping_windows(frames, clip, clip // 4),
        CONTINUED: [range(start, start + clip) for start in range(0, frames, clip)],
    }
    return {name: seams_of(each, frames) for name, each in windows.items()}


def seams_of(windows: Sequence[range], frames: int) -> list[int]:
    """Return the frames that are in other windows than the frame before.

    >>> seams_of([range(0, 8), range(6, 14)], 14)
    [6, 8]
    """
    return sorted({edge for each in windows for edge in (each.start, each.stop)} - {0, frames})


def evenly_spread(frames: Frames) -> UInt8[np.ndarray, "shown h w 3"]:
    """Return eight frames from the first to the last."""
    return frames[np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)]


def _generate(
    model: Model, steps: int, options: Mapping[str, Any], evaluations: dict[int, float], cases: Sequence[Case]
) -> list[Frames]:
    """Generate the videos of some cases, and count the network's evaluations per frame."""
    videos = []
    for case in cases:
        generate_video = partial(
            generate, model, case.prompt, fps=FPS, num_inference_steps=steps, guidance_scale=SCALE, seed=case.seed,
            engine=ENGINE, **options,
        )  # fmt: skip
        evaluations[case.number], frames = count_evaluations([model], generate_video)
        videos.append(frames)
    return videos


def _measure(frames: Frames, case: Case, judges: Judges, clip: int) -> dict[str, Any]:
    throughout = frame_metrics.identity_consistency(judges.classify(frames))
    return {
        **measure_ends(frames, case, judges, clip),
        **{name: throughout[name] for name in ("always the same", "same thing", "same colour")},
        **{name: each.tolist() for name, each in changes_by_frame(frames).items()},
    }


def _mean_changes(records: Sequence[Record], seams: Seams, arm: str, name: str, place: str) -> Values:
    """Return the mean change from frame to frame of each video of an arm, at seams or elsewhere."""

    def mean_change(record: Record) -> float:
        changes = np.array(record[name])
        at_seam = np.isin(np.arange(1, len(changes) + 1), seams[arm])
        return float(changes[at_seam if place == "seam" else ~at_seam].mean())

    return computed_values(records, arm, mean_change)


def _recorded_seams(records: Sequence[Record]) -> Seams:
    return seams_by_arm(1 + len(records[0]["flow"]))


def _tabulate_changes(records: Sequence[Record]) -> Mapping[str, Mapping[str, Estimate]]:
    seams = _recorded_seams(records)
    return {
        f"{CHANGES[name]}, {PLACES[place]}": {arm: _mean_changes(records, seams, arm, name, place).mean for arm in ARMS}
        for name, place in product(CHANGES, PLACES)
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that FreeNoise keeps content and motion better at no more evaluations, and that no arm jumps at seams."""
    ours, seams = partial(metric_values, records, FREENOISE), _recorded_seams(records)
    compared = [(arm, partial(metric_values, records, arm)) for arm in OTHERS]
    kept = [*(f"{name}, last clip" for name in PROMPT_METRICS), "motion, last clip"]
    return [
        *(
            claim_better(f"{ROWS[each]}, {FREENOISE} - {arm}", ours(each), theirs(each))
            for each in ("individual", "always the same")
            for arm, theirs in compared
        ),
        *(
            claim_not_below(f"{ROWS[each]}, {FREENOISE} - {arm}", ours(each), theirs(each), SHARE_MARGIN)
            for each in kept
            for arm, theirs in compared
        ),
        *(
            claim_ratio_within(
                f"change at a seam over elsewhere, {arm}: {name}",
                _mean_changes(records, seams, arm, name, "seam"), _mean_changes(records, seams, arm, name, "inside"), *SMOOTH,
            )
            for arm, name in product(ARMS, CHANGES)
        ),
        *(
            claim_counted_at_most(f"{ROWS['evaluations']}, {FREENOISE} over {arm}", ours("evaluations"),
                                  theirs("evaluations"), 1)
            for arm, theirs in compared
        ),
    ]  # fmt: skip


ROWS: Mapping[str, str] = {
    **{
        f"{metric}, {where} clip": f"{where} 16 frames with the prompt's {name}"
        for where, (metric, name) in product(("first", "last"), PROMPT_METRICS.items())
    },
    **{f"motion, {where} clip": f"videos whose {where} 16 frames move as prompted" for where in ("first", "last")},
    "always the same": "videos with one subject and colour throughout",
    "same thing": "frames with the first frame's subject",
    "same colour": "frames with the first frame's colour",
    "individual": "similarity of the last 16 frames' individual to the first 16's",
    "evaluations": "network evaluations per frame",
}

ANALYSIS = Analysis(
    name="freenoise",
    title="64 frames by a model of 16",
    cases=moving_cases,
    state_claims=_state_claims,
    rows=ROWS,
    set_metrics=_tabulate_changes,
    options=(*VIDEOCRAFTER.options, FreeNoiseOptions, ClipOptions),
)
