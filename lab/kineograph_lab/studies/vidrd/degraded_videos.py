"""FVD on the pocket world: whether it rises with damage that is known, as what is worse should be further away.

A case is a set of clips here, drawn anew for each, and another set that they are compared with. No model draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

import numpy as np

from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.model import Model
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import Case, Record
from kineograph_lab.studies.report import Claim, better
from kineograph_lab.studies.study import Study, column
from kineograph_lab.studies.vidrd.degradations import DAMAGES
from kineograph_lab.world.world import render_clip, sample_shots

SEED = 50_021  # of the shots of the first set
VIDEOS = 256  # on either side: more than there are features, so that no covariance is singular
PROMPTS, LEAST = 20, 2  # of other studies to one set here; sets, so that there is a spread
ARM = "FVD"
DEGREES: Mapping[str, tuple[str, float]] = {
    f"{name} {degree:g}": (name, degree) for name, (_, degrees) in DAMAGES.items() for degree in degrees
}


def studied(model: Model, witnesses: Witnesses, count: int, steps: int | None) -> Study:
    """A set of clips for every twenty cases; neither the model nor steps count."""
    extractor = load_extractor(POCKET)
    return Study(
        name="fvd",
        title=f"FVD of {VIDEOS} clips with known damage, against as many others",
        settings={"videos": VIDEOS, "extractor": extractor.protocol(), "damage": list(DEGREES)},
        cases=[_case(number) for number in range(max(LEAST, count // PROMPTS))],
        arms={ARM: lambda cases: [shown(case) for case in cases]},
        measured=lambda frames, case: measured(extractor, case.number),
        claims=claims,
        rows={name: name for name in DEGREES},
    )


def _case(number: int) -> Case:
    return Case(number, f"set {number + 1}", next(sample_shots(SEED + number, split="held_out")))


def drawn(number: int) -> Iterator[Frames]:
    """The clips of a set: first those that are damaged, then the others."""
    return (render_clip(shot) for shot in islice(sample_shots(SEED + number, split="held_out"), 2 * VIDEOS))


def shown(case: Case) -> Frames:
    """The middle frame of the first clip of a set, in every damage."""
    first = render_clip(case.shot)
    return np.stack([damaged(first, name, 0)[len(first) // 2] for name in DEGREES])


def damaged(frames: Frames, name: str, seed: int) -> Frames:
    kind, degree = DEGREES[name]
    damage, _ = DAMAGES[kind]
    return damage(frames, degree, seed)


def measured(extractor: Extractor, number: int) -> dict[str, float]:
    """FVD of a set with each damage against the other set."""
    hurt: dict[str, list[np.ndarray]] = {name: [] for name in DEGREES}
    real = []
    for place, frames in enumerate(drawn(number)):
        if place >= VIDEOS:
            real.append(extractor.extract(frames).features)
            continue
        whole = extractor.extract(frames).features
        for name, (_, degree) in DEGREES.items():
            hurt[name].append(extractor.extract(damaged(frames, name, place)).features if degree else whole)
    known = moments(np.stack(real))
    return {name: frechet_distance(moments(np.stack(each)), known) for name, each in hurt.items()}


def claims(made: Sequence[Record]) -> list[Claim]:
    """From each degree of a damage to the next, FVD rises."""
    steps = [(one, other) for one, other in pairwise(DEGREES) if DEGREES[one][0] == DEGREES[other][0]]
    return [
        better(f"FVD rises: {worse} - {less}", column(made, ARM, worse), column(made, ARM, less))
        for less, worse in steps
    ]  # fmt: skip
