"""FVD and IS of all videos of an arm, from the features that the records hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kineograph.metrics.distances import SPLITS, Features, Mean, frechet_distance, inception_score, jackknife, moments
from kineograph.metrics.features import Extractor, Frames
from kineograph_lab.studies.protocol import Record
from kineograph_lab.studies.report import STANDARD_ERRORS, Claim

DIGITS = 5  # of a recorded feature
UNKNOWN = Mean(float("nan"), float("nan"))


def extract_set_features(extractor: Extractor, frames: Frames) -> dict[str, list[float]]:
    """Return the recorded features of a video, and its class probabilities if the extractor has any."""
    found = extractor.extract(frames)
    return {
        "features": _round_values(found.features),
        **({} if found.probabilities is None else {"classes": _round_values(found.probabilities)}),
    }


def _round_values(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _stack(records: Sequence[Record], arm: str, name: str) -> Features:
    ordered = sorted((record for record in records if record["arm"] == arm), key=lambda record: record["case"])
    return np.array([record[name] for record in ordered])


def tabulate_set_distances(records: Sequence[Record], arms: Sequence[str], real: str) -> dict[str, dict[str, Mean]]:
    """Return FVD of every arm against the arm of real videos, and IS: row -> arm -> value."""
    return {
        f"FVD against {real}": {arm: fvd_between_arms(records, arm, real) for arm in arms},
        "IS (the judge's subjects)": {arm: _inception_score(_stack(records, arm, "classes")) for arm in arms},
    }


def fvd_between_arms(records: Sequence[Record], arm: str, real: str) -> Mean:
    """Return FVD of an arm's videos against another arm's; NaN for fewer than two."""
    reference, ours = _stack(records, real, "features"), _stack(records, arm, "features")
    if len(ours) < 2:
        return UNKNOWN
    reference_moments = moments(reference)
    return jackknife(lambda features: frechet_distance(moments(features), reference_moments), ours)


def claim_lower_fvd(name: str, records: Sequence[Record], ours: str, theirs: str, real: str) -> Claim:
    """Claim that FVD of one arm is below that of another on the same cases, by two standard errors."""
    reference, our_features, their_features = (_stack(records, arm, "features") for arm in (real, ours, theirs))
    bar = f"> 0 by {STANDARD_ERRORS} standard errors"
    if len(our_features) < 2:
        return Claim(name, *UNKNOWN, len(our_features), bar, holds=False)
    reference_moments, width = moments(reference), our_features.shape[1]

    def difference(both: Features) -> float:
        return frechet_distance(moments(both[:, width:]), reference_moments) - frechet_distance(
            moments(both[:, :width]), reference_moments
        )

    value, error = jackknife(difference, np.concatenate([our_features, their_features], axis=1))
    return Claim(name, value, error, len(our_features), bar, value > STANDARD_ERRORS * error)


def _inception_score(classes: Features) -> Mean:
    return inception_score(classes) if len(classes) >= 2 * SPLITS else UNKNOWN
