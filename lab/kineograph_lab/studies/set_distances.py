"""Numbers of all videos of an arm together, from the features that each record keeps of its own: FVD, KVD and IS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kineograph.metrics.distances import SPLITS, Features, Mean, frechet_distance, inception_score, jackknife, moments
from kineograph.metrics.features import Extractor, Frames
from kineograph_lab.studies.protocol import Record
from kineograph_lab.studies.report import SURE, Claim

DIGITS = 5  # of a feature that are kept
UNKNOWN = Mean(float("nan"), float("nan"))


def read(extractor: Extractor, frames: Frames) -> dict[str, list[float]]:
    """What a record keeps of a video: its features, and the probabilities of its classes if the extractor has any."""
    found = extractor.extract(frames)
    return {
        "features": _short(found.features),
        **({} if found.probabilities is None else {"classes": _short(found.probabilities)}),
    }


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _of(made: Sequence[Record], arm: str, name: str) -> Features:
    ordered = sorted((record for record in made if record["arm"] == arm), key=lambda record: record["case"])
    return np.array([record[name] for record in ordered])


def table(made: Sequence[Record], arms: Sequence[str], real: str) -> dict[str, dict[str, Mean]]:
    """FVD of every arm against one that is real, and IS: row -> arm -> value."""
    return {
        f"FVD against {real}": {arm: fvd(made, arm, real) for arm in arms},
        "IS (the judge's things)": {arm: _inception(_of(made, arm, "classes")) for arm in arms},
    }


def fvd(made: Sequence[Record], arm: str, real: str) -> Mean:
    """Of an arm's videos against those of another; unknown for fewer than two."""
    known, ours = _of(made, real, "features"), _of(made, arm, "features")
    if len(ours) < 2:
        return UNKNOWN
    there = moments(known)
    return jackknife(lambda features: frechet_distance(moments(features), there), ours)


def nearer(name: str, made: Sequence[Record], ours: str, theirs: str, real: str) -> Claim:
    """FVD of one arm is less than that of another on the same cases, by two standard errors."""
    known, one, other = (_of(made, arm, "features") for arm in (real, ours, theirs))
    bar = f"> 0 by {SURE} standard errors"
    if len(one) < 2:
        return Claim(name, *UNKNOWN, len(one), bar, holds=False)
    there, width = moments(known), one.shape[1]

    def difference(both: Features) -> float:
        return frechet_distance(moments(both[:, width:]), there) - frechet_distance(moments(both[:, :width]), there)

    value, error = jackknife(difference, np.concatenate([one, other], axis=1))
    return Claim(name, value, error, len(one), bar, value > SURE * error)


def _inception(classes: Features) -> Mean:
    return inception_score(classes) if len(classes) >= 2 * SPLITS else UNKNOWN
