"""FVD and KVD on the pocket world: they must rise with known degradations, from slight to severe.

A case is a set of rendered clips, and another set that they are compared with. No model generates anything. Frames are
uint8 [f h w 3]; degree 0 of a degradation is the video itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise, product

import numpy as np
from PIL import Image, ImageFilter

from kineograph.metrics.distances import frechet_distance, kernel_distance, moments
from kineograph.metrics.extractors import POCKET, load_extractor
from kineograph.metrics.features import Extractor, Frames
from kineograph.metrics.scores import FEW_VIDEOS
from kineograph.metrics.video_metrics import sharpness
from kineograph.models.model import Model
from kineograph_lab.studies.claims import Claim, claim_better
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import Case, Record
from kineograph_lab.studies.splits import DEVELOPMENT, Split, seed_offset
from kineograph_lab.studies.study import Analysis, Study, metric_values
from kineograph_lab.world.world import ShotSpec, render_clip, sample_shots

SEED = 50_021  # of the shots of the first set
VIDEOS = FEW_VIDEOS  # on either side, of each set
CASES_PER_SET, MIN_SETS = 20, 2  # cases of other studies for one set here; sets needed for a standard error
ARM = "FVD"
KVD, SHARP = (
    "KVD, ",
    "sharpness over that of the clips, ",
)  # before the name of a degradation; the name alone is its FVD
SAME = "blur 0"

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
    """Return FVD and KVD of a set with each degradation against its reference set, and its sharpness over the clips'."""
    degraded: dict[str, list[np.ndarray]] = {name: [] for name in DEGREES}
    sharp: dict[str, list[float]] = {name: [] for name in DEGREES}  # of the middle frames
    real: list[np.ndarray] = []
    for position, frames in enumerate(_render_set(case)):
        features = extractor.extract(frames).features
        if position >= VIDEOS:
            real.append(features)
            continue
        for name, (_, degree) in DEGREES.items():
            changed = _degrade(frames, name, position) if degree else frames
            degraded[name].append(extractor.extract(changed).features if degree else features)
            sharp[name].append(sharpness(changed[[len(changed) // 2]]))
    reference, sets = np.stack(real), {name: np.stack(each) for name, each in degraded.items()}
    reference_moments = moments(reference)
    return {
        **{name: frechet_distance(moments(each), reference_moments) for name, each in sets.items()},
        **{KVD + name: kernel_distance(each, reference) for name, each in sets.items()},
        **{SHARP + name: float(np.mean(each) / np.mean(sharp[SAME])) for name, each in sharp.items()},
        "videos": VIDEOS,
    }


def _state_claims(records: Sequence[Record]) -> list[Claim]:
    """Claim that FVD, of sets that are large enough, and KVD rise from each degree of a degradation to the next."""
    large = [each for each in records if each.get("videos", 0) >= FEW_VIDEOS]
    steps = [(one, other) for one, other in pairwise(DEGREES) if DEGREES[one][0] == DEGREES[other][0]]
    return [
        claim_better(
            f"{name} rises: {worse} - {less}",
            metric_values(usable, ARM, prefix + worse),
            metric_values(usable, ARM, prefix + less),
        )
        for (name, prefix, usable), (less, worse) in product((("FVD", "", large), ("KVD", KVD, records)), steps)
    ]


ANALYSIS = Analysis(
    name="fvd",
    title=f"FVD and KVD of clips with known degradations, against as many others (FVD of fewer than {FEW_VIDEOS:,} is no claim)",
    cases=degraded_sets,
    state_claims=_state_claims,
    rows={
        "videos": "clips of each set",
        **{prefix + name: (prefix or "FVD, ") + name for prefix, name in product(("", KVD, SHARP), DEGREES)},
    },
)
