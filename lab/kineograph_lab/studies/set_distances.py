"""FVD, KVD and IS of all videos of an arm, from the features that the records hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kineograph.metrics.distances import (
    SPLITS,
    Features,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
)
from kineograph.metrics.features import Extractor, Frames
from kineograph.metrics.scores import FEW_VIDEOS
from kineograph.metrics.statistics import NO_ESTIMATE, Estimate, jackknife
from kineograph_lab.studies.claims import Claim, claim_between
from kineograph_lab.studies.protocol import Record, recorded_cluster

DIGITS = 5  # of a recorded feature

Distance = Callable[[Features, Features], float]
DISTANCES: Mapping[str, Distance] = {
    "FVD": lambda ours, theirs: frechet_distance(moments(ours), moments(theirs)),
    "KVD": kernel_distance,
}


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
    rows = [record[name] for record in _of_arm(records, arm)]
    return np.array(rows) if rows else np.empty((0, 0))


def _of_arm(records: Sequence[Record], arm: str) -> list[Record]:
    return sorted((record for record in records if record["arm"] == arm), key=lambda record: record["case"])


def _clusters(records: Sequence[Record], arm: str) -> list[int]:
    return [recorded_cluster(record) for record in _of_arm(records, arm)]


def tabulate_set_distances(records: Sequence[Record], real: str) -> dict[str, dict[str, Estimate]]:
    """Return FVD and KVD of every arm against the arm of real videos: row -> arm -> estimate.

    The real videos of the same prompts are no independent reference, and say nothing about themselves. So each distance
    is computed a second time, of the even cases against the real videos of the odd ones: there the real videos' own
    distance is what equal distributions have. FVD of fewer than `FEW_VIDEOS` is left out: it is too large by an amount
    that depends on the arm.
    """
    arms = list(dict.fromkeys(each["arm"] for each in records))
    even, odd = ([each for each in records if each["case"] % 2 == half] for half in (0, 1))
    table = {}
    for name in DISTANCES if len(_of_arm(even, real)) >= FEW_VIDEOS else ["KVD"]:
        same = {arm: distance_between_arms(name, records, arm, real) for arm in arms if arm != real}
        table[_row(name, records, real, "the same prompts")] = {arm: same.get(arm, NO_ESTIMATE) for arm in arms}
        table[_row(name, even, real, "other prompts")] = {
            arm: _distance(name, even, arm, _stack(odd, real, "features")) for arm in arms
        }
    return table


def _row(name: str, records: Sequence[Record], real: str, whose: str) -> str:
    return f"{name} against {real} of {whose} ({len(_of_arm(records, real))} videos)"


def tabulate_inception_scores(records: Sequence[Record]) -> dict[str, dict[str, Estimate]]:
    """Return IS of every arm: row -> arm -> estimate."""
    arms = dict.fromkeys(each["arm"] for each in records)
    return {"IS (the judge's subjects)": {arm: _inception_score(records, arm) for arm in arms}}


def distance_between_arms(name: str, records: Sequence[Record], arm: str, real: str) -> Estimate:
    """Return FVD or KVD of an arm's videos against another arm's; NaN for fewer than two."""
    return _distance(name, records, arm, _stack(records, real, "features"))


def _distance(name: str, records: Sequence[Record], arm: str, reference: Features) -> Estimate:
    ours = _stack(records, arm, "features")
    if min(len(ours), len(reference)) < 2:
        return NO_ESTIMATE
    return jackknife(lambda features: DISTANCES[name](features, reference), ours, _clusters(records, arm))


def claim_lower_distance(name: str, records: Sequence[Record], ours: str, theirs: str, real: str) -> Claim:
    """Claim that FVD or KVD (the first word of the name) of one arm is below that of another on the same cases.

    FVD of fewer than `FEW_VIDEOS` is too large by an amount that depends on the arm: the claim is not measured then.
    """
    distance = DISTANCES[name[:3]]
    reference, our_features, their_features = (_stack(records, arm, "features") for arm in (real, ours, theirs))
    needed, bar = (FEW_VIDEOS, f"> 0, of {FEW_VIDEOS:,} videos") if name.startswith("FVD") else (2, "> 0")
    if min(map(len, (our_features, their_features, reference))) < needed:
        return claim_between(name, NO_ESTIMATE, 0, np.inf, bar)
    width = our_features.shape[1]
    both = np.concatenate([our_features, their_features], axis=1)
    found = jackknife(
        lambda features: distance(features[:, width:], reference) - distance(features[:, :width], reference),
        both,
        _clusters(records, ours),
    )
    return claim_between(name, found, 0, np.inf, bar)


def claim_lower_distances(name: str, records: Sequence[Record], ours: str, theirs: str, real: str) -> list[Claim]:
    """Claim that FVD, and that KVD, of one arm is below that of another on the same cases."""
    return [claim_lower_distance(f"{each}, {name}", records, ours, theirs, real) for each in DISTANCES]


def _inception_score(records: Sequence[Record], arm: str) -> Estimate:
    classes, clusters = _stack(records, arm, "classes"), _clusters(records, arm)
    return inception_score(classes, SPLITS, clusters) if len({*clusters}) >= 2 * SPLITS else NO_ESTIMATE
