"""Interface of feature extractors, the networks that FVD, KVD and the Inception Score are computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from kineograph.errors import InputError
from kineograph.models.formats.tensor_files import preview_names

Frames = UInt8[np.ndarray, "f h w 3"]
NamedValues = Iterator[tuple[str, float]]


class FrameSelection(NamedTuple):
    """A rule that selects the frames that an extractor gets.

    name: part of the protocol. indices: (number of frames wanted, frames of the video) -> their indices.
    """

    name: str
    indices: Callable[[int, int], Int[np.ndarray, " n"]]


FROM_START = FrameSelection("the first", lambda wanted, length: np.arange(min(wanted, length)))
EVENLY_SPACED = FrameSelection(
    "spread over the video", lambda wanted, length: np.linspace(0, length - 1, wanted).round().astype(np.int64)
)


class VideoFeatures(NamedTuple):
    """Features of a video, and its class probabilities if the extractor is a classifier."""

    features: Float[np.ndarray, " d"]
    probabilities: Float[np.ndarray, " k"] | None = None


class Extractor(NamedTuple):
    """A network that maps a video to features.

    name        name of its scores: FVD (name)
    weights     SHA-256 of the weights
    resize      description of the preprocessing, part of the protocol
    num_frames  number of frames of its input, chosen by `selection`
    min_frames  least number of frames of a video
    forward     the selected frames -> features
    """

    name: str
    weights: str
    resize: str
    num_frames: int
    selection: FrameSelection
    min_frames: int
    forward: Callable[[Frames], VideoFeatures]

    def extract(self, video: Frames) -> VideoFeatures:
        """Return the features of a video of at least `min_frames` frames."""
        return self.forward(video[self.selection.indices(self.num_frames, len(video))])

    def protocol(self) -> dict[str, Any]:
        """Return everything that features depend on besides the video."""
        return {
            "weights": self.weights, "resize": self.resize, "frames": self.num_frames, "taken": self.selection.name,
        }  # fmt: skip


def check_video_lengths(lengths: Mapping[str, int], extractor: Extractor) -> None:
    """Check that every video has enough frames for an extractor.

    lengths: number of frames of each video, by name. Raises InputError when some are too short, and
    names the first few.
    """
    short = [f"{name} has {length}" for name, length in lengths.items() if length < extractor.min_frames]
    if short:
        raise InputError(
            f"{extractor.name} reads {extractor.num_frames} frames and needs videos of at least "
            f"{extractor.min_frames}, and {len(short)} of {len(lengths)} videos are shorter ({preview_names(short)}): "
            "make longer videos, remove the short ones, or choose another extractor"
        )
