"""VideoCrafter1's image-to-video on the pocket world: what the picture shows, moving as the text says.

The paper's ablation reads the class token alone in place of all patches. It is measured too where it was trained for
as long, by `python -m kineograph_lab.recipe.run --from-shipped --stages class_reading,class_token`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from kineograph.metrics import video_metrics
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, at_least, better
from kineograph_lab.studies.sample import FPS, FRAMES, STEPS, Picture, film, pinned_to
from kineograph_lab.studies.study import Study, column
from kineograph_lab.world.world import frame_times, render

SCALE = 3.0  # at text-to-video's 5 words and picture together draw things garish
CLASS_TOKEN, ONE_TOKEN = Path("runs/pocket/class_token.safetensors"), "class token alone"


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Text alone, the picture shown, and the first frame pinned to it besides."""
    steps, animator = steps or STEPS, load("pocket-animate")
    alone = one_token(animator)
    return Study(
        name="image-to-video",
        title="Image to video",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
            "animator": fingerprint(animator.net), "motion eye": fingerprint(load_judge().motion_eye),
            **{name: fingerprint(each.net) for name, each in alone.items()},
        },
        cases=moving_cases(count),
        arms={
            "text alone": partial(filmed, partial(told, model, steps)),
            "picture shown": partial(filmed, partial(shown, animator, steps)),
            **{name: partial(filmed, partial(shown, each, steps)) for name, each in alone.items()},
            "first frame pinned": partial(filmed, partial(pinned, animator, steps)),
        },
        measured=lambda frames, case: measured(frames, case, witnesses),
        claims=claims,
        rows=ROWS,
    )  # fmt: skip


def one_token(animator: Model) -> dict[str, Model]:
    """For the ablation, where it was trained here: the animator reading the class token alone."""
    if not CLASS_TOKEN.exists():
        return {}
    other = load("pocket-animate", device=animator.device, dtype=animator.dtype)
    assert other.image_encoder is not None, "the pocket animator"
    other.net.load_state_dict(
        {name: each.to(other.dtype) for name, each in load_file(CLASS_TOKEN).items()}, strict=False
    )
    return {ONE_TOKEN: replace(other, image_encoder=replace(other.image_encoder, states=1))}


def told(model: Model, steps: int, case: Case) -> Frames:
    return film(model, case.prompt, case.seed, steps=steps, scale=SCALE)


def shown(model: Model, steps: int, case: Case) -> Frames:
    return film(model, case.prompt, case.seed, steps=steps, scale=SCALE, picture=picture_of(case))


def pinned(model: Model, steps: int, case: Case) -> Frames:
    picture = picture_of(case)
    return film(model, case.prompt, case.seed, steps=steps, scale=SCALE, picture=picture, begun=pinned_to(picture))


def picture_of(case: Case) -> Picture:
    """The first frame of the world's own clip, uint8 [1 h w 3]."""
    return render(case.shot, frame_times(FRAMES, FPS)[0])[None]


def filmed(way: Callable[[Case], Frames], cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases."""
    return [way(case) for case in cases]


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> dict[str, float]:
    """All that is measured of one video."""
    picture = picture_of(case)
    seen, theirs = witnesses.look(frames), witnesses.look(picture)
    return {
        "CLIP-I": float((witnesses.embed(frames) @ witnesses.embed(picture).T).mean()),
        "thing": float(np.mean([each == case.thing for each in seen.things])),
        "colour": float(np.mean([each == case.colour for each in seen.colours])),
        "individual": float((seen.individuals @ theirs.individuals.T).mean()),
        "first frame": frame_metrics.psnr(frames[0], picture[0], np.ones(frames.shape[1:3], bool)),
        "motion": float(witnesses.move(frames) == case.motion),
        "steady": video_metrics.frame_consistency(witnesses.embed(frames)),
    }


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue claims."""
    of, without = (partial(column, made, arm) for arm in ("picture shown", "text alone"))
    ablated = any(record["arm"] == ONE_TOKEN for record in made)
    return [
        better("CLIP-I with the picture, shown - text alone", of("CLIP-I"), without("CLIP-I"), errors=3),
        *([better(f"CLIP-I, all patches - {ONE_TOKEN}", of("CLIP-I"), column(made, ONE_TOKEN, "CLIP-I"))] * ablated),
        at_least("frames keep the picture's thing", of("thing"), 0.85),
        at_least("frames keep its colour", of("colour"), 0.85),
        at_least("the thing moves as the prompt says", of("motion"), 0.75),
    ]


ROWS = {
    "CLIP-I": "CLIP-I: mean cosine with the picture",
    "thing": "frames with the picture's thing",
    "colour": "frames with its colour",
    "individual": "likeness of the individual to the picture's, by the judge",
    "first frame": "PSNR of the first frame with the picture (dB)",
    "motion": "videos that move as the prompt says",
    "steady": "mean cosine of neighbouring frames (CLIP)",
}
