"""Still-Moving on the pocket world: unseen subjects and styles, by the method, its baselines and its ablations.

This is the paper's Table 1, small. Two more arms are the video model without customisation, whose prompt has the
subject's class or the content alone, and the world's own rendering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import optical_flow, video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.training.customise import default_video_settings
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import CLIP_MARGIN, Claim, claim_better, claim_not_below, claim_ratio_at_least
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record
from kineograph_lab.studies.sample import FPS, FRAMES, STEPS, generate_frames
from kineograph_lab.studies.splits import Split
from kineograph_lab.studies.still_moving import customised_models
from kineograph_lab.studies.still_moving.customised_models import Customise
from kineograph_lab.studies.still_moving.items import (
    PROMPTS,
    Kind,
    content,
    content_and_motion,
    customisation_cases,
    item_of,
    items,
)
from kineograph_lab.studies.study import Analysis, NotTrainedError, Study, every_third_frame, metric_values
from kineograph_lab.world import unseen

DEFAULT_MODEL = "pocket-video"
OURS, VIDEO, RENDERING = "ours", "video model", "rendering"
INJECTION, INTERPOLATION, INTERLEAVED = BASELINES = ("injection", "interpolation", "interleaved training")
ABLATED_CASES = PROMPTS  # one subject's; each ablation is trained by itself
SCALE = 3.0  # of guidance; lower than elsewhere, it preserves more of a subject (docs/customising.md)
MIN_SHARE = 0.8  # of the motion
KINDS: tuple[Kind, ...] = ("subject", "style")


def customisation_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the method, three baselines, the original model and the rendering: ten videos per item."""
    check_motion_adapter(model)
    generate_case = partial(generate_frames, steps=steps or STEPS, scale=SCALE)
    methods: Mapping[str, Customise] = {
        OURS: customised_models.customise_with_still_moving,
        INJECTION: customised_models.customise_by_injection,
        INTERPOLATION: partial(customised_models.customise_by_interpolation, generate_case, judges),
        INTERLEAVED: customised_models.customise_by_interleaved_training,
    }
    return Study(
        for_model(ANALYSIS, model),
        settings=_settings(model, steps) | {"shares": list(customised_models.SHARES)},
        cases=customisation_cases(count),
        arms={
            **{name: partial(_generate, customise, model, steps or STEPS) for name, customise in methods.items()},
            VIDEO: partial(_generate_uncustomised, model, steps or STEPS),
            RENDERING: _render,
        },
        trained=partial(_trained_files, model),
        measure=lambda frames, case: _measure(frames, case, judges),
        select_frames=every_third_frame,
    )


