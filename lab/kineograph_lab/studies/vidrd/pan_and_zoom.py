"""VidRD's training on pictures that are panned and zoomed, on the pocket world: with them and without.

Two networks learn for as many steps from few films, one of them from pictures in motion besides, by
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

from kineograph.metrics import video_metrics
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.models.pocket.networks import restore_vidrd_unet
from kineograph_lab.recipe.video import temporal_layers
from kineograph_lab.studies import frame_metrics, set_distances
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, better
from kineograph_lab.studies.sample import FPS, FRAMES, SCALE, STEPS
from kineograph_lab.studies.study import Study, column, untrained
from kineograph_lab.studies.videocrafter1.text_to_video import filmed
from kineograph_lab.studies.vidrd.temporal_decoder import TRUTH, rendered

FOLDER = Path("runs/pocket")
PANNED, PLAIN = "films and panned pictures", "films alone"
TRAINED = {PANNED: "vidrd_panned", PLAIN: "vidrd_unpanned"}


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Videos by both networks, and the world's own."""
    steps, extractor = steps or STEPS, load_extractor(POCKET)
    models = {name: trained(model, FOLDER / f"{stage}.safetensors") for name, stage in TRAINED.items()}
    return Study(
        name="pan-and-zoom",
        title="Training on pictures that are panned and zoomed",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "networks": {name: fingerprint(each.net) for name, each in models.items()},
            "extractor": extractor.protocol(),
        },
        cases=moving_cases(count),
        arms={**{name: partial(filmed, each, FPS, steps) for name, each in models.items()}, TRUTH: rendered},
        measured=lambda frames, case: measured(frames, case, witnesses, extractor),
        claims=claims,
        rows=ROWS,
        sets=lambda made: set_distances.table(made, (PANNED, PLAIN, TRUTH), TRUTH),
    )  # fmt: skip


def trained(model: Model, file: Path) -> Model:
    """The video model with VidRD's layers, as a stage of the recipe left them. Raises Untrained without them."""
    if not file.exists():
        raise untrained(file, *TRAINED.values())
    begun = load("pocket-video", dtype="float32").net
    net = restore_vidrd_unet(begun, temporal_layers.VIDRD_CONFIG, load_file(file)).eval()
    return replace(model, net=net.to(model.device, model.dtype))


def measured(frames: Frames, case: Case, witnesses: Witnesses, extractor: Extractor) -> dict[str, Any]:
    """What a video shows and how it moves, and its features."""
    seen = witnesses.look(frames)
    right = dict(frame_metrics.prompt_agreement(seen, thing=case.thing, colour=case.colour, scene=case.scene))
    return {
        **right,
        "all": float(np.mean([right[name] for name in ("thing", "colour", "scene")])),
        "motion": float(witnesses.move(frames) == case.motion),
        "steady": video_metrics.frame_consistency(witnesses.embed(frames)),
        **set_distances.read(extractor, frames),
    }


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the paper adds them for."""
    both, alone = (partial(column, made, arm) for arm in (PANNED, PLAIN))
    return [
        better("thing, colour and scene as the prompt says, with - without", both("all"), alone("all")),
        better("motion as the prompt says, with - without", both("motion"), alone("motion")),
        set_distances.nearer("FVD, without - with", made, PANNED, PLAIN, TRUTH),
    ]


ROWS: Mapping[str, str] = {
    "thing": "frames with the prompt's thing",
    "colour": "frames with its colour",
    "scene": "frames with its scene",
    "all": "share of the three that are right",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}
