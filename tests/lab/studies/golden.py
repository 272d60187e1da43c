"""Outputs of samplers, metrics and world renderers on fixed inputs, which tell when their versions have to rise.

    python tests/lab/studies/golden.py      computes golden.json again, after a version was raised

Numbers are kept to a few digits and compared with a tolerance, since processors round differently.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kineograph as kg
from kineograph import noise, samplers, sigmas
from kineograph.metrics import distances, optical_flow, video_metrics
from kineograph.motion import frame_warp, parse
from kineograph_lab.judge.metrics import open_pocket_extractor
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import load_pocket_judges
from kineograph_lab.studies.protocol import METRIC_VERSION, SAMPLER_VERSION, WORLD_VERSION, held_out_cases
from kineograph_lab.studies.splits import SPLITS, clip_shots, image_shots, unseen_styles, unseen_subjects
from kineograph_lab.studies.videocrafter1.text_to_video import subject_speed
from kineograph_lab.studies.vidrd.long_videos import frame_changes
from kineograph_lab.studies.vidrd.temporal_decoder import flicker
from kineograph_lab.studies.weights import JUDGES, hash_models
from kineograph_lab.world import captions, edits, unseen, world
from kineograph_lab.world.truth import CONTROL_MAPS, ground_truth
from kineograph_lab.world.world import ShotSpec, Subject

FILE = Path(__file__).with_name("golden.json")
Outputs = dict[str, list[Any]]
MODELS = ("pocket", "pocket-video", "pocket-animate", "pocket-edit", *JUDGES)
FEW: dict[str, Any] = {
    "num_frames": 3, "num_inference_steps": 2, "seed": 3, "height": 64, "width": 64, "guidance_scale": 4.0,
    "engine": "torch",
}  # fmt: skip
SHAPE = (1, 2, 8, 8)


# --- samplers


def sampler_outputs() -> Outputs:
    """Return the end of every sampler from fixed noise, for Gaussian data, and what else prepares a run."""
    noise_at = noise.per_sigma(1, range(2), SHAPE)
    steps = sigmas.karras(14.0, 0.03, 6)
    start = steps[0] * noise.independent(0, range(2), SHAPE)
    found = {}
    for name, build in samplers.BY_NAME.items():
        sampler = build(noise_at, lambda sigma, factor: factor * sigma)
        found[name] = _few(samplers.final_latents(sampler(_gaussian, start, steps)))
    eta = samplers.ddim_eta(0.5, noise_at)
    found["ddim_eta"] = _few(samplers.final_latents(eta(_gaussian, start, steps)))
    warp = frame_warp(parse("pan:12,12"), frames=2, seed=0)
    smooth = samplers.smooth_background(samplers.ddim, warp, _all_background, 0.5)
    found["smooth_background"] = _few(samplers.final_latents(smooth(_gaussian, start, steps)))
    both = noise.independent(0, range(3), SHAPE), noise.partly_shared(1.0, 0, range(3), SHAPE)
    found["noise"] = _few(torch.cat(both))
    return found


def _gaussian(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return E[x0 | x] for x0 with mean 0.3 and a spread that differs from number to number."""
    spread = torch.linspace(0.2, 0.9, x[0, 0].numel()).reshape(x[0, 0].shape) ** 2
    return (spread * x + sigma**2 * 0.3) / (spread + sigma**2)