def customisation_ablation(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the method without each of its parts, of one subject."""
    table = customisation_study(model, judges, min(count, ABLATED_CASES), steps)
    parts = {name: partial(customised_models.customise_without, name) for name in customised_models.ABLATIONS}
    return table._replace(
        analysis=for_model(ABLATION, model),
        settings=_settings(model, steps) | {"ablations": customised_models.ABLATIONS},
        arms={
            OURS: table.arms[OURS],
            **{name: partial(_generate, customise, model, steps or STEPS) for name, customise in parts.items()},
            VIDEO: table.arms[VIDEO],
        },
    )


def check_motion_adapter(model: Model) -> None:
    """Raise NotTrainedError for a video model without a motion adapter, which the method needs."""
    if model.net.motion_adapter is None:
        raise NotTrainedError(f"{model.name} has no motion adapter: load it with motion_adapter=, or take pocket-video")


def for_model(analysis: Analysis, model: Model) -> Analysis:
    """Return the analysis with the name of the video model, unless it is the default one."""
    if model.name == DEFAULT_MODEL:
        return analysis
    title = analysis.title.replace(DEFAULT_MODEL, model.name)
    return analysis._replace(name=f"{analysis.name}-{model.name}", title=title)


def _settings(model: Model, steps: int | None) -> dict[str, Any]:
    return {
        "num_inference_steps": steps or STEPS, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
        "items": [item.name for item in items()], "motion": optical_flow.PROTOCOL,
        "video model": fingerprint(model.net), "motion eye": fingerprint(load_judge().motion_eye),
        "customising": {kind: _recorded_settings(model, kind) for kind in KINDS},
    }  # fmt: skip


def _recorded_settings(model: Model, kind: Kind) -> dict[str, Any]:
    """Return the customisation settings without mixed precision, which depends on the machine."""
    loop = {"mixed_precision"}
    without: dict[str, Any] = {"image": {"training": loop}, "training": loop, "motion_training": loop}
    return default_video_settings(model, kind).model_dump(mode="json", exclude=without)


def _generate(customise: Customise, video: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate the videos of some cases, each with the model customised to its item."""
    return [
        generate_frames(
            _customise_once(customise, video, item_of(case).number, case.split), case, steps=steps, scale=SCALE
        )
        for case in cases
    ]


def _trained_files(video: Model, arm: str, case: Case) -> Sequence[Path]:
    """Return the weight files that were trained for a video."""
    if arm in (VIDEO, RENDERING):
        return []
    folders = {INJECTION: OURS, INTERPOLATION: OURS, INTERLEAVED: customised_models.INTERLEAVED}
    return customised_models.trained_files(video, item_of(case), folders.get(arm, arm))


@lru_cache(maxsize=8)  # as many as the arms, which take turns with the prompts of an item
def _customise_once(customise: Customise, video: Model, number: int, split: Split) -> Model:
    return customise(video, items(split)[number])


def _generate_uncustomised(video: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate the videos of some cases with the original model; the prompts leave out the customised words."""
    uncustomised = [replace(case, prompt=content_and_motion(case)) for case in cases]
    return [generate_frames(video, case, steps=steps, scale=SCALE) for case in uncustomised]


def _render(cases: Sequence[Case]) -> list[Frames]:
    return [unseen.render_unseen_clip(item_of(case).render, case.shot, FRAMES, FPS) for case in cases]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    """Return all metrics of one video, the main ones also under a name of its kind of item."""
    item = item_of(case)
    (truth,) = _render([case])
    own, references, truth_embedding = (judges.embed(each) for each in (frames, item.images, truth))
    metrics = {
        "CLIP-I": float(100 * (own @ references.T).mean()),
        "CLIP-T": frame_metrics.clip_score(judges.text_similarity(frames, content(case))),
        "truth": float(100 * (own @ truth_embedding.T).mean()),
        "motion": float(judges.classify_motion(frames) == case.motion),
        "moved": float(FPS * optical_flow.motion_per_frame(frames).mean()),
        "steady": video_metrics.frame_consistency(own),
    }
    if item.kind == "subject":
        judged = judges.classify(frames)
        metrics["scene"] = frame_metrics.share_equal(judged.scenes, case.scene)
        metrics["individual"] = float((judged.identities @ judges.classify(item.images).identities.T).mean())
    return metrics | {f"{name}, {item.kind}s": metrics[name] for name in PER_KIND}


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """State the paper's claims, of subjects and styles together."""
    ours = partial(metric_values, records, OURS)
    return [
        *(
            claim_better(f"CLIP-I, {OURS} - {arm}", ours("CLIP-I"), metric_values(records, arm, "CLIP-I"))
            for arm in BASELINES
        ),
        *(
            claim_not_below(
                f"CLIP-T, {OURS} - {arm}", ours("CLIP-T"), metric_values(records, arm, "CLIP-T"), CLIP_MARGIN
            )
            for arm in BASELINES
        ),
        *_claim_motion(records),
    ]


def _state_ablation_claims(records: Sequence[Record]) -> list[Claim]:
    """State the claims of the ablations: less motion without each part, a lower CLIP-T without natural videos."""
    ours = partial(metric_values, records, OURS)
    without = "no natural videos"
    return [
        *_claim_motion(records),
        *(
            claim_better(f"motion, {OURS} - {arm}", ours("moved"), metric_values(records, arm, "moved"))
            for arm in customised_models.ABLATIONS
        ),
        claim_better(f"CLIP-T, {OURS} - {without}", ours("CLIP-T"), metric_values(records, without, "CLIP-T")),
    ]


def _claim_motion(records: Sequence[Record]) -> list[Claim]:
    ours, original = (partial(metric_values, records, arm) for arm in (OURS, VIDEO))
    return [
        claim_ratio_at_least(
            "moves as the prompt says, relative to the video model", ours("motion"), original("motion"), MIN_SHARE
        ),
        claim_ratio_at_least("motion, relative to the video model", ours("moved"), original("moved"), MIN_SHARE),
    ]


PER_KIND = ("CLIP-I", "CLIP-T", "truth", "motion", "moved")
MAIN_ROWS = {
    "CLIP-I": "CLIP-I: 100 cos with the reference stills",
    "CLIP-T": "CLIP-T: 100 cos with the prompt (without the new word)",
    "truth": "truth: 100 cos with the world's own rendering of the prompt (CLIP)",
    "motion": "videos that move as the prompt says",
    "moved": "motion: mean optical flow per second (widths and heights)",
}
ROWS: Mapping[str, str] = {
    **MAIN_ROWS,
    "individual": "similarity of the individual to the stills', by the judge (subjects)",
    "scene": "frames with the prompt's scene, by the judge (subjects)",
    "steady": "mean cosine of neighbouring frames (CLIP)",
    **{f"{name}, {kind}s": f"{MAIN_ROWS[name].split(':')[0]}, {kind}s" for kind in KINDS for name in PER_KIND},
}

ANALYSIS = Analysis(
    name="still-moving",
    title=f"Unseen subjects and styles in motion, {DEFAULT_MODEL} (Table 1)",
    cases=customisation_cases,
    state_claims=_state_claims,
    rows=ROWS,
    cases_with_images=(0, PROMPTS),  # a subject and a style
    options=VIDEOCRAFTER.options,
)
ABLATION = Analysis(
    name="still-moving-ablation",
    title=f"Still-Moving without each of its parts, {DEFAULT_MODEL} (one subject)",
    cases=lambda count, split: customisation_cases(min(count, ABLATED_CASES), split),
    state_claims=_state_ablation_claims,
    rows=ROWS,
    cases_with_images=(0,),
    options=VIDEOCRAFTER.options,
)
