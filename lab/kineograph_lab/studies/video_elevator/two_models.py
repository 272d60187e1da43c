"""VideoElevator on the pocket world: an image model of clean images with a video model of degraded clips.

The video model was trained on few, blurred and watermarked clips (`recipe/video/degraded.py`), as public video data
are. The arms are both models together, the video model alone, and the image model alone, frame by frame, with noise
of its own for each frame and first-frame attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kineograph.generation.api import generate
from kineograph.methods.video_elevator import METHOD as VIDEO_ELEVATOR
from kineograph.methods.video_elevator import VideoElevatorOptions
from kineograph.metrics import video_metrics
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.options import defaults
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics, set_distances
from kineograph_lab.studies.claims import (
    CLIP_MARGIN,
    SHARE_MARGIN,
    SIMILARITY_MARGIN,
    Claim,
    claim_better,
    claim_not_below,
    claim_ratio_at_least,
)
from kineograph_lab.studies.frame_metrics import relative_sharpness, watermark_correlation
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import ENGINE, generate_frames
from kineograph_lab.studies.study import PROMPT_ROWS, Analysis, Study, metric_values
from kineograph_lab.world.captions import caption_image
from kineograph_lab.world.world import render_clip

FRAMES, FPS, STEPS, SCALE = 8, 4.0, 20, 3.0
TOGETHER, PER_FRAME, VIDEO = "together", "image model per frame", "video model alone"
TRUTH = "rendering"
RELEASED = "released code's evaluations"

OURS: VideoElevatorOptions = {"video_steps": 3, "inversion_steps": 5}  # of 20 steps; in proportion to 8 and 12 of 50
INDEPENDENT: VideoElevatorOptions = {"refine_at": (), "shared_noise": 0.0}
ABLATIONS: Mapping[str, VideoElevatorOptions] = {
    "no low pass": {**OURS, "low_pass": 0.0},
    "low pass in space too": {**OURS, "low_pass_space": 1.0},
    "same noise": {"video_steps": 3, "renoise": "same-noise"},
    "fresh noise": {"video_steps": 3, "renoise": "fresh-noise"},
    "refined once": {**OURS, "refine_at": (0.9,)},
    "refined late": {**OURS, "refine_at": (0.5, 0.3)},
    "1 video step": {**OURS, "video_steps": 1},
    RELEASED: {"video_steps": 3, "drift_correction": True},
}
"""The paper's ablations, and the released code's evaluations: inversion by all steps, with drift correction."""

ImagePrompt = Callable[[Case], str]  # case -> prompt of the image model


def two_models_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the pocket model with the video model of degraded clips, and the paper's ablations."""
    video = load("pocket-video-degraded")
    generate_arm = partial(generate_with_both, lambda case: model, video, steps or STEPS, _image_caption)
    options = {TOGETHER: OURS, PER_FRAME: INDEPENDENT, **ABLATIONS}
    return Study(
        ANALYSIS,
        cases=moving_cases(count),
        settings=elevator_settings(video, steps, options),
        arms={
            **{name: partial(generate_arm, each) for name, each in options.items()},
            VIDEO: partial(generate_with_video_model, video, steps or STEPS),
            TRUTH: _render,
        },
        measure=lambda frames, case: _measure(frames, case, judges),
    )  # fmt: skip


def elevator_settings(
    video: Model, steps: int | None, options: Mapping[str, VideoElevatorOptions]
) -> dict[str, object]:
    """Return the recorded settings of VideoElevator's studies."""
    return {
        "num_inference_steps": steps or STEPS, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
        "ways": {name: _recorded_options(each) for name, each in options.items()},
        "video model": fingerprint(video.net), "motion eye": fingerprint(load_judge().motion_eye),
        "extractor": _extractor().protocol(),
    }  # fmt: skip


def _recorded_options(options: VideoElevatorOptions) -> dict[str, object]:
    """Return all options of an arm by the names and values by which earlier records are found."""
    values = {**defaults(VideoElevatorOptions), **OURS, **options}
    return {
        "refine_at": values["refine_at"],
        "video_steps": values["video_steps"],
        "low_pass": values["low_pass"] or None,
        "low_pass_space": values["low_pass_space"] or None,
        "shared_noise": values["shared_noise"],
        "back": values["renoise"],
        "inversion_steps": None if values["drift_correction"] else values["inversion_steps"],
        "drift_correction": values["drift_correction"],
        "video_guidance_scale": values["video_guidance_scale"],
        "video_prompt": None,  # that of the case
    }


