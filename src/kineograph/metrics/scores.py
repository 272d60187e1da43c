"""Scores of a set of videos: each a number with its standard error and the protocol it was measured by."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineograph.errors import InputError, InputWarning
from kineograph.media.metadata import settings_id
from kineograph.media.shards import Problem
from kineograph.metrics import distances
from kineograph.metrics.collection import DecodedVideo, VideoCollection, VideoEntry, decode_video
from kineograph.metrics.distances import SPLITS, moments
from kineograph.metrics.features import Extractor, VideoFeatures, check_video_lengths
from kineograph.metrics.statistics import Clusters, Estimate, jackknife, mean
from kineograph.metrics.video_metrics import QUALITY, VideoMetric

AGAINST_ITSELF = "is of the real videos against themselves, which says nothing: give others to compare with"
FEW_VIDEOS = 1000  # below, FVD changes with their number more than between methods (Unterthiner et al. 2018)

OnVideo = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """One number that describes a set of videos.

    aspect    one of EvalCrafter's four
    settings  everything that it depends on besides the videos' pixels; `protocol` is their identifier
    doubt     why the value does not mean what its name says; "" if it does
    """

    name: str
    aspect: str
    value: Estimate
    settings: Mapping[str, Any]
    doubt: str = ""

    @property
    def count(self) -> int:
        """Number of videos that it is taken over."""
        return self.value.count

    @property
    def protocol(self) -> str:
        """Identifier of the settings. Scores can be compared only if theirs are equal."""
        return settings_id(self.settings)


class MeasuredVideo(NamedTuple):
    """A video's metrics by name, its features in the order of the extractors, and its cluster, as in `VideoEntry`."""

    name: str
    prompt: str | None
    frames: int
    fps: float
    values: Mapping[str, float]
    features: Sequence[VideoFeatures]
    cluster: str | None = None

    @property
    def cluster_key(self) -> tuple[str, ...]:
        """Key that videos of one cluster share."""
        return ("video", self.name) if self.cluster is None else ("cluster", self.cluster)


@dataclass(frozen=True)
class Measurements:
    """Measurements of all videos of a folder. digest: hash of their files."""

    folder: Path
    videos: tuple[MeasuredVideo, ...]
    digest: str
    problems: tuple[Problem, ...]

    def features(self, number: int) -> np.ndarray:
        """Return the features [n d] by the extractor of this number."""
        return np.stack([video.features[number].features for video in self.videos])

    @property
    def clusters(self) -> Clusters:
        """Cluster of each video."""
        return [video.cluster_key for video in self.videos]

    def describe_sample(self) -> dict[str, Any]:
        """Return what scores depend on besides extractor and metric: count, lengths, rates, prompts."""
        lengths, rates = ([getattr(video, name) for video in self.videos] for name in ("frames", "fps"))
        prompts = sorted(video.prompt for video in self.videos if video.prompt is not None)
        return {
            "videos": len(self.videos),
            "frames": [min(lengths), max(lengths)],
            "fps": [round(min(rates), 3), round(max(rates), 3)],
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest() if prompts else None,
        }


def measure_videos(
    collection: VideoCollection,
    extractors: Sequence[Extractor],
    metrics: Sequence[VideoMetric] = (),
    on_video: OnVideo | None = None,
) -> Measurements:
    """Measure all videos of a collection, one at a time.

    Warns (InputWarning) of videos that cannot be decoded to the end and leaves them out.

    Args:
        on_video: called with (videos done, all videos).

    Raises InputError when a video is too short for an extractor (before any is measured), or none can be decoded.
    """
    for extractor in extractors:
        check_video_lengths(collection.lengths, extractor)
    measured, problems, digest = list[MeasuredVideo](), list(collection.problems), hashlib.sha256()
    for done, entry in enumerate(collection.entries, 1):
        video = _decode_or_warn(entry, problems)
        if video is not None:
            measured.append(_measure_video(video, extractors, metrics))
            digest.update(entry.footage.digest.encode())
        if on_video:
            on_video(done, len(collection.entries))
    if not measured:
        raise InputError(f"none of the videos in {collection.folder} can be read to its end: {problems[0].reason}")
    return Measurements(collection.folder, tuple(measured), digest.hexdigest(), tuple(problems))


def _decode_or_warn(entry: VideoEntry, problems: list[Problem]) -> DecodedVideo | None:
    try:
        return decode_video(entry)
    except InputError as error:
        problems.append(Problem(entry.name, str(error)))
        warnings.warn(f"{entry.name} is left out: {error}", InputWarning, stacklevel=3)
        return None


def _measure_video(
    video: DecodedVideo, extractors: Sequence[Extractor], metrics: Sequence[VideoMetric]
) -> MeasuredVideo:
    values = {name: value for metric in metrics for name, value in metric.measure(video)}
    features = [extractor.extract(video.frames) for extractor in extractors]
    prompt = " / ".join(prompt for _, prompt in video.prompted_parts) or None
    return MeasuredVideo(video.name, prompt, len(video.frames), video.fps, values, features, video.cluster)


