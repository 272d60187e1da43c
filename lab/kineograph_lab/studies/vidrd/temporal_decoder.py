"""VidRD's temporal decoder on the pocket world: films that went through the VAE, and videos that the model drew.

Both decoders get the same latents: the VAE, frame by frame, and the same with layers along time between its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from kineograph.latents import Latents
from kineograph.metrics import optical_flow
from kineograph.metrics.extractors import POCKET as EXTRACTOR
from kineograph.metrics.extractors import load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph_lab.studies import frame_metrics, set_distances
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, better
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS, developed, latents
from kineograph_lab.studies.study import Film, Study, column
from kineograph_lab.world.world import render_clip

VIDRD = "pocket-vidrd"
PER_FRAME, ALONG_TIME, TRUTH = "image decoder", "temporal decoder", "rendering"


def filmed(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Held-out films, encoded, and decoded in both ways; no steps count."""
    video, extractor = load(VIDRD), load_extractor(EXTRACTOR)
    return Study(
        name="temporal-decoder-films",
        title="Held-out films that went through the VAE",
        settings=_settings(video, extractor),
        cases=moving_cases(count),
        arms=_arms(video, partial(encoded, video)),
        measured=lambda frames, case: measured(frames, case, extractor),
        claims=claims_of_films,
        rows=FILM_ROWS,
        sets=tabled,
    )


def drawn(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Videos that the model drew, decoded in both ways."""
    video, extractor, steps = load(VIDRD), load_extractor(EXTRACTOR), steps or STEPS
    return Study(
        name="temporal-decoder",
        title="Videos that VidRD's model drew, decoded in both ways",
        settings={**_settings(video, extractor), "num_inference_steps": steps, "guidance_scale": SCALE},
        cases=moving_cases(count),
        arms=_arms(video, lambda case: latents(video, case.prompt, case.seed, steps=steps)),
        measured=lambda frames, case: measured_of_drawn(frames, case, witnesses, extractor),
        claims=claims_of_drawn,
        rows=DRAWN_ROWS,
        sets=tabled,
    )


def _settings(video: Model, extractor: Extractor) -> dict[str, Any]:
    return {
        "num_frames": FRAMES, "fps": FPS, "extractor": extractor.protocol(), "motion": optical_flow.PROTOCOL,
        "video model": fingerprints(video),
    }  # fmt: skip


def _arms(video: Model, known: Callable[[Case], Latents]) -> dict[str, Film]:
    """What both decoders make of a case's latents, the last of which are kept; and the world's own film."""
    known = lru_cache(maxsize=1)(known)
    ways = {PER_FRAME: replace(video, temporal_decoder=None), ALONG_TIME: video}
    return {name: partial(decoded, by, known) for name, by in ways.items()} | {TRUTH: rendered}


def decoded(by: Model, known: Callable[[Case], Latents], cases: Sequence[Case]) -> list[Frames]:
    """The films of some cases' latents."""
    return [developed(by, known(case)) for case in cases]


def rendered(cases: Sequence[Case]) -> list[Frames]:
    """The world's own films of some cases."""
    return [render_clip(case.shot, FRAMES, FPS) for case in cases]


def encoded(model: Model, case: Case) -> Latents:
    """The latents of the world's own film."""
    (film,) = rendered([case])
    return model.encode(torch.from_numpy(film).permute(0, 3, 1, 2)[None].float() / 255)


def measured(frames: Frames, case: Case, extractor: Extractor) -> dict[str, Any]:
    """How far a film is from the world's own, in its pixels and in how they change, and its features."""
    (film,) = rendered([case])
    return {
        "psnr": frame_metrics.psnr(frames, film, np.ones(frames.shape[:3], bool)),
        "flicker": flicker(frames, film),
        **set_distances.read(extractor, frames),
    }


def flicker(frames: Frames, film: Frames) -> float:
    """How far the change from frame to frame is from a film's, in grey levels of 255."""
    ours, theirs = (np.diff(each.astype(np.int16), axis=0) for each in (frames, film))
    return float(np.abs(ours - theirs).mean())


def measured_of_drawn(frames: Frames, case: Case, witnesses: Witnesses, extractor: Extractor) -> dict[str, Any]:
    """What a video shows, how steady it is, and its features."""
    seen = witnesses.look(frames)
    return {
        **dict(frame_metrics.prompt_agreement(seen, thing=case.thing, colour=case.colour, scene=case.scene)),
        "motion": float(witnesses.move(frames) == case.motion),
        **{name: value for name, value in optical_flow.measure_flow(frames, FPS) if name == "warp error"},
        **set_distances.read(extractor, frames),
    }


def tabled(made: Sequence[Record]) -> dict[str, Any]:
    return set_distances.table(made, (PER_FRAME, ALONG_TIME, TRUTH), TRUTH)


def claims_of_films(made: Sequence[Record]) -> list[Claim]:
    """What the layers along time are for: films come back as they were, and as steady."""
    along, alone = (partial(column, made, arm) for arm in (ALONG_TIME, PER_FRAME))
    return [
        better("PSNR, temporal decoder - image decoder", along("psnr"), alone("psnr")),
        better("flicker, image decoder - temporal decoder", alone("flicker"), along("flicker")),
        _nearer(made),
    ]


def claims_of_drawn(made: Sequence[Record]) -> list[Claim]:
    """The paper's table: FVD with and without."""
    return [_nearer(made)]


def _nearer(made: Sequence[Record]) -> Claim:
    return set_distances.nearer("FVD, image decoder - temporal decoder", made, ALONG_TIME, PER_FRAME, TRUTH)


FILM_ROWS: Mapping[str, str] = {
    "psnr": "PSNR with the film (dB)",
    "flicker": "flicker: difference of the change from frame to frame (grey levels, less is better)",
}
DRAWN_ROWS: Mapping[str, str] = {
    "thing": "frames with the prompt's thing",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
    "motion": "videos that move as the prompt says",
    "warp error": "change of a pixel where the flow takes it (grey levels, less is better)",
}
