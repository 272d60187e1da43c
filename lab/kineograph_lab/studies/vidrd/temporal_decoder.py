"""VidRD's temporal decoder on the pocket world: reconstruction of clips, and decoding of generated latents.

Both decoders get the same latents: the VAE's, frame by frame, and the same with temporal layers between its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from kineograph.latents import Latents
from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import optical_flow
from kineograph.metrics.extractors import POCKET as EXTRACTOR
from kineograph.metrics.extractors import load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph_lab.studies import frame_metrics, set_distances
from kineograph_lab.studies.claims import Claim, claim_as_sharp, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS, decode_frames, sample_latents
from kineograph_lab.studies.study import PROMPT_ROWS, Analysis, GenerateClips, Study, metric_values
from kineograph_lab.world.world import render_clip

VIDRD = "pocket-vidrd"
PER_FRAME, TEMPORAL, TRUTH = "image decoder", "temporal decoder", "rendering"
DECODERS = f"{TEMPORAL} over {PER_FRAME}"


def reconstruction_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of held-out clips, encoded, and decoded by both decoders; `steps` is not used."""
    video, extractor = load(VIDRD), load_extractor(EXTRACTOR)
    return Study(
        RECONSTRUCTION,
        settings=_settings(video, extractor),
        cases=moving_cases(count),
        arms=_arms(video, partial(_encode_case, video)),
        measure=lambda frames, case: _measure(frames, case, extractor),
    )


def decoder_generation_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of generated latents, decoded by both decoders."""
    video, extractor, steps = load(VIDRD), load_extractor(EXTRACTOR), steps or STEPS
    return Study(
        GENERATION,
        settings={**_settings(video, extractor), "num_inference_steps": steps, "guidance_scale": SCALE},
        cases=moving_cases(count),
        arms=_arms(video, lambda case: sample_latents(video, case, steps=steps)),
        measure=lambda frames, case: _measure_generated(frames, case, judges, extractor),
    )


def _settings(video: Model, extractor: Extractor) -> dict[str, Any]:
    return {
        "num_frames": FRAMES, "fps": FPS, "extractor": extractor.protocol(), "motion": optical_flow.PROTOCOL,
        "video model": fingerprints(video),
    }  # fmt: skip


def _arms(video: Model, latents_of: Callable[[Case], Latents]) -> dict[str, GenerateClips]:
    """Return both decoders, on the same latents of a case (the last are cached), and the world's own clips."""
    latents_of = lru_cache(maxsize=1)(latents_of)
    decoders = {PER_FRAME: replace(video, temporal_decoder=None), TEMPORAL: video}
    return {name: partial(_decode_cases, decoder, latents_of) for name, decoder in decoders.items()} | {
        TRUTH: render_cases
    }


def _decode_cases(decoder: Model, latents_of: Callable[[Case], Latents], cases: Sequence[Case]) -> list[Frames]:
    return [decode_frames(decoder, latents_of(case)) for case in cases]


def render_cases(cases: Sequence[Case]) -> list[Frames]:
    """Render the world's own clips of some cases."""
    return [render_clip(case.shot, FRAMES, FPS) for case in cases]


def _encode_case(model: Model, case: Case) -> Latents:
    """Encode the world's own clip of a case."""
    (clip,) = render_cases([case])
    return model.encode(torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255)


def _measure(frames: Frames, case: Case, extractor: Extractor) -> dict[str, Any]:
    """Return PSNR, flicker and sharpness against the world's own clip, and features for FVD and KVD."""
    (clip,) = render_cases([case])
    return {
        "psnr": frame_metrics.psnr(frames, clip, np.ones(frames.shape[:3], bool)),
        "flicker": flicker(frames, clip),
        "sharp": frame_metrics.relative_sharpness(frames, clip),
        **set_distances.extract_set_features(extractor, frames),
    }


def flicker(frames: Frames, clip: Frames) -> float:
    """Return the mean difference between the frame-to-frame changes of two clips, in grey levels of 255."""
    ours, theirs = (np.diff(each.astype(np.int16), axis=0) for each in (frames, clip))
    return float(np.abs(ours - theirs).mean())


def _measure_generated(frames: Frames, case: Case, judges: Judges, extractor: Extractor) -> dict[str, Any]:
    """Return agreement with the prompt, warp error, sharpness, and features for FVD and KVD."""
    (clip,), judged = render_cases([case]), judges.classify(frames)
    return {
        **frame_metrics.prompt_agreement(judged, case),
        "motion": float(judges.classify_motion(frames) == case.motion),
        **{name: value for name, value in optical_flow.measure_flow(frames, FPS) if name == "warp error"},
        "sharp": frame_metrics.relative_sharpness(frames, clip),
        **set_distances.extract_set_features(extractor, frames),
    }


def _set_metrics(records: Sequence[Record]) -> dict[str, Any]:
    return {
        **set_distances.tabulate_set_distances(records, TRUTH), **set_distances.tabulate_inception_scores(records)
    }  # fmt: skip


def _state_reconstruction_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that temporal layers in the decoder reconstruct clips better, and with less flicker."""
    temporal, per_frame = (partial(metric_values, records, arm) for arm in (TEMPORAL, PER_FRAME))
    return [
        claim_better("PSNR, temporal decoder - image decoder", temporal("psnr"), per_frame("psnr")),
        claim_better("flicker, image decoder - temporal decoder", per_frame("flicker"), temporal("flicker")),
        claim_as_sharp(temporal("sharp"), per_frame("sharp"), DECODERS),
        *_claim_lower_distances(records),
    ]


def _state_generation_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim a lower FVD with temporal layers, as in the paper's table, a lower KVD, and less flicker without a blur."""
    temporal, per_frame = (partial(metric_values, records, arm) for arm in (TEMPORAL, PER_FRAME))
    return [
        claim_better("warp error, image decoder - temporal decoder", per_frame("warp error"), temporal("warp error")),
        claim_as_sharp(temporal("sharp"), per_frame("sharp"), DECODERS),
        *_claim_lower_distances(records),
    ]


def _claim_lower_distances(records: Sequence[Record]) -> list[Claim]:
    return set_distances.claim_lower_distances("image decoder - temporal decoder", records, TEMPORAL, PER_FRAME, TRUTH)


RECONSTRUCTION_ROWS: Mapping[str, str] = {
    "psnr": "PSNR with the clip (dB)",
    "flicker": "flicker: difference of the change from frame to frame (grey levels, less is better)",
    "sharp": "sharpness, over that of the world's own rendering",
}
GENERATION_ROWS: Mapping[str, str] = {
    **PROMPT_ROWS,
    "motion": "videos that move as the prompt says",
    "warp error": "change of a pixel where the flow takes it (grey levels, less is better)",
    "sharp": "sharpness, over that of the world's own rendering",
}

RECONSTRUCTION = Analysis(
    name="temporal-decoder-films",
    title="Held-out clips, reconstructed by the VAE",
    cases=moving_cases,
    state_claims=_state_reconstruction_claims,
    rows=RECONSTRUCTION_ROWS,
    set_metrics=_set_metrics,
    models=("pocket-vidrd",),
)
GENERATION = Analysis(
    name="temporal-decoder",
    title="Videos generated by VidRD's model, decoded by both decoders",
    cases=moving_cases,
    state_claims=_state_generation_claims,
    rows=GENERATION_ROWS,
    set_metrics=_set_metrics,
    models=("pocket-vidrd",),
    options=VIDEOCRAFTER.options,
)