def generate_with_both(
    image_model_for: Callable[[Case], Model], video: Model, steps: int, image_prompt: ImagePrompt,
    options: VideoElevatorOptions, cases: Sequence[Case],
) -> list[Frames]:  # fmt: skip
    """Generate the videos of some cases with both models; the video model gets the case's own prompt."""

    def named(case: Case) -> VideoElevatorOptions:
        return options if options.get("refine_at") == () else {**options, "video_prompt": case.prompt}

    return [
        generate(
            image_model_for(case), image_prompt(case), video_model=video, method="video-elevator", num_frames=FRAMES,
            fps=FPS, num_inference_steps=steps, guidance_scale=SCALE, seed=case.seed, engine=ENGINE, **named(case),
        ).frames
        for case in cases
    ]  # fmt: skip


def generate_with_video_model(video: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate the videos of some cases with the video model alone."""
    return [generate_frames(video, case, steps=steps, num_frames=FRAMES, fps=FPS, scale=SCALE) for case in cases]


def _render(cases: Sequence[Case]) -> list[Frames]:
    return [render_clip(case.shot, FRAMES, FPS) for case in cases]


def _image_caption(case: Case) -> str:
    """Return a caption without motion, for which the image model has no words."""
    return caption_image(case.shot, np.random.default_rng(case.number))


@cache
def _extractor() -> Extractor:
    return load_extractor(POCKET)


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, Any]:
    """Return all metrics of one video, and its features."""
    judged = judges.classify(frames)
    return {
        **frame_metrics.prompt_agreement(judged, case),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, _image_caption(case))),
        "style": float(np.mean([each == case.shot.style for each in judged.styles])),
        "sharp": relative_sharpness(frames, render_clip(case.shot, FRAMES, FPS)),
        "marked": watermark_correlation(frames),
        "motion": float(judges.classify_motion(repeat_frames(frames)) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
        "individual": frame_metrics.identity_consistency(judged)["individual"],
        **set_distances.extract_set_features(_extractor(), frames),
    }


def repeat_frames(frames: Frames) -> UInt8[np.ndarray, "2*f h w 3"]:
    """Repeat each frame, to the number of frames that the motion classifier was trained on."""
    return np.repeat(frames, 2, axis=0)


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the paper's claims: frames as good as the image model's, motion as the video model's."""
    ours = partial(metric_values, records, TOGETHER)
    by = {name: partial(metric_values, records, name) for name in (PER_FRAME, VIDEO)}
    rising = ("thing", "text", "style", "sharp")
    return [
        *set_distances.claim_lower_distances("video model - together", records, TOGETHER, VIDEO, TRUTH),
        *(claim_better(f"{ROWS[each]}, together - video model", ours(each), by[VIDEO](each)) for each in rising),
        claim_better("watermark, video model - together", by[VIDEO]("marked"), ours("marked")),
        claim_better("frames agree, together - image model per frame", ours("steady"), by[PER_FRAME]("steady")),
        claim_better("motion as prompted, together - image model per frame", ours("motion"), by[PER_FRAME]("motion")),
        claim_not_below("frames agree, together - video model", ours("steady"), by[VIDEO]("steady"), SIMILARITY_MARGIN),
        claim_ratio_at_least("motion as prompted, of the video model's", ours("motion"), by[VIDEO]("motion"), 0.8),
    ]


def _state_all_claims(records: Sequence[Record]) -> list[Claim]:
    """State the same, the use of each part, and that the released code's evaluations gain nothing."""
    ours = partial(metric_values, records, TOGETHER)
    same = {
        "thing": SHARE_MARGIN, "text": CLIP_MARGIN, "sharp": SHARE_MARGIN, "motion": SHARE_MARGIN,
        "steady": SIMILARITY_MARGIN,
    }  # fmt: skip
    without = ("no low pass", "same noise", "fresh noise")
    return [
        *_state_claims(records),
        *(
            claim_better(f"frames agree, together - {name}", ours("steady"), metric_values(records, name, "steady"))
            for name in without
        ),
        claim_better(
            "motion as prompted, together - refined late",
            ours("motion"),
            metric_values(records, "refined late", "motion"),
        ),
        *(
            claim_not_below(
                f"{ROWS[each]}, together - {RELEASED}", ours(each), metric_values(records, RELEASED, each), margin
            )
            for each, margin in same.items()
        ),
    ]


ROWS: Mapping[str, str] = {
    **PROMPT_ROWS,
    "text": "CLIP score (100 cos)",
    "style": "frames with its drawing style",
    "sharp": "sharpness, over that of the world's own rendering",
    "marked": "watermark (correlation)",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
    "individual": "similarity of the individual to the first frame's",
}

ANALYSIS = Analysis(
    name="video-elevator",
    title="An image model with a video model trained on degraded clips",
    cases=moving_cases,
    state_claims=_state_all_claims,
    rows=ROWS,
    set_metrics=partial(set_distances.tabulate_set_distances, real=TRUTH),
    models=("pocket-video-degraded",),
    options=VIDEO_ELEVATOR.options,
)
