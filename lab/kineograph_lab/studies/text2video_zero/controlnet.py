"""Text2Video-Zero with ControlNets on the pocket world: agreement with edge, depth and pose maps, and the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kineograph.denoise import classifier_free_guidance
from kineograph.generation.api import generate
from kineograph.media.video import Video
from kineograph.methods.controlnet import ControlOptions
from kineograph.methods.text2video_zero import METHOD as TEXT2VIDEO_ZERO
from kineograph.metrics.features import Frames
from kineograph.models.annotators import canny
from kineograph.models.model import Model
from kineograph.models.unet.frame_attention import first
from kineograph.noise import shared
from kineograph.samplers import ddim, final_latents
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import Claim, claim_at_least, claim_ratio_at_least
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.sample import ENGINE
from kineograph_lab.studies.study import COMMON_ROWS, Analysis, Study, metric_values
from kineograph_lab.studies.weights import CONTROLNETS
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import CONTROL_MAPS, KEYPOINTS, GroundTruth, ground_truth
from kineograph_lab.world.world import ShotSpec, frame_times, render_clip

FRAMES, FPS = 8, 4.0
STEPS, SCALE = 20, 3.0  # the released code's steps
CONTROL_METRICS = {"canny": "edges", "depth": "depth", "pose": "points"}  # control -> the metric that shows it
STILL, MOVING = "unguided", "unguided, moving"  # without maps: one image for all frames; the method's own motion
BARS = {"thing": 0.90, "colour": 0.95, "scene": 0.97}


def controlnet_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of videos without control, with each kind of control map, and rendered by the world itself."""
    steps = steps or STEPS
    return Study(
        ANALYSIS,
        settings={"num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS},
        cases=held_out_cases(count),
        arms={
            STILL: partial(_generate_unguided, model, steps),
            MOVING: partial(_generate_moving, model, steps),
            **{kind: partial(_generate, model, kind, steps) for kind in CONTROL_MAPS},
            "rendering": lambda cases: [render_shot(case.shot) for case in cases],
        },
        measure=lambda frames, case: _measure(frames, case, judges),
    )


def _generate(model: Model, kind: str, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [generate_with_control(model, case, kind, steps=steps, scale=SCALE) for case in cases]


def _generate_unguided(model: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [_sample_unguided(model, steps, case) for case in cases]


def _generate_moving(model: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """Generate videos without maps as the method makes them, with its camera motion."""
    return [
        generate(
            model, case.prompt, num_frames=FRAMES, num_inference_steps=steps, guidance_scale=SCALE, seed=case.seed,
            engine=ENGINE,
        ).frames
        for case in cases
    ]  # fmt: skip


def generate_with_control(model: Model, case: Case, kind: str, *, steps: int, scale: float) -> Frames:
    """Generate the video of a case, with control maps of this kind rendered from its shot."""
    with TemporaryDirectory() as folder:
        maps = Video(render_shot_maps(kind, case.shot), FPS).save(Path(folder) / "maps")
        return generate(
            model, case.prompt, control={f"{kind}-map": maps}, num_inference_steps=steps, guidance_scale=scale,
            seed=case.seed, engine=ENGINE,
        ).frames  # fmt: skip


@torch.no_grad()
def _sample_unguided(model: Model, steps: int, case: Case) -> Frames:
    """Sample a video as with control, from one noise for all frames with first-frame attention, but without maps."""
    denoise_cond, denoise_uncond = (
        model.bind(model.prompt([text]), frame_attention=first) for text in (case.prompt, "")
    )
    sigmas = model.schedule.sampling_sigmas(steps)
    noise = shared(case.seed, range(FRAMES), (1, *model.latent_shape(*model.default_size)))
    denoise = classifier_free_guidance(denoise_cond, denoise_uncond, SCALE)
    x = sigmas[0] * model.schedule.initial_scale(sigmas[0]) * noise.to(model.device)
    x0 = final_latents(ddim(denoise, x, sigmas))
    return Video.from_tensor(model.decode(x0)[0]).frames


def render_shot(shot: ShotSpec) -> Frames:
    """Render the clip of a shot."""
    return render_clip(shot, FRAMES, FPS)


def ground_truths(shot: ShotSpec) -> list[GroundTruth]:
    """Return the ground truth of each frame of the rendered shot."""
    return [ground_truth(shot, time, fps=FPS) for time in frame_times(FRAMES, FPS)]


def render_shot_maps(kind: str, shot: ShotSpec) -> Frames:
    """Render the control maps of a shot's clip."""
    return np.stack([CONTROL_MAPS[kind](*pair) for pair in zip(render_shot(shot), ground_truths(shot), strict=True)])


def _measure(frames: Frames, case: Case, judges: Judges) -> Mapping[str, float]:
    known, predicted = ground_truths(case.shot), judges.predict_geometry(frames)
    cells = predicted.depth.shape[-1]
    depth = np.stack([each.depth.reshape(cells, SIDE // cells, cells, SIDE // cells).mean((1, 3)) for each in known])
    points = np.array([[each.keypoints[0][name] for name in KEYPOINTS] for each in known]) / SIDE
    judged = judges.classify(frames)
    return {
        "edges": frame_metrics.edge_f1(
            *(np.stack([canny(f)[..., 0] > 0 for f in each]) for each in (frames, render_shot(case.shot)))
        ),
        "depth": float(np.abs(predicted.depth - depth).mean()),
        "points": float(np.linalg.norm(predicted.points - points, axis=-1).mean()),
        **frame_metrics.prompt_agreement(judged, case),
        **frame_metrics.identity_consistency(judged),
        "text": frame_metrics.clip_score(judges.text_similarity(frames, case.prompt)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that each control goes at least half way from either video without control to the rendering, and that the prompt is kept."""
    return [
        *(
            _claim_half_way(records, kind, metric, baseline)
            for baseline in (MOVING, STILL)
            for kind, metric in CONTROL_METRICS.items()
        ),
        *(
            claim_at_least(f"{kind}: {COMMON_ROWS[metric]}", metric_values(records, kind, metric), bar)
            for kind in CONTROL_METRICS
            for metric, bar in BARS.items()
        ),
    ]


def _claim_half_way(records: Sequence[Record], kind: str, metric: str, baseline: str) -> Claim:
    """Claim a ratio of means, (controlled - unguided) / (rendering - unguided)."""
    none, controlled, whole = (metric_values(records, arm, metric) for arm in (baseline, kind, "rendering"))
    name = f"{kind}: {metric}, share of the way from {baseline} to the rendering"
    return claim_ratio_at_least(name, controlled.minus(none), whole.minus(none), 0.5)


ROWS = {
    "edges": "edges: F1 with the control video's, to a pixel",
    "depth": "depth: mean error (0 to 1)",
    "points": "points: mean distance (fractions of the image)",
    **COMMON_ROWS,
}

ANALYSIS = Analysis(
    name="guided",
    title="Guided by control videos: edges, depth, poses",
    cases=held_out_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=CONTROLNETS,
    options=(*TEXT2VIDEO_ZERO.options, ControlOptions),
)