def compute_scores(
    ours: Measurements,
    extractors: Sequence[Extractor],
    metrics: Sequence[VideoMetric],
    against: Measurements | None = None,
) -> list[Score]:
    """Compute all scores of a set of videos; with a reference set, FVD and KVD by each extractor too.

    Beside these stand FVD and KVD of the real videos themselves, one half against the other: what equal distributions
    have.

    Warns (InputWarning) when there are too few videos for a score, or for its usual meaning.
    """
    scores = list(_metric_scores(ours, metrics))
    for number, extractor in enumerate(extractors):
        scores += _inception_scores(ours, number, extractor)
        if against is not None:
            scores += _distance_scores(ours, against, number, extractor)
    return scores


def _metric_scores(ours: Measurements, metrics: Sequence[VideoMetric]) -> Iterator[Score]:
    for metric in metrics:
        for name, aspect in metric.aspects.items():
            videos = [video for video in ours.videos if name in video.values]
            settings = {"score": name, **metric.protocol, "sample": ours.describe_sample(), "counted": len(videos)}
            if videos:
                clusters = [video.cluster_key for video in videos]
                yield Score(name, aspect, mean([video.values[name] for video in videos], clusters), settings)


def _inception_scores(ours: Measurements, number: int, extractor: Extractor) -> Iterator[Score]:
    """Yield the Inception Score if the extractor is a classifier."""
    every = [(video.features[number].probabilities, video.cluster_key) for video in ours.videos]
    known = [(probabilities, cluster) for probabilities, cluster in every if probabilities is not None]
    if not known:
        return
    clusters = [cluster for _, cluster in known]
    if len({*clusters}) < 2 * SPLITS:
        apart = "" if len({*clusters}) == len(clusters) else " of different clusters"
        needed = f"its {SPLITS} splits need {2 * SPLITS} videos{apart}"
        text = f"the Inception Score is left out: {needed}, got {len({*clusters})}"
        warnings.warn(text, InputWarning, stacklevel=4)
        return
    settings = {"score": "IS", "splits": SPLITS, "extractor": extractor.protocol(), "sample": ours.describe_sample()}
    score = distances.inception_score(np.stack([probabilities for probabilities, _ in known]), SPLITS, clusters)
    yield Score(f"IS ({extractor.name})", QUALITY, score, settings)


def _distance_scores(ours: Measurements, against: Measurements, number: int, extractor: Extractor) -> Iterator[Score]:
    mine, theirs = ours.features(number), against.features(number)
    if min(len(mine), len(theirs)) < 2:
        text = f"FVD is left out: it needs 2 videos on both sides, got {len(mine)} and {len(theirs)}"
        warnings.warn(text, InputWarning, stacklevel=4)
        return
    sample = ours.describe_sample()
    real = {"extractor": extractor.protocol(), "against": {**against.describe_sample(), "files": against.digest}}
    width, same = mine.shape[1], ours.digest == against.digest
    for name, value in _distances(mine, theirs, ours.clusters):
        doubt = AGAINST_ITSELF if same else _distance_doubt(name, len(mine), len(theirs), width)
        value = replace(value, error=math.nan) if same else value
        if doubt:
            warnings.warn(f"{name} ({extractor.name}) {doubt}", InputWarning, stacklevel=4)
        yield Score(f"{name} ({extractor.name})", QUALITY, value, {"score": name, "sample": sample, **real}, doubt)
    if len(theirs) < 4:
        return
    for name, value in _distances(theirs[::2], theirs[1::2], against.clusters[::2]):
        score = f"{name}, real against real"
        doubt = _distance_doubt(name, value.count, len(theirs) // 2, width)
        yield Score(f"{score} ({extractor.name})", QUALITY, value, {"score": score, **real}, doubt)


def _distances(mine: np.ndarray, theirs: np.ndarray, clusters: Clusters) -> Iterator[tuple[str, Estimate]]:
    """Yield FVD and KVD by their names."""
    reference_moments = moments(theirs)
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "FVD": lambda features: distances.frechet_distance(moments(features), reference_moments),
        "KVD": lambda features: distances.kernel_distance(features, theirs),
    }
    for name, statistic in statistics.items():
        yield name, jackknife(statistic, mine, clusters)


def _distance_doubt(name: str, ours: int, theirs: int, width: int) -> str:
    """Return why a distance is biased: of few videos, or of unequal numbers of them; KVD is not."""
    if name != "FVD":
        return ""
    if min(ours, theirs) <= width:
        return (
            f"is of {ours} against {theirs} videos with {width} features: the covariance of so few is singular, which "
            "makes FVD too large. Compare it only with that of as many videos, or use KVD"
        )
    if min(ours, theirs) < FEW_VIDEOS:
        return (
            f"is of {ours} against {theirs} videos: below {FEW_VIDEOS} it is too large, the more so the fewer they "
            "are. Compare it only with that of as many videos, or use KVD"
        )
    return f"is of {ours} videos against {theirs}: its bias depends on both numbers" if ours != theirs else ""
