"""VidRD's training on panned and zoomed images, on the pocket world: with them and without.

Two networks are trained for the same number of steps on few clips, one of them on panned and zoomed images as well, by
`python -m kineograph_lab.recipe.run --from-shipped --stages vidrd_panned,vidrd_unpanned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import video_metrics
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.models.pocket.networks import restore_vidrd_unet
from kineograph_lab.recipe.video import temporal_layers
from kineograph_lab.studies import frame_metrics, set_distances
from kineograph_lab.studies.claims import Claim, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS
from kineograph_lab.studies.study import PROMPT_ROWS, Analysis, Study, metric_values, not_trained_error
from kineograph_lab.studies.videocrafter1.text_to_video import generate_cases
from kineograph_lab.studies.vidrd.temporal_decoder import TRUTH, render_cases

FOLDER = Path("runs/pocket")
PANNED, PLAIN = "films and panned pictures", "films alone"
STAGES = {PANNED: "vidrd_panned", PLAIN: "vidrd_unpanned"}


def pan_and_zoom_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of videos by both networks, and of the world's own."""
    steps, extractor = steps or STEPS, load_extractor(POCKET)
    models = {name: load_pan_and_zoom_model(model, FOLDER / f"{stage}.safetensors") for name, stage in STAGES.items()}
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "networks": {name: fingerprint(each.net) for name, each in models.items()},
            "extractor": extractor.protocol(),
        },
        cases=moving_cases(count),
        arms={
            **{name: partial(generate_cases, each, FPS, steps) for name, each in models.items()}, TRUTH: render_cases,
        },
        measure=lambda frames, case: _measure(frames, case, judges, extractor),
    )  # fmt: skip


def load_pan_and_zoom_model(model: Model, file: Path) -> Model:
    """Load the video model with VidRD's temporal layers from a stage of the recipe.

    Raises NotTrainedError if the file does not exist.
    """
    if not file.exists():
        raise not_trained_error(file, *STAGES.values())
    initial = load("pocket-video", dtype="float32").net
    net = restore_vidrd_unet(initial, temporal_layers.VIDRD_CONFIG, load_file(file)).eval()
    return replace(model, net=net.to(model.device, model.dtype))


def _measure(frames: Frames, case: Case, judges: Judges, extractor: Extractor) -> dict[str, Any]:
    """Return agreement with the prompt and its motion, frame consistency, and features for FVD."""
    judged = judges.classify(frames)
    right = frame_metrics.prompt_agreement(judged, case)
    return {
        **right,
        "all": float(np.mean([right[name] for name in ("thing", "colour", "scene")])),
        "motion": float(judges.classify_motion(frames) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
        **set_distances.extract_set_features(extractor, frames),
    }


def _set_metrics(records: Sequence[Record]) -> dict[str, Any]:
    return {
        **set_distances.tabulate_set_distances(records, TRUTH), **set_distances.tabulate_inception_scores(records)
    }  # fmt: skip


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that the panned and zoomed images help, as in the paper."""
    panned, plain = (partial(metric_values, records, arm) for arm in (PANNED, PLAIN))
    return [
        claim_better("subject, colour and scene as the prompt says, with - without", panned("all"), plain("all")),
        claim_better("motion as the prompt says, with - without", panned("motion"), plain("motion")),
        *set_distances.claim_lower_distances("without - with", records, PANNED, PLAIN, TRUTH),
    ]


ROWS: Mapping[str, str] = {
    **PROMPT_ROWS,
    "all": "share of the three that are right",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}

ANALYSIS = Analysis(
    name="pan-and-zoom",
    title="Training on panned and zoomed images",
    cases=moving_cases,
    state_claims=_state_claims,
    rows=ROWS,
    set_metrics=_set_metrics,
    models=("recipe stage vidrd_panned", "recipe stage vidrd_unpanned"),
    options=VIDEOCRAFTER.options,
)
