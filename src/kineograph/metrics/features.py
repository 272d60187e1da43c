"""What turns a video into features: the extractor that FVD, KVD and IS depend on as much as on the videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import preview_names


Frames = UInt8[np.ndarray, "f h w 3"]
Measured = Iterator[tuple[str, float]]


class Taken(NamedTuple):
    """Which frames of a video an extractor sees: the numbers of so many, of a video of so many."""

    name: str
    numbers: Callable[[int, int], Int[np.ndarray, " n"]]


FIRST = Taken("the first", lambda wanted, length: np.arange(min(wanted, length)))
SPREAD = Taken(
    "spread over the video", lambda wanted, length: np.linspace(0, length - 1, wanted).round().astype(np.int64)
)


class Reading(NamedTuple):
    """What an extractor finds in a video: features, and the probabilities of its classes if it has any."""

    features: Float[np.ndarray, " d"]
    classes: Float[np.ndarray, " k"] | None = None


class Extractor(NamedTuple):
    """A network that reads videos.

    name     what its scores are called by
    weights  SHA-256 of them
    resize   how frames become what it sees, in words: part of the protocol
    frames   how many it sees, and `taken` which
    least    how many a video must have
    read     the frames that were taken, uint8 [frames h w 3] -> features
    """

    name: str
    weights: str
    resize: str
    frames: int
    taken: Taken
    least: int
    read: Callable[[Frames], Reading]

    def of(self, video: Frames) -> Reading:
        """The features of a video of any length from `least` on."""
        return self.read(video[self.taken.numbers(self.frames, len(video))])

    def protocol(self) -> dict[str, Any]:
        """All of it that features depend on."""
        return {
            "weights": self.weights, "resize": self.resize, "frames": self.frames, "taken": self.taken.name,
        }  # fmt: skip


def check_lengths(lengths: Mapping[str, int], extractor: Extractor) -> None:
    """Raises InputError when a video (name -> frames) is too short for the extractor, naming the first few."""
    short = [f"{name} has {length}" for name, length in lengths.items() if length < extractor.least]
    if short:
        raise InputError(
            f"{extractor.name} sees {extractor.frames} frames and takes videos of at least {extractor.least}, and "
            f"{len(short)} of {len(lengths)} videos are shorter ({preview_names(short)}): make longer ones, take them away, or "
            "take another extractor"
        )
