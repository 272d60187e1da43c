"""Text2Video-Zero's background smoothing on the pocket world: a steadier background, the same foreground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from kineograph.generation.api import generate
from kineograph.methods.text2video_zero import DEFAULT_CAMERA as MOTION
from kineograph.methods.text2video_zero import METHOD as TEXT2VIDEO_ZERO
from kineograph.methods.text2video_zero import SmoothingOptions
from kineograph.metrics.features import Frames
from kineograph.models.foreground import bind_foreground_mask
from kineograph.models.model import Model
from kineograph.motion import camera_offset, parse
from kineograph.request import NUM_FRAMES, USUAL_GUIDANCE
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import (
    SHARE_MARGIN,
    SIMILARITY_MARGIN,
    Claim,
    claim_as_sharp,
    claim_at_least,
    claim_better,
    claim_unchanged,
)
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.sample import ENGINE
from kineograph_lab.studies.study import COMMON_ROWS, Analysis, Study, metric_values
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import ground_truth
from kineograph_lab.world.world import render

STEPS, STRENGTH = 25, 0.6
SCALE = USUAL_GUIDANCE["guidance_scale"]
# the camera's motion in pixels per frame
PAN_PIXELS = np.rint(np.array(camera_offset(parse(MOTION), 1, NUM_FRAMES)) * SIDE).astype(int)


def smoothing_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of the same videos without and with smoothing."""
    steps = steps or STEPS
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "strength": STRENGTH, "guidance_scale": SCALE, "motion": MOTION,
            "num_frames": NUM_FRAMES,
        },
        cases=held_out_cases(count),
        arms={"off": partial(_generate, model, 0.0, steps), "on": partial(_generate, model, STRENGTH, steps)},
        measure=lambda frames, case: _measure(frames, case, model, judges),
    )  # fmt: skip


def _generate(model: Model, strength: float, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [
        generate(
            model, case.prompt, num_frames=NUM_FRAMES, camera=MOTION, num_inference_steps=steps, guidance_scale=SCALE,
            smooth_background=strength, seed=case.seed, engine=ENGINE,
        ).frames
        for case in cases
    ]  # fmt: skip


def _measure(frames: Frames, case: Case, model: Model, judges: Judges) -> Mapping[str, float]:
    """Return all metrics of one video; the background is outside of the model's foreground masks of both frames."""
    judged = judges.classify(frames)
    rendered, known = render(case.shot), ground_truth(case.shot).mask > 0
    return {
        "background": frame_metrics.background_psnr(frames, foreground_masks(model, frames, case.prompt), PAN_PIXELS),
        "iou": frame_metrics.mask_iou(foreground_masks(model, rendered[None], case.prompt)[0], known),
        "sharp": frame_metrics.relative_sharpness(frames, rendered[None]),
        **frame_metrics.prompt_agreement(judged, case),
        **frame_metrics.identity_consistency(judged),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
    }


def foreground_masks(model: Model, frames: Frames, prompt: str) -> np.ndarray:
    """Return the foreground masks of the model's cross attention, bool [f h w]."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    mask = bind_foreground_mask(model, model.prompt([prompt]))(model.encode(images), 0.0)[0, :, 0].cpu().numpy() > 0
    return mask.repeat(frames.shape[1] // mask.shape[1], 1).repeat(frames.shape[2] // mask.shape[2], 2)


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    on, off = (lambda metric, arm=arm: metric_values(records, arm, metric) for arm in ("on", "off"))
    return [
        claim_better("background PSNR between frames, on - off", on("background"), off("background")),
        claim_as_sharp(on("sharp"), off("sharp"), "on over off"),
        claim_unchanged("foreground: frames with the subject, on - off", on("thing"), off("thing"), SHARE_MARGIN),
        claim_unchanged("foreground: frames with its colour, on - off", on("colour"), off("colour"), SHARE_MARGIN),
        claim_unchanged(
            "foreground: similarity of the individual, on - off", on("individual"), off("individual"), SIMILARITY_MARGIN
        ),
        claim_at_least("masks by attention, of renderings: IoU with the world's", off("iou"), 0.6),
    ]


ROWS = {
    "background": "background PSNR between neighbouring frames (dB)",
    "sharp": "sharpness, over that of the world's own rendering",
    **COMMON_ROWS,
}

ANALYSIS = Analysis(
    name="smoothing",
    title="Background smoothing",
    cases=held_out_cases,
    state_claims=_state_claims,
    rows=ROWS,
    options=(*TEXT2VIDEO_ZERO.options, SmoothingOptions),
)
