"""Text2Video-Zero guided by ControlNets, on the pocket world: the frames follow the edges, depths and poses that they
are shown, and the prompt too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from kineograph.condition import Residuals
from kineograph.denoise import classifier_free_guidance
from kineograph.media.annotators import canny
from kineograph.media.video import Video
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.models.unet.controlnet import bind_controlnet
from kineograph.models.unet.frame_attention import first
from kineograph.noise import shared
from kineograph.samplers import ddim, final_latents
from kineograph.sigmas import leading
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, held_out_cases
from kineograph_lab.studies.report import Claim, claim_at_least
from kineograph_lab.studies.study import COMMON_ROWS, Study, metric_values
from kineograph_lab.world.painting import SIDE
from kineograph_lab.world.truth import CONTROL_MAPS, KEYPOINTS, GroundTruth, ground_truth
from kineograph_lab.world.world import Shot, frame_times, render_clip

FRAMES, FPS = 8, 4.0
STEPS, SCALE = 20, 3.0  # the released code's steps
CONTROL_METRICS = {"canny": "edges", "depth": "depth", "pose": "points"}  # by which metric a kind of map is followed
BARS = {"thing": 0.90, "colour": 0.95, "scene": 0.97}


def controlnet_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Unguided, guided by each kind of map, and the world's own rendering."""
    steps = steps or STEPS
    return Study(
        name="guided",
        title="Guided by control videos: edges, depth, poses",
        settings={"num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS},
        cases=held_out_cases(count),
        arms={
            "unguided": partial(_generate, model, None, steps),
            **{kind: partial(_generate, model, kind, steps) for kind in CONTROL_MAPS},
            "rendering": lambda cases: [render_shot(case.shot) for case in cases],
        },
        measure=lambda frames, case: _measure(frames, case, judges),
        state_claims=_state_claims,
        rows=ROWS,
    )


def _generate(model: Model, kind: str | None, steps: int, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, guided by maps of this kind of their shots in motion, or not at all."""
    return [_generate_case(model, kind, steps, case) for case in cases]


def _generate_case(model: Model, kind: str | None, steps: int, case: Case) -> Frames:
    maps = None if kind is None else render_control_maps(kind, case.shot)
    return generate_with_control(model, case.prompt, case.seed, steps=steps, scale=SCALE, kind=kind, maps=maps)


def generate_with_control(
    model: Model, prompt: str, seed: int, *, steps: int, scale: float, kind: str | None, maps: Frames | None
) -> Frames:
    """A video from one noise for all frames, which look at the first, as `kineograph generate --control` makes it."""
    denoise_cond, denoise_uncond = (model.prompt([text]) for text in (prompt, ""))
    if kind is not None and maps is not None:
        net = model.control(kind)
        cues = net.embed(torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255)
        residuals: list[Residuals] = [bind_controlnet(net, each, cues, frame_attention=first) for each in (denoise_cond, denoise_uncond)]
        denoise_cond, denoise_uncond = (replace(each, residuals=r) for each, r in zip((denoise_cond, denoise_uncond), residuals, strict=True))
    sigmas = leading(model.schedule.sigmas, steps)
    noise = shared(seed, range(FRAMES), (1, *model.latent_shape(*model.default_size)))
    denoise = classifier_free_guidance(
        model.bind(denoise_cond, frame_attention=first), model.bind(denoise_uncond, frame_attention=first), scale
    )
    x0 = final_latents(ddim(denoise, sigmas[0] * noise.to(model.device), sigmas))
    return Video.from_tensor(model.decode(x0)[0]).frames


def render_shot(shot: Shot) -> Frames:
    """The shot in motion, as the world paints it."""
    return render_clip(shot, FRAMES, FPS)


def ground_truths(shot: Shot) -> list[GroundTruth]:
    """What is known of each frame of `rendering`."""
    return [ground_truth(shot, time, fps=FPS) for time in frame_times(FRAMES, FPS)]


def render_control_maps(kind: str, shot: Shot) -> Frames:
    """The maps of the shot in motion."""
    return np.stack([CONTROL_MAPS[kind](*pair) for pair in zip(render_shot(shot), ground_truths(shot), strict=True)])


def _measure(frames: Frames, case: Case, judges: Judges) -> Mapping[str, float]:
    """Return all metrics of one video."""
    known, found = ground_truths(case.shot), judges.predict_geometry(frames)
    cells = found.depth.shape[-1]
    depth = np.stack([each.depth.reshape(cells, SIDE // cells, cells, SIDE // cells).mean((1, 3)) for each in known])
    points = np.array([[each.keypoints[0][name] for name in KEYPOINTS] for each in known]) / SIDE
    judged = judges.classify(frames)
    return {
        "edges": frame_metrics.edge_f1(
            *(np.stack([canny(f)[..., 0] > 0 for f in each]) for each in (frames, render_shot(case.shot)))
        ),
        "depth": float(np.abs(found.depth - depth).mean()),
        "points": float(np.linalg.norm(found.points - points, axis=-1).mean()),
        **dict(frame_metrics.prompt_agreement(judged, subject=case.subject, colour=case.colour, scene=case.scene)),
        **dict(frame_metrics.identity_consistency(judged)),
        **dict(frame_metrics.clip_score(judges.text_similarity(frames, case.prompt))),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Each kind is followed at least half the way from no guidance to the rendering itself, and the prompt as well."""
    return [
        *(_claim_half_way(records, kind, metric) for kind, metric in CONTROL_METRICS.items()),
        *(
            claim_at_least(f"{kind}: frames show the {fact}", metric_values(records, kind, fact), bar)
            for kind in CONTROL_METRICS
            for fact, bar in BARS.items()
        ),
    ]


def _claim_half_way(records: Sequence[Record], kind: str, metric: str) -> Claim:
    """How much of the way from unguided to rendering is gone, as a ratio of means with a jackknifed error."""
    ways = (np.array(metric_values(records, arm, metric)) for arm in ("unguided", kind, "rendering"))
    none, got, whole = ways
    return claim_at_least(f"{kind}: {metric}, share of the way from unguided to the rendering", jackknife_ratios(none, got, whole), 0.5)


def jackknife_ratios(none: np.ndarray, got: np.ndarray, whole: np.ndarray) -> list[float]:
    """Pseudo-values whose mean is the ratio of sums (got - none) / (whole - none) (jackknife, Tukey 1958)."""
    gone, way, count = got - none, whole - none, len(got)
    if count < 2:
        return (gone / way).tolist()
    left_out = (gone.sum() - gone) / (way.sum() - way)
    return (count * gone.sum() / way.sum() - (count - 1) * left_out).tolist()


ROWS = {
    "edges": "edges: F1 with the control video's, to a pixel",
    "depth": "depth: mean error (0 to 1)",
    "points": "points: mean distance (parts of the picture)",
    **COMMON_ROWS,
}