def _all_background(x0: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.zeros_like(x0[:, :, :1])


def _few(values: torch.Tensor) -> list[float]:
    flat = values.flatten()
    return [round(float(each), 4) for each in flat[:: max(1, flat.numel() // 12)]]


VIDEOS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "text2video-zero": ("pocket", {}),
    "text2video-zero, smoothed": ("pocket", {"smooth_background": 0.6}),
    "text2video-zero, with control": ("pocket", {"control": {"canny": "video"}}),
    "videocrafter": ("pocket-video", {"num_frames": 4}),
    "freenoise": ("pocket-video", {"num_frames": 18, "method": "freenoise", "num_inference_steps": 1}),
    "vidrd's clips": ("pocket-video", {"num_frames": 4, "clips": 2}),
    "video-elevator": (
        "pocket", {"video_model": "pocket-video", "method": "video-elevator", "refine_at": (0.7,), "video_steps": 2},
    ),
    "motion strength": ("pocket-video", {"num_frames": 4, "motion_strength": 0.5}),
    "animate": ("pocket-animate", {"num_frames": 4, "image": "image"}),
    "edit": ("pocket-edit", {"video": "video", "num_frames": None}),
}  # fmt: skip


def video_outputs() -> Outputs:
    """Return the grey levels of blocks of the first and last frame of a small video by every method."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = _write_inputs(Path(folder))
        return {name: _blocks(_generate(name, inputs)[[0, -1]]) for name in VIDEOS}


def _write_inputs(folder: Path) -> dict[str, str]:
    shot = ShotSpec("meadow", "flat", (Subject("fish", "red", 3, motion="right"),))
    video = kg.Video(world.render_clip(shot, 3, 4.0)[:, ::2, ::2], 4.0)
    video.pil[0].save(folder / "image.png")
    return {
        "video": str(video.save(folder / "video.mp4")),
        "image": str(folder / "image.png"),
    }


def _generate(name: str, inputs: Mapping[str, str]) -> np.ndarray:
    model_name, options = VIDEOS[name]
    given = {option: value for option, value in (FEW | options).items() if value is not None}
    given |= {option: inputs[given[option]] for option in ("image", "video") if option in given}
    if "control" in given:
        given["control"] = {kind: inputs[source] for kind, source in given["control"].items()}
    if "video_model" in given:
        given["video_model"] = _load(given["video_model"])
    return kg.generate(_load(model_name), "a red fish over the sea", **given).frames


@cache
def _load(name: str) -> kg.Model:
    return kg.load(name, dtype="float32", device="cpu")


def _blocks(images: np.ndarray) -> list[float]:
    """Return the mean grey level of 4 x 4 blocks of each image [n h w 3], to a tenth."""
    n, height, width = images.shape[:3]
    grey = images.astype(float).mean(-1).reshape(n, 4, height // 4, 4, width // 4).mean((2, 4))
    return [round(float(each), 1) for each in grey.flatten()]


# --- metrics


def metric_outputs() -> Outputs:
    """Return every metric of fixed arrays."""
    frames, other = _moving_frames(0), _moving_frames(1)
    masks = frames[..., 0] > 128
    shifts = frame_metrics.frame_shifts(frames)
    unit = np.random.default_rng(4).normal(size=(5, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    words = ["cat", "cat", "dog", "cat", "cat"]
    judged = frame_metrics.JudgedFrames(words, words, words, words, unit)
    case = held_out_cases(1)[0]
    features = np.random.default_rng(5).normal(size=(2, 40, 6))
    values: dict[str, Callable[[], Any]] = {
        "prompt_agreement": lambda: [*frame_metrics.prompt_agreement(judged, case).values()],
        "identity_consistency": lambda: [*frame_metrics.identity_consistency(judged).values()],
        "clip_score": lambda: frame_metrics.clip_score(unit[:, 0]),
        "global_motion": lambda: [*frame_metrics.global_motion(frames, shifts).values()],
        "background_difference": lambda: frame_metrics.background_difference(frames, shifts),
        "frame_shifts": lambda: shifts,
        "overlapping_parts": lambda: [
            each.mean() for each in frame_metrics.overlapping_parts(frames[0], frames[1], np.array([3, -2]))
        ],
        "share_equal": lambda: frame_metrics.share_equal(words, "cat"),
        "edge_f1": lambda: frame_metrics.edge_f1(masks, other[..., 0] > 128),
        "dilate": lambda: frame_metrics.dilate(masks[0]).mean(),
        "psnr": lambda: frame_metrics.psnr(frames, other, masks),
        "background_psnr": lambda: frame_metrics.background_psnr(frames, masks, np.array([2, 1])),
        "mask_iou": lambda: frame_metrics.mask_iou(masks[0], masks[1]),
        "warp_error": lambda: frame_metrics.warp_error(frames, [np.full((64, 64, 2), 1.5)] * 4),
        "sharpness": lambda: video_metrics.sharpness(frames),
        "relative_sharpness": lambda: frame_metrics.relative_sharpness(frames, other),
        "watermark_correlation": lambda: frame_metrics.watermark_correlation(frames),
        "frame_consistency": lambda: video_metrics.frame_consistency(unit),
        "motion_per_frame": lambda: optical_flow.motion_per_frame(frames),
        "measure_flow": lambda: [value for _, value in optical_flow.measure_flow(frames, 8.0)],
        "subject_speed": lambda: subject_speed(unit[:, :4].reshape(5, 2, 2)),
        "flicker": lambda: flicker(frames, other),
        "frame_changes": lambda: [*frame_changes(np.concatenate([frames, other])).values()],
        "frechet_distance": lambda: distances.frechet_distance(*map(distances.moments, features)),
        "kernel_distance": lambda: distances.kernel_distance(*features),
    }  # fmt: skip
    return {name: _rounded(compute()) for name, compute in values.items()}


def judge_outputs() -> Outputs:
    """Return what the judges and the features' extractor find in two rendered clips."""
    judges, extractor = load_pocket_judges(), open_pocket_extractor()
    frames = np.concatenate([world.render_clip(shot, 8, 8.0) for shot in islice(image_shots("development"), 2)])
    judged, geometry = judges.classify(frames), judges.predict_geometry(frames)
    return {
        "subjects": [*judged.subjects], "colours": [*judged.colours], "scenes": [*judged.scenes],
        "styles": [*judged.styles],
        "identities": _rounded(judged.identities[0, :8] * 10), "embed": _rounded(judges.embed(frames)[0, :8] * 10),
        "text": _rounded(judges.text_similarity(frames, "a red fish")[:4]), "motion": [judges.classify_motion(frames)],
        "depth": _rounded(geometry.depth.mean((1, 2))[:4]), "points": _rounded(geometry.points[0]),
        "features": _rounded(extractor.extract(frames).features[:8]),
    }  # fmt: skip


def _moving_frames(seed: int) -> np.ndarray:
    """Return five frames of 64 x 64 of smooth noise that moves by two pixels to the right and one down a frame."""
    rough = np.random.default_rng(seed).uniform(0, 255, (3, 24, 24))
    large = np.stack([np.kron(channel, np.ones((4, 4))) for channel in rough], -1)
    return np.stack([large[16 - k : 80 - k, 16 - 2 * k : 80 - 2 * k] for k in range(5)]).round().astype(np.uint8)


def _rounded(value: Any) -> list[float]:
    return [float(f"{each:.5g}") for each in np.asarray(value, float).flatten()]


# --- world


def world_outputs() -> Outputs:
    """Return blocks of renderings of every subject, scene, style and unseen item, their ground truth, and captions."""
    found: Outputs = {}
    shot = ShotSpec("meadow", "flat", (Subject("fish", "red", 3, motion="right"),), "pan left", 5)
    for kind in world.SUBJECTS:
        found[f"subject {kind}"] = _blocks(world.render(replace(shot, things=(Subject(kind, "blue", 4),)))[None])
    for name, values in {"scene": world.SCENES, "style": world.STYLES}.items():
        for value in values:
            found[f"{name} {value}"] = _blocks(world.render(replace(shot, **{name: value}), 0.25)[None])
    for motion in world.MOTIONS:
        moved = replace(shot, things=(replace(shot.things[0], motion=motion),), camera="still")
        found[f"motion {motion}"] = _blocks(world.render(moved, 0.5)[None])
    for split in SPLITS:
        renderers = {name: unseen.unseen_subject_renderer(name) for name in unseen_subjects(split)}
        renderers |= {name: unseen.unseen_style_renderer(name) for name in unseen_styles(split)}
        found |= {f"unseen {name}": _blocks(render(shot, 0.0)[None]) for name, render in renderers.items()}
        for source in (image_shots, clip_shots):
            shots = [*islice(source(split), 3)]
            found[f"captions of {source.__name__}, {split}"] = [
                captions.caption_clip(each, np.random.default_rng(7)) for each in shots
            ]
    known = ground_truth(shot, 0.25)
    for kind, draw in CONTROL_MAPS.items():
        found[f"map {kind}"] = _blocks(draw(world.render(shot, 0.25), known)[None])
    found["truth"] = _rounded([known.mask.mean(), known.depth.mean(), known.edges.mean(), *known.flow.mean((0, 1))])
    rng = np.random.default_rng(8)
    held_out = next(image_shots("development"))
    for aspect in edits.ASPECTS:
        edit = edits.sample_edit(rng, aspect, held_out, split="held_out")
        found[f"edit of {aspect}"] = [edits.edit_instruction(edit, rng), edit.after.scene, edit.after.style]
    return found


GROUPS: Mapping[str, Callable[[], Outputs]] = {
    "samplers": sampler_outputs, "videos": video_outputs, "metrics": metric_outputs, "judges": judge_outputs,
    "world": world_outputs,
}  # fmt: skip
VERSIONS = {
    "samplers": ("SAMPLER_VERSION", SAMPLER_VERSION), "videos": ("SAMPLER_VERSION", SAMPLER_VERSION),
    "metrics": ("METRIC_VERSION", METRIC_VERSION), "judges": ("METRIC_VERSION", METRIC_VERSION),
    "world": ("WORLD_VERSION", WORLD_VERSION),
}  # fmt: skip
TOLERANCES = {
    "samplers": 1e-3,
    "videos": 0.7,
    "metrics": 1e-3,
    "judges": 2e-2,
    "world": 0.7,
}  # absolute and, below, relative
OF_NETWORKS = ("videos", "judges")  # groups whose outputs depend on weights


def differences(group: str, now: Outputs, before: Outputs) -> list[str]:
    """Return the names of outputs that differ, and of those that only one side has."""
    tolerance = TOLERANCES[group]
    return [name for name in sorted({*now, *before}) if not _close(now.get(name), before.get(name), tolerance)]


def _close(now: list[Any] | None, before: list[Any] | None, tolerance: float) -> bool:
    if now is None or before is None or len(now) != len(before):
        return False
    texts = any(isinstance(each, str) for each in now)
    return now == before if texts else bool(np.allclose(now, before, rtol=1e-3, atol=tolerance))


def network_hashes() -> dict[str, Any]:
    """Return the hashes of the weights on which some outputs depend."""
    return hash_models(MODELS)


def main() -> None:
    """Write the outputs, unless some changed and their version did not."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {"outputs": {}, "versions": {}}
    outputs, hashes = {group: compute() for group, compute in GROUPS.items()}, network_hashes()
    for group, (name, version) in VERSIONS.items():
        before = golden["outputs"].get(group, {})
        changed = [each for each in differences(group, outputs[group], before) if each in before]
        retrained = group in OF_NETWORKS and golden.get("weights") != hashes
        if changed and golden["versions"].get(name) == version and not retrained:
            sys.exit(f"{', '.join(changed)} changed: raise {name} in kineograph_lab/studies/protocol.py first")
    whole = {"versions": dict(VERSIONS.values()), "weights": hashes, "outputs": outputs}
    FILE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
