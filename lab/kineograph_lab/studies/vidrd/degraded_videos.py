"""FVD on the pocket world: it must rise with known degradations, from slight to severe.

A case is a set of rendered clips, and another set that they are compared with. No model generates anything. Frames are
uint8 [f h w 3]; degree 0 of a degradation is the video itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise

import numpy as np
from PIL import Image, ImageFilter

from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.models.model import Model
from kineograph_lab.studies.claims import Claim, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record
from kineograph_lab.studies.splits import DEVELOPMENT, Split, seed_offset
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.world.world import ShotSpec, render_clip, sample_shots

SEED = 50_021  # of the shots of the first set
VIDEOS = 256  # on either side: more than features, so that no covariance is singular
CASES_PER_SET, MIN_SETS = 20, 2  # cases of other studies for one set here; sets needed for a standard error
ARM = "FVD"

Degradation = Callable[[Frames, float, int], Frames]


def blur(frames: Frames, degree: float, seed: int) -> Frames:
    """Blur with a Gaussian of `degree` pixels."""
    gaussian = ImageFilter.GaussianBlur(degree)
    return np.stack([np.asarray(Image.fromarray(frame).filter(gaussian)) for frame in frames])


def add_pixel_noise(frames: Frames, degree: float, seed: int) -> Frames:
    """Add Gaussian noise of `degree` grey levels to each frame."""
    noise = np.random.default_rng(seed).normal(0, degree, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def freeze_frames(frames: Frames, degree: float, seed: int) -> Frames:
    """Replace this share of the frames, from the start, by frame 0."""
    frozen = round(degree * len(frames))
    return frames[np.where(np.arange(len(frames)) < frozen, 0, np.arange(len(frames)))]


def shuffle_frames(frames: Frames, degree: float, seed: int) -> Frames:
    """Exchange this share of the frames with one another."""
    rng, order = np.random.default_rng(seed), np.arange(len(frames))
    chosen = np.sort(rng.permutation(len(frames))[: round(degree * len(frames))])
    order[chosen] = np.roll(chosen, max(1, len(chosen) // 2))
    return frames[order]


DEGRADATIONS: Mapping[str, tuple[Degradation, tuple[float, ...]]] = {
    "blur": (blur, (0, 2, 4, 8)),
    "noise": (add_pixel_noise, (0, 16, 32, 64)),
    "frozen frames": (freeze_frames, (0, 0.25, 0.5, 1)),
    "shuffled frames": (shuffle_frames, (0, 0.25, 0.5, 1)),
}
"""Degradation -> function and degrees that are visible."""

DEGREES: Mapping[str, tuple[str, float]] = {
    f"{name} {degree:g}": (name, degree) for name, (_, degrees) in DEGRADATIONS.items() for degree in degrees
}


def fvd_study(model: Model, judges: Judges, count: int, steps: int | None) -> Study:
    """Return the study of a set of clips for every 20 cases; neither the model nor `steps` is used."""
    extractor = load_extractor(POCKET)
    return Study(
        ANALYSIS,
        settings={"videos": VIDEOS, "extractor": extractor.protocol(), "damage": list(DEGREES)},
        cases=degraded_sets(count),
        arms={ARM: lambda cases: [_show_degradations(case) for case in cases]},
        measure=lambda frames, case: _measure(extractor, case),
    )


def degraded_sets(count: int, split: Split = DEVELOPMENT) -> list[Case]:
    """Return a set of clips for every 20 cases of other studies."""
    return [_case(number, split) for number in range(max(MIN_SETS, count // CASES_PER_SET))]


def _case(number: int, split: Split) -> Case:
    return Case(number, f"set {number + 1}", next(_shots(number, split)), split=split)


def _shots(number: int, split: Split) -> Iterator[ShotSpec]:
    return sample_shots(SEED + seed_offset(split) + number, split="held_out")


def _render_set(case: Case) -> Iterator[Frames]:
    """Yield the clips of a set: first those to degrade, then the reference clips."""
    return (render_clip(shot) for shot in islice(_shots(case.number, case.split), 2 * VIDEOS))


def _show_degradations(case: Case) -> Frames:
    """Return the middle frame of the first clip of a set, with every degradation."""
    first = render_clip(case.shot)
    return np.stack([_degrade(first, name, 0)[len(first) // 2] for name in DEGREES])


def _degrade(frames: Frames, name: str, seed: int) -> Frames:
    kind, degree = DEGREES[name]
    degradation, _ = DEGRADATIONS[kind]
    return degradation(frames, degree, seed)


def _measure(extractor: Extractor, case: Case) -> dict[str, float]:
    """Return FVD of a set with each degradation against its reference set."""
    degraded: dict[str, list[np.ndarray]] = {name: [] for name in DEGREES}
    real = []
    for position, frames in enumerate(_render_set(case)):
        features = extractor.extract(frames).features
        if position >= VIDEOS:
            real.append(features)
            continue
        for name, (_, degree) in DEGREES.items():
            degraded[name].append(extractor.extract(_degrade(frames, name, position)).features if degree else features)
    reference = moments(np.stack(real))
    return {name: frechet_distance(moments(np.stack(each)), reference) for name, each in degraded.items()}


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that FVD rises from each degree of a degradation to the next."""
    steps = [(one, other) for one, other in pairwise(DEGREES) if DEGREES[one][0] == DEGREES[other][0]]
    return [
        claim_better(
            f"FVD rises: {worse} - {less}", metric_values(records, ARM, worse), metric_values(records, ARM, less)
        )
        for less, worse in steps
    ]


ANALYSIS = Analysis(
    name="fvd",
    title=f"FVD of {VIDEOS} clips with known degradations, against as many others",
    cases=degraded_sets,
    state_claims=_state_claims,
    rows={name: name for name in DEGREES},
)
