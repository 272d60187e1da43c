"""VideoCrafter1's image-to-video on the pocket world: the image's content, with the motion of the prompt.

The paper's ablation uses the class token alone in place of all patch tokens. It is one more arm if it was trained on
this machine, for as many steps, by
`python -m kineograph_lab.recipe.run --from-shipped --stages class_reading,class_token`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.torch import load_file

from kineograph.methods.videocrafter import METHOD as VIDEOCRAFTER
from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.request import ImageOptions
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.claims import SHARE_MARGIN, Claim, claim_better, claim_not_below
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.sample import FPS, FRAMES, STEPS, animate_frames, generate_frames
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.world.world import frame_times, render

SCALE = 3.0  # at text-to-video's 5, text and image together oversaturate
CLASS_TOKEN, ONE_TOKEN = Path("runs/pocket/class_token.safetensors"), "class token alone"


def image_to_video_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of text alone, text and image tokens, and these with the first frame pinned to the image."""
    steps, animator = steps or STEPS, load("pocket-animate")
    class_token_models = load_class_token_model(animator)
    return Study(
        ANALYSIS,
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "animator": fingerprint(animator.net), "motion eye": fingerprint(load_judge().motion_eye),
            **{name: fingerprint(each.net) for name, each in class_token_models.items()},
        },
        cases=moving_cases(count),
        arms={
            "text alone": partial(_generate, model, steps),
            "picture shown": partial(_animate, animator, "shown", steps),
            **{name: partial(_animate, each, "shown", steps) for name, each in class_token_models.items()},
            "first frame pinned": partial(_animate, animator, "pinned", steps),
        },
        measure=lambda frames, case: _measure(frames, case, judges),
    )  # fmt: skip


def load_class_token_model(animator: Model) -> dict[str, Model]:
    """Return arm -> the model conditioned on the class token alone; empty if it was not trained here."""
    if not CLASS_TOKEN.exists():
        return {}
    other = load("pocket-animate", device=animator.device, dtype=animator.dtype)
    assert other.image_encoder is not None, "the pocket animator"
    other.net.load_state_dict(
        {name: each.to(other.dtype) for name, each in load_file(CLASS_TOKEN).items()}, strict=False
    )
    return {ONE_TOKEN: replace(other, image_encoder=replace(other.image_encoder, num_states=1))}


def _generate(model: Model, steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [generate_frames(model, case, steps=steps, scale=SCALE) for case in cases]


def _animate(model: Model, first_frame: Literal["shown", "pinned"], steps: int, cases: Sequence[Case]) -> list[Frames]:
    return [
        animate_frames(model, case, first_image(case), first_frame=first_frame, steps=steps, scale=SCALE)
        for case in cases
    ]


def first_image(case: Case) -> Frames:
    """Render the first frame of the world's own clip, uint8 [1 h w 3]."""
    return render(case.shot, frame_times(FRAMES, FPS)[0])[None]


def _measure(frames: Frames, case: Case, judges: Judges) -> dict[str, float]:
    image = first_image(case)
    judged, theirs = judges.classify(frames), judges.classify(image)
    return {
        "CLIP-I": float((judges.embed(frames) @ judges.embed(image).T).mean()),
        "thing": frame_metrics.share_equal(judged.subjects, case.subject),
        "colour": frame_metrics.share_equal(judged.colours, case.colour),
        "individual": float((judged.identities @ theirs.identities.T).mean()),
        "first frame": frame_metrics.psnr(frames[0], image[0], np.ones(frames.shape[1:3], bool)),
        "motion": float(judges.classify_motion(frames) == case.motion),
        "steady": video_metrics.frame_consistency(judges.embed(frames)),
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim differences to text alone, since the caption already names what the image shows; no bar on its own."""
    shown, without = (partial(metric_values, records, arm) for arm in ("picture shown", "text alone"))
    return [
        claim_better("CLIP-I with the image, shown - text alone", shown("CLIP-I"), without("CLIP-I")),
        claim_better(
            f"CLIP-I, all patches - {ONE_TOKEN}", shown("CLIP-I"), metric_values(records, ONE_TOKEN, "CLIP-I")
        ),
        claim_better(
            "first frame's PSNR with the image, shown - text alone", shown("first frame"), without("first frame")
        ),
        claim_better(
            "similarity of the individual to the image's, shown - text alone",
            shown("individual"),
            without("individual"),
        ),
        claim_not_below("frames with the subject, shown - text alone", shown("thing"), without("thing"), SHARE_MARGIN),
        claim_not_below("frames with its colour, shown - text alone", shown("colour"), without("colour"), SHARE_MARGIN),
        claim_not_below(
            "videos that move as the prompt says, shown - text alone", shown("motion"), without("motion"), SHARE_MARGIN
        ),
    ]


ROWS = {
    "CLIP-I": "CLIP-I: mean cosine with the image",
    "thing": "frames with the image's subject",
    "colour": "frames with its colour",
    "individual": "similarity of the individual to the image's, by the judge",
    "first frame": "PSNR of the first frame with the image (dB)",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}

ANALYSIS = Analysis(
    name="image-to-video",
    title="Image to video",
    cases=moving_cases,
    state_claims=_state_claims,
    rows=ROWS,
    models=("pocket-animate", "recipe stage class_token"),
    options=(*VIDEOCRAFTER.options, ImageOptions),
)
