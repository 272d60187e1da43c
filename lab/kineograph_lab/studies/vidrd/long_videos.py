"""VidRD's long videos on the pocket world: clips on end that stay what they are, without a jump where they meet.

Beside them stand clips that know nothing of one another, and, over two clips of fewer prompts, the paper's own numbers
and the method without each of its three parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

import numpy as np
from jaxtyping import UInt8

from kineograph.generation import generate
from kineograph.metrics import optical_flow
from kineograph.metrics.features import Frames
from kineograph.models.model import Model
from kineograph.request import ClipOptions
from kineograph_lab.studies import frame_metrics
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record, moving_cases
from kineograph_lab.studies.report import Claim, better, within
from kineograph_lab.studies.sample import SCALE
from kineograph_lab.studies.study import Film, Study, column
from kineograph_lab.studies.videocrafter1.text_to_video import ratio

FRAMES, FPS = 8, 8.0  # of a clip: the paper's length
STEPS = 15  # of each clip: a case has sixteen of them
CLIPS, ABLATED_CLIPS, ABLATED_CASES = 8, 2, 40
WHOLE, JOINED, PAPER = "reuse and diffuse", "clips joined", "as published"
BOTH: Mapping[str, ClipOptions] = {WHOLE: ClipOptions(), JOINED: ClipOptions(keep=0, noise_ratio=0.0, guidance=0.0)}
THEIRS: Mapping[str, ClipOptions] = {PAPER: ClipOptions(keep=4, guidance=0.4)}
WITHOUT: Mapping[str, ClipOptions] = {
    "no noise reversion": ClipOptions(order="kept"),
    "no past-dependent noise": ClipOptions(noise_ratio=0.0),
    "no staged guidance": ClipOptions(guidance=0.0),
}
ASKED = ("thing", "colour", "scene")
CHANGES = {"flow": "way of a pixel in thousandths of the picture", "pixels": "change of a pixel in grey levels"}


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Eight clips on end, and as many that are joined."""
    steps = steps or STEPS
    return Study(
        name="long-videos",
        title="Eight clips on end",
        settings={
            "num_inference_steps": steps, "guidance_scale": SCALE, "num_frames": FRAMES, "fps": FPS, "clips": CLIPS,
            "reuse": asdict(ClipOptions()), "motion": optical_flow.PROTOCOL,
        },
        cases=moving_cases(count),
        arms=_arms(model, steps, CLIPS, BOTH),
        measured=lambda frames, case: measured(frames, case, witnesses),
        claims=claims,
        rows=ROWS,
        shown=edges,
    )  # fmt: skip


def ablated(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """Two clips on end, whole, by the paper's numbers, and without each of the parts, of at most 40 cases."""
    few = min(count, ABLATED_CASES)
    long = studied(model, witnesses, few, steps)
    return long._replace(
        name="long-videos-ablation",
        title=f"Two clips on end, without each part of the method ({few} of the prompts)",
        settings={**long.settings, "clips": ABLATED_CLIPS},
        arms=_arms(model, steps or STEPS, ABLATED_CLIPS, {**BOTH, **THEIRS, **WITHOUT}),
        claims=claims_of_the_parts,
    )


def _arms(model: Model, steps: int, clips: int, ways: Mapping[str, ClipOptions]) -> dict[str, Film]:
    return {name: partial(filmed, model, steps, clips, reuse) for name, reuse in ways.items()}


def filmed(model: Model, steps: int, clips: int, reuse: ClipOptions, cases: Sequence[Case]) -> list[Frames]:
    """The videos of some cases, of so many clips."""
    return [
        generate(
            model, case.prompt, num_frames=FRAMES, fps=FPS, num_inference_steps=steps, guidance_scale=SCALE,
            seed=case.seed, clips=clips, reuse=reuse,
        ).frames
        for case in cases
    ]  # fmt: skip


def edges(frames: Frames) -> UInt8[np.ndarray, "edges h w 3"]:
    """The first and the last frame of each clip: what stands side by side at a seam."""
    return frames[np.arange(len(frames)) % FRAMES % (FRAMES - 1) == 0]


def measured(frames: Frames, case: Case, witnesses: Witnesses) -> dict[str, float]:
    """All that is measured of one video."""
    ends = {"first": frames[:FRAMES], "last": frames[-FRAMES:]}
    seen = {where: witnesses.look(clip) for where, clip in ends.items()}
    found: dict[str, float] = {}
    for where, clip in ends.items():
        right = dict(
            frame_metrics.prompt_agreement(seen[where], thing=case.thing, colour=case.colour, scene=case.scene)
        )
        found |= {f"{name}, {where} clip": right[name] for name in ASKED}
        found[f"motion, {where} clip"] = float(witnesses.move(clip) == case.motion)
    found["individual"] = float((seen["last"].individuals @ seen["first"].individuals.T).mean())
    return found | changes(frames)


def changes(frames: Frames) -> dict[str, float]:
    """How much changes from frame to frame, on average: at the seams of clips, and inside of clips."""
    at_seam = np.arange(1, len(frames)) % FRAMES == 0
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    found = {"flow": 1000 * optical_flow.motion_per_frame(frames), "pixels": steps}
    return {
        f"{name}, {where}": float(values[chosen].mean())
        for (name, values), (where, chosen) in product(found.items(), zip(WHERE, (at_seam, ~at_seam), strict=True))
    }


def claims(made: Sequence[Record]) -> list[Claim]:
    """What the issue claims of many clips."""
    of, joined = (partial(column, made, arm) for arm in (WHOLE, JOINED))
    lost = {name: np.subtract(of(f"{name}, last clip"), of(f"{name}, first clip")).tolist() for name in ASKED}
    return [
        *(within(f"{name} at the last clip - at the first", values, -0.1, 0.1) for name, values in lost.items()),
        *_smooth(made, WHOLE),
        *(
            better(f"jump at a seam, {JOINED} - {WHOLE}: {name}", joined(f"{name}, seam"), of(f"{name}, seam"))
            for name in CHANGES
        ),
    ]


def claims_of_the_parts(made: Sequence[Record]) -> list[Claim]:
    """That each part is needed, as in the paper's ablation, and how its own numbers do."""
    of = partial(column, made, WHOLE)
    return [
        *_smooth(made, WHOLE),
        *_smooth(made, PAPER),
        *(
            better(f"jump at a seam, {arm} - whole: {name}", column(made, arm, f"{name}, seam"), of(f"{name}, seam"))
            for arm, name in product(WITHOUT, CHANGES)
        ),
    ]


def _smooth(made: Sequence[Record], arm: str) -> list[Claim]:
    of = partial(column, made, arm)
    return [
        ratio(f"jump at a seam over change inside, {arm}: {name}", of(f"{name}, seam"), of(f"{name}, inside"), 0, 1.2)
        for name in CHANGES
    ]


WHERE = {"seam": "at a seam", "inside": "inside a clip"}
ROWS: Mapping[str, str] = {
    **{
        f"{name}, {where} clip": f"frames of the {where} clip with the prompt's {name}"
        for where, name in product(("first", "last"), ASKED)
    },
    **{f"motion, {where} clip": f"videos whose {where} clip moves as the prompt says" for where in ("first", "last")},
    "individual": "likeness of the last clip's individual to the first's",
    **{f"{name}, {where}": f"{CHANGES[name]}, {told}" for name, (where, told) in product(CHANGES, WHERE.items())},
}
