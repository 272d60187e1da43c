"""Still-Moving on the pocket world: subjects and styles that it never showed, by the method and its baselines.

The paper's Table 1 in small, and its ablations. Beside them stand the video model that was not customised, told the
subject's class or the content alone, and the world's own rendering.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from kineograph.generation import generate
from kineograph.metrics import optical_flow, video_metrics
from kineograph.metrics.distances import Mean, mean
from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.training.customise import default_video_settings
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record
from kineograph_lab.studies.report import Claim, at_least_a_share, better, not_below
from kineograph_lab.studies.sample import FPS, FRAMES, STEPS
from kineograph_lab.studies.still_moving import customised_models as ways
from kineograph_lab.studies.still_moving.customised_models import Way
from kineograph_lab.studies.still_moving.items import PROMPTS, Kind, cases, item_of, items, moving, plain
from kineograph_lab.studies.study import Study, Untrained, column, every_third
from kineograph_lab.world import unseen

OURS, VIDEO, RENDERING = "ours", "video model", "rendering"
INJECTION, INTERPOLATION, INTERLEAVED = BASELINES = ("injection", "interpolation", "interleaved training")
ABLATED_CASES = PROMPTS  # a subject's: each part costs a training of its own
SCALE = 3.0  # of guidance, less than elsewhere: it keeps more of a subject (docs/customising.md)
KEPT = 0.8  # of the motion
KINDS: tuple[Kind, ...] = ("subject", "style")


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The method, the three baselines, the model as it was, and the truth: ten videos an item."""
    check(model)
    draw = partial(drawn, steps or STEPS)
    learnt: Mapping[str, Way] = {
        OURS: ways.ours,
        INJECTION: ways.injection,
        INTERPOLATION: partial(ways.interpolation, draw, witnesses),
        INTERLEAVED: ways.interleaved,
    }
    return Study(
        name=_name(model, "still-moving"),
        title=f"Unseen subjects and styles in motion, {model.name} (Table 1)",
        settings=_settings(model, steps) | {"shares": list(ways.SHARES)},
        cases=cases(count),
        arms={
            **{name: partial(filmed, way, model, steps or STEPS) for name, way in learnt.items()},
            VIDEO: partial(as_it_was, model, steps or STEPS),
            RENDERING: rendered,
        },
        measured=lambda frames, case: measured(frames, case, witnesses),
        claims=claims,
        rows=ROWS,
        pictured=(0, PROMPTS),  # a subject and a style
        shown=every_third,
        sets=partial(shares, model),
    )


