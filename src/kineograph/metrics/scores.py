"""From videos to scores: each a number with its standard error and the protocol that it was measured by."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kineograph.errors import InputError, InputWarning
from kineograph.media.metadata import identifier
from kineograph.media.shards import Problem
from kineograph.metrics.collection import Clip, Collection, Reel, read
from kineograph.metrics.distances import (
    SPLITS,
    Mean,
    frechet,
    inception_score,
    jackknifed,
    kernel_distance,
    mean,
    moments,
)
from kineograph.metrics.features import Extractor, Reading, check_lengths
from kineograph.metrics.video_metrics import QUALITY, Gauge

OnVideo = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """A number of a set of videos.

    aspect    which of EvalCrafter's it belongs to
    count     over how many videos it was taken
    settings  all that it depends on besides the videos' pixels; `protocol` stands for them
    """

    name: str
    aspect: str
    value: Mean
    count: int
    settings: Mapping[str, Any]

    @property
    def protocol(self) -> str:
        """Only scores of the same protocol can be compared."""
        return identifier(self.settings)


class Seen(NamedTuple):
    """A video that was measured: its numbers by name, and its readings in the order of the extractors."""

    name: str
    prompt: str | None
    frames: int
    fps: float
    numbers: Mapping[str, float]
    readings: Sequence[Reading]


@dataclass(frozen=True)
class Survey:
    """All videos of a folder, measured; digest: of their files."""

    folder: Path
    videos: tuple[Seen, ...]
    digest: str
    problems: tuple[Problem, ...]

    def features(self, number: int) -> np.ndarray:
        """What the extractor of this number found: [n d]."""
        return np.stack([video.readings[number].features for video in self.videos])

    def sample(self) -> dict[str, Any]:
        """What scores depend on besides extractor and measure: how many videos of which length, rate and prompts."""
        lengths, rates = ([getattr(video, name) for video in self.videos] for name in ("frames", "fps"))
        prompts = sorted(video.prompt for video in self.videos if video.prompt is not None)
        return {
            "videos": len(self.videos),
            "frames": [min(lengths), max(lengths)],
            "fps": [round(min(rates), 3), round(max(rates), 3)],
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest() if prompts else None,
        }


def survey(
    videos: Collection, extractors: Sequence[Extractor], gauges: Sequence[Gauge] = (), on_video: OnVideo | None = None
) -> Survey:
    """Measures every video, one at a time. on_video: called with (how many are done, of how many).

    Raises InputError when one is too short for an extractor, before any is measured, and when none can be read to its
    end; warns (InputWarning) of those that cannot.
    """
    for extractor in extractors:
        check_lengths(videos.lengths, extractor)
    seen, problems, files = list[Seen](), list(videos.problems), hashlib.sha256()
    for done, reel in enumerate(videos.reels, 1):
        clip = _readable(reel, problems)
        if clip is not None:
            seen.append(_seen(clip, extractors, gauges))
            files.update(reel.footage.digest.encode())
        if on_video:
            on_video(done, len(videos.reels))
    if not seen:
        raise InputError(f"none of the videos in {videos.folder} can be read to its end: {problems[0].reason}")
    return Survey(videos.folder, tuple(seen), files.hexdigest(), tuple(problems))


def _readable(reel: Reel, problems: list[Problem]) -> Clip | None:
    try:
        return read(reel)
    except InputError as error:
        problems.append(Problem(reel.name, str(error)))
        warnings.warn(f"{reel.name} does not count: {error}", InputWarning, stacklevel=3)
        return None


def _seen(clip: Clip, extractors: Sequence[Extractor], gauges: Sequence[Gauge]) -> Seen:
    numbers = {name: value for gauge in gauges for name, value in gauge.measure(clip)}
    readings = [extractor.of(clip.frames) for extractor in extractors]
    told = " / ".join(prompt for _, prompt in clip.told) or None
    return Seen(clip.name, told, len(clip.frames), clip.fps, numbers, readings)


def scores(
    ours: Survey, extractors: Sequence[Extractor], gauges: Sequence[Gauge], against: Survey | None = None
) -> list[Score]:
    """All scores of a set of videos; with another set to compare with, FVD and KVD by each extractor too.

    Warns (InputWarning) when there are too few videos for what a score usually means.
    """
    found = list(_of_gauges(ours, gauges))
    for number, extractor in enumerate(extractors):
        found += _of_classes(ours, number, extractor)
        if against is not None:
            found += _of_distances(ours, against, number, extractor)
    return found


def _of_gauges(ours: Survey, gauges: Sequence[Gauge]) -> Iterator[Score]:
    for gauge in gauges:
        for name, aspect in gauge.numbers.items():
            values = [video.numbers[name] for video in ours.videos if name in video.numbers]
            settings = {"score": name, **gauge.protocol, "sample": ours.sample()}
            if values:
                yield Score(name, aspect, mean(values), len(values), settings | {"counted": len(values)})


def _of_classes(ours: Survey, number: int, extractor: Extractor) -> Iterator[Score]:
    """The Inception Score, if the extractor tells classes."""
    told = [video.readings[number].classes for video in ours.videos]
    known = [classes for classes in told if classes is not None]
    if not known:
        return
    if len(known) < 2 * SPLITS:
        text = f"the Inception Score is left out: its {SPLITS} splits take {2 * SPLITS} videos, and {len(known)} came"
        warnings.warn(text, InputWarning, stacklevel=4)
        return
    name = f"IS ({extractor.name})"
    settings = {"score": "IS", "splits": SPLITS, "extractor": extractor.protocol(), "sample": ours.sample()}
    yield Score(name, QUALITY, inception_score(np.stack(known)), len(known), settings)


def _of_distances(ours: Survey, against: Survey, number: int, extractor: Extractor) -> Iterator[Score]:
    mine, theirs = ours.features(number), against.features(number)
    if min(len(mine), len(theirs)) < 2:
        text = f"FVD is left out: it takes 2 videos on both sides, and {len(mine)} and {len(theirs)} came"
        warnings.warn(text, InputWarning, stacklevel=4)
        return
    _doubt(len(mine), len(theirs), mine.shape[1], extractor.name)
    known = moments(theirs)
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "FVD": lambda features: frechet(moments(features), known),
        "KVD": lambda features: kernel_distance(features, theirs),
    }
    reference = {**against.sample(), "files": against.digest}
    for name, statistic in statistics.items():
        settings = {
            "score": name, "extractor": extractor.protocol(), "sample": ours.sample(), "against": reference,
        }  # fmt: skip
        yield Score(f"{name} ({extractor.name})", QUALITY, jackknifed(statistic, mine), len(mine), settings)


def _doubt(ours: int, theirs: int, width: int, name: str) -> None:
    """Says what a Frechet distance of few videos, or of unequal numbers of them, means."""
    if min(ours, theirs) <= width:
        text = (
            f"FVD ({name}) is of {ours} against {theirs} videos with {width} features: the covariance of so few is "
            "singular, which makes FVD too large. Compare it only with that of as many videos, or look at KVD"
        )
        warnings.warn(text, InputWarning, stacklevel=5)
    elif ours != theirs:
        text = f"FVD ({name}) is of {ours} videos against {theirs}: its bias depends on both numbers"
        warnings.warn(text, InputWarning, stacklevel=5)