def ablated(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """The method without each of its parts, of one subject."""
    table = studied(model, witnesses, min(count, ABLATED_CASES), steps)
    parts = {name: partial(ways.ablated, name) for name in ways.ABLATIONS}
    return table._replace(
        name=_name(model, "still-moving-ablation"),
        title=f"Still-Moving without each of its parts, {model.name} ({len(table.cases)} of the prompts)",
        settings=_settings(model, steps) | {"ablations": ways.ABLATIONS},
        arms={
            OURS: table.arms[OURS],
            **{name: partial(filmed, way, model, steps or STEPS) for name, way in parts.items()},
            VIDEO: table.arms[VIDEO],
        },
        claims=claims_of_the_parts,
        sets=lambda made: {},
    )


def check(model: Model) -> None:
    """Raises Untrained for a video model without a motion adapter, of which the method is made."""
    if model.net.motion_adapter is None:
        raise Untrained(f"{model.name} has no motion adapter: load it with motion_adapter=, or take pocket-video")


def _name(model: Model, what: str) -> str:
    """Of a study's files: the first family is named after the paper alone."""
    return what if model.name == "pocket-video" else f"{what}-{model.name}"


def _settings(model: Model, steps: int | None) -> dict[str, Any]:
    return {
        "num_inference_steps": steps or STEPS, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS,
        "items": [item.name for item in items()], "motion": optical_flow.PROTOCOL,
        "video model": fingerprint(model.net), "motion eye": fingerprint(load_judge().motion_eye),
        "customising": {kind: _customising(model, kind) for kind in KINDS},
    }  # fmt: skip


def _customising(model: Model, kind: Kind) -> dict[str, Any]:
    """But for the number format that its loops compute in, which is the machine's."""
    loop = {"mixed_precision"}
    without: dict[str, Any] = {"image": {"training": loop}, "training": loop, "motion_training": loop}
    return default_video_settings(model, kind).model_dump(mode="json", exclude=without)


def drawn(steps: int, model: Model, case: Case, prompt: str | None = None) -> Frames:
    """The video of a case by the front door; of another prompt, if there is one."""
    told = case.prompt if prompt is None else prompt
    return generate(
        model, told, num_frames=FRAMES, fps=FPS, num_inference_steps=steps, guidance_scale=SCALE, seed=case.seed
    ).frames


def filmed(way: Way, video: Model, steps: int, chosen: Sequence[Case]) -> list[Frames]:
    """The videos of some cases by what the way made of the model for their items."""
    return [drawn(steps, _opened(way, video, item_of(case).number), case) for case in chosen]


@lru_cache(maxsize=8)  # as many ways as take turns with the prompts of an item
def _opened(way: Way, video: Model, number: int) -> Model:
    return way(video, items()[number])


def as_it_was(video: Model, steps: int, chosen: Sequence[Case]) -> list[Frames]:
    """The same by the model itself, told the class or the content."""
    return [drawn(steps, video, case, moving(case)) for case in chosen]


def rendered(chosen: Sequence[Case]) -> list[Frames]:
    return [unseen.render_unseen_clip(item_of(case).render, case.shot, FRAMES, FPS) for case in chosen]


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> dict[str, float]:
    """All that is measured of one video, of which each number stands there for subjects and for styles too."""
    item = item_of(case)
    (truth,) = rendered([case])
    mine, stills, asked = (witnesses.embed(each) for each in (frames, item.pictures, truth))
    found = {
        "CLIP-I": float(100 * (mine @ stills.T).mean()),
        "CLIP-T": dict(frame_metrics.clip_score(witnesses.alike(frames, plain(case))))["text"],
        "truth": float(100 * (mine @ asked.T).mean()),
        "motion": float(witnesses.move(frames) == case.motion),
        "moved": float(FPS * optical_flow.motion_per_frame(frames).mean()),
        "steady": video_metrics.frame_consistency(mine),
    }
    if item.kind == "subject":
        seen = witnesses.look(frames)
        found["scene"] = frame_metrics.share_equal(seen.scenes, case.scene)
        found["individual"] = float((seen.individuals @ witnesses.look(item.pictures).individuals.T).mean())
    return found | {f"{name}, {item.kind}s": found[name] for name in APART}


def shares(model: Model, made: Sequence[Record]) -> Mapping[str, Mapping[str, Mean]]:
    """How much of the customised weights interpolation was given, on average over the items that were trained here."""
    numbers = sorted({record["case"] // PROMPTS for record in made if record["arm"] == INTERPOLATION})
    chosen = [*filter(math.isfinite, (ways.share_of(model, items()[number]) for number in numbers))]
    nothing = {arm: mean([]) for arm in (OURS, *BASELINES, VIDEO, RENDERING)}
    return {"share of the customised weights": nothing | {INTERPOLATION: mean(chosen)}}


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the paper claims, of subjects and styles together."""
    of = partial(column, made, OURS)
    return [
        *(better(f"CLIP-I, {OURS} - {arm}", of("CLIP-I"), column(made, arm, "CLIP-I")) for arm in BASELINES),
        *(not_below(f"CLIP-T, {OURS} - {arm}", of("CLIP-T"), column(made, arm, "CLIP-T")) for arm in BASELINES),
        *_moves(made),
    ]


def claims_of_the_parts(made: Sequence[Record]) -> list[Claim]:
    """What its ablations show: less motion without each part, and less of the prompt without natural videos."""
    of = partial(column, made, OURS)
    least = "no natural videos"
    return [
        *_moves(made),
        *(better(f"motion, {OURS} - {arm}", of("moved"), column(made, arm, "moved")) for arm in ways.ABLATIONS),
        better(f"CLIP-T, {OURS} - {least}", of("CLIP-T"), column(made, least, "CLIP-T")),
    ]


def _moves(made: Sequence[Record]) -> list[Claim]:
    of, was = (partial(column, made, arm) for arm in (OURS, VIDEO))
    return [
        at_least_a_share("moves as the prompt says, over the video model's", of("motion"), was("motion"), KEPT),
        at_least_a_share("motion, over the video model's", of("moved"), was("moved"), KEPT),
    ]


APART = ("CLIP-I", "CLIP-T", "truth", "motion", "moved")
MEANT = {
    "CLIP-I": "CLIP-I: 100 cos with the reference stills",
    "CLIP-T": "CLIP-T: 100 cos with the prompt (without the new word)",
    "truth": "truth: 100 cos with the world's own rendering of the prompt (CLIP)",
    "motion": "videos that move as the prompt says",
    "moved": "motion: way of a pixel a second (widths and heights)",
}
ROWS: Mapping[str, str] = {
    **MEANT,
    "individual": "likeness of the individual to the stills', by the judge (subjects)",
    "scene": "frames with the prompt's scene, by the judge (subjects)",
    "steady": "mean cosine of neighbouring frames (CLIP)",
    **{f"{name}, {kind}s": f"{MEANT[name].split(':')[0]}, {kind}s" for kind in KINDS for name in APART},
}
